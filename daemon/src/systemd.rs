//! What systemd is told, and where the log goes.
//!
//! Without systemd (no NOTIFY_SOCKET, no JOURNAL_STREAM) nothing is told and the log goes to stderr.

use std::io::IsTerminal;

use sd_notify::NotifyState;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Both APIs accept calls.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What `systemctl status` shows.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon has begun to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: requests are ending")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// Changes the log filter of a running daemon.
pub struct Log(Handle<EnvFilter, Registry>);

impl Log {
    /// Sends the log to the journal when stderr is the journal already, and to stderr else.
    pub fn start(filter: &str) -> std::io::Result<Self> {
        let filter = EnvFilter::try_new(filter).map_err(std::io::Error::other)?;
        let (filter, handle) = reload::Layer::new(filter);
        let output = if std::env::var_os("JOURNAL_STREAM").is_some() {
            tracing_journald::layer()?.boxed()
        } else {
            let colours = std::io::stderr().is_terminal();
            fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false).boxed()
        };
        tracing_subscriber::registry().with(filter).with(output).init();
        Ok(Self(handle))
    }

    /// Uses another filter from now on; a wrong one was refused with the configuration.
    pub fn set(&self, filter: &str) {
        if let Ok(filter) = EnvFilter::try_new(filter)
            && let Err(error) = self.0.reload(filter)
        {
            tracing::warn!(%error, "the log filter stays as it was");
        }
    }
}
