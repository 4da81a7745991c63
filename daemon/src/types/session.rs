//! Conversations that the daemon keeps.

use std::path::PathBuf;
use std::time::Duration;

/// What a new session shall be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// It outlives its connection and the daemon, and is its user's.
    pub persistent: bool,
    /// It goes when it was not used for so long; 0 is the configured time.
    pub ttl_ms: u64,
}

/// A session, as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its name, unique among all sessions.
    pub id: String,
    /// Whether it outlives its connection.
    pub persistent: bool,
    /// It goes when it was not used for so long.
    pub ttl_ms: u64,
    /// How long it has not been used.
    pub idle_ms: u64,
    /// Messages in its transcript.
    pub messages: u32,
    /// Whether a request of it waits or runs.
    pub answering: bool,
}

/// How many sessions there may be, and where they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// The folder of persistent sessions; empty: there are none.
    pub dir: PathBuf,
    /// All clients' together.
    pub total: u32,
    /// Of one user.
    pub per_user: u32,
    /// A session goes when it was not used for so long, unless it says otherwise.
    pub ttl: Duration,
}
