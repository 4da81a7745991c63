//! The requests that run or wait, as whoever watches the daemon sees them. Never what they say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::foreground::served_as;
use super::{Lease, Service};
use crate::stream::{Glance, Stopper};
use crate::types::{Client, Priority};

/// So many are told at most.
const TOLD: usize = 512;

/// A request in the list of active ones.
pub(super) struct Entry {
    pub(super) stopper: Stopper,
    client: Client,
    priority: Priority,
    /// What it is served as, since it runs.
    served_as: Option<Priority>,
}

impl Entry {
    pub(super) fn new(stopper: Stopper, client: Client, priority: Priority) -> Self {
        Self { stopper, client, priority, served_as: None }
    }
}

/// A request that was accepted and has not ended.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveRequest {
    /// Its number.
    pub id: u64,
    /// Who asked.
    pub client: Client,
    /// How urgent it is, as it was asked for.
    pub priority: Priority,
    /// How urgent it is with the app that is, or was when it began to run, in the foreground.
    pub served_as: Priority,
    /// How far it is.
    pub glance: Glance,
}

/// The requests, and what was done since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Activity {
    /// The most urgent first, then the oldest; bounded.
    pub requests: Vec<ActiveRequest>,
    /// The lease of the foreground that is in force.
    pub foreground: Option<Lease>,
    /// Since the service was made.
    pub uptime: Duration,
    /// Tokens made, by all requests.
    pub completion_tokens: u64,
    /// Requests that ended or were refused.
    pub ended_requests: u64,
}

impl Service {
    /// A request runs from now on.
    pub(super) fn serve_as(&self, id: u64, priority: Priority) {
        if let Some(entry) = lock(&self.active).get_mut(&id) {
            entry.served_as = Some(priority);
        }
    }

    /// The requests of all clients, and what was done so far.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let foreground = self.foreground.in_force();
        let app = foreground.as_ref().map(|lease| &lease.app);
        let waits_as = |entry: &Entry| served_as(app, &entry.client, entry.priority);
        let row = |(id, entry): (&u64, &Entry)| ActiveRequest {
            id: *id,
            client: entry.client.clone(),
            priority: entry.priority,
            served_as: entry.served_as.unwrap_or_else(|| waits_as(entry)),
            glance: entry.stopper.glance(),
        };
        let mut requests: Vec<_> = lock(&self.active).iter().map(row).collect();
        requests.sort_unstable_by_key(|request| (request.served_as, request.id));
        requests.truncate(TOLD);
        Activity {
            requests,
            foreground,
            uptime: self.began.elapsed(),
            completion_tokens: self.metrics.completion_tokens(),
            ended_requests: self.metrics.ended_requests(),
        }
    }
}

pub(super) type ActiveMap = Arc<Mutex<HashMap<u64, Entry>>>;

pub(super) fn lock(active: &ActiveMap) -> MutexGuard<'_, HashMap<u64, Entry>> {
    active.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's entry in the list of active ones, from its acceptance to its end.
pub(super) struct Active {
    map: ActiveMap,
    /// The request's number.
    pub(super) id: u64,
    ended: watch::Sender<()>,
    /// The service's, told when the last has ended.
    busy: Arc<watch::Sender<bool>>,
    idle_since: Arc<Mutex<Instant>>,
}

impl Active {
    pub(super) fn enter(service: &Service, id: u64, entry: Entry) -> Self {
        lock(&service.active).insert(id, entry);
        service.busy.send_if_modified(|busy| !std::mem::replace(busy, true));
        Self {
            map: Arc::clone(&service.active),
            id,
            ended: watch::Sender::new(()),
            busy: Arc::clone(&service.busy),
            idle_since: Arc::clone(&service.idle_since),
        }
    }

    /// Completes when the request has ended.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.subscribe();
        async move { while ended.changed().await.is_ok() {} }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut map = lock(&self.map);
        map.remove(&self.id);
        if map.is_empty() {
            *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.busy.send_replace(false);
        }
    }
}
