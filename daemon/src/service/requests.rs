//! The requests that run or wait, as whoever watches the daemon sees them. Never what they say.

use std::time::Duration;

use super::{Service, lock};
use crate::stream::{Glance, Stopper};
use crate::types::{Client, Priority};

/// So many are told at most.
const TOLD: usize = 512;

/// A request in the list of active ones.
pub(super) struct Entry {
    pub(super) stopper: Stopper,
    client: Client,
    priority: Priority,
}

impl Entry {
    pub(super) fn new(stopper: Stopper, client: Client, priority: Priority) -> Self {
        Self { stopper, client, priority }
    }
}

/// A request that was accepted and has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveRequest {
    /// Its number.
    pub id: u64,
    /// Who asked.
    pub client: Client,
    /// How urgent it is.
    pub priority: Priority,
    /// How far it is.
    pub glance: Glance,
}

/// The requests, and what was done since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Activity {
    /// The most urgent first, then the oldest; bounded.
    pub requests: Vec<ActiveRequest>,
    /// Since the service was made.
    pub uptime: Duration,
    /// Tokens made, by all requests.
    pub completion_tokens: u64,
    /// Requests that ended or were refused.
    pub ended_requests: u64,
}

impl Service {
    /// The requests of all clients, and what was done so far.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let row = |(id, entry): (&u64, &Entry)| ActiveRequest {
            id: *id,
            client: entry.client.clone(),
            priority: entry.priority,
            glance: entry.stopper.glance(),
        };
        let mut requests: Vec<_> = lock(&self.active).iter().map(row).collect();
        requests.sort_unstable_by_key(|request| (request.priority, request.id));
        requests.truncate(TOLD);
        Activity {
            requests,
            uptime: self.began.elapsed(),
            completion_tokens: self.metrics.completion_tokens(),
            ended_requests: self.metrics.ended_requests(),
        }
    }
}
