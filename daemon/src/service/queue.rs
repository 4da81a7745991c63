//! Who may generate, and who waits: first come, first served, up to the limits.
//!
//! A gate stands before the queue: open while a model answers, paused while one is being loaded, and
//! closed, with the reason, while there is none. The service owns the queue and moves the gate; each
//! request owns its [`Ticket`], then its [`Running`], whose drops give the place back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::types::Error;

/// Whether requests may pass.
#[derive(Clone, Debug)]
pub(super) enum Gate {
    Open,
    Paused,
    Closed(Error),
}

pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

struct Inner {
    gate: Gate,
    parallel: u32,
    places: u32,
    waiting: VecDeque<u64>,
    running: u32,
    /// A moving average of how long a request runs, for the time to retry.
    mean: Duration,
}

impl Queue {
    pub(super) fn new(gate: Gate, parallel: u32, places: u32) -> Arc<Self> {
        let inner = Inner {
            gate,
            parallel,
            places,
            waiting: VecDeque::new(),
            running: 0,
            mean: Duration::from_secs(2),
        };
        Arc::new(Self { inner: Mutex::new(inner), changed: watch::Sender::new(()) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_gate(&self, gate: Gate) {
        self.lock().gate = gate;
        self.changed.send_replace(());
    }

    pub(super) fn set_limits(&self, parallel: u32, places: u32) {
        let mut inner = self.lock();
        inner.parallel = parallel;
        inner.places = places;
        drop(inner);
        self.changed.send_replace(());
    }

    /// Requests that run, and that wait.
    pub(super) fn counts(&self) -> (u32, u32) {
        let inner = self.lock();
        (inner.running, u32::try_from(inner.waiting.len()).unwrap_or(u32::MAX))
    }

    /// Takes the last place in the queue, or says why there is none.
    pub(super) fn enter(self: &Arc<Self>, id: u64) -> Result<Ticket, Error> {
        let mut inner = self.lock();
        if let Gate::Closed(error) = &inner.gate {
            return Err(error.clone());
        }
        let free = inner.parallel.saturating_sub(inner.running) + inner.places;
        if inner.waiting.len() >= free as usize {
            let mean = inner.mean / inner.parallel.max(1);
            let retry_after_ms = u64::try_from(mean.as_millis()).unwrap_or(u64::MAX);
            return Err(Error::QueueFull {
                limit: inner.places,
                retry_after_ms: retry_after_ms.clamp(100, 60_000),
            });
        }
        inner.waiting.push_back(id);
        drop(inner);
        self.changed.send_replace(());
        Ok(Ticket { queue: Arc::clone(self), id })
    }

    /// Returns when nothing runs.
    pub(super) async fn idle(&self) {
        let mut changed = self.changed.subscribe();
        while self.lock().running > 0 {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A place among those who wait.
pub(super) struct Ticket {
    queue: Arc<Queue>,
    id: u64,
}

impl Ticket {
    /// Waits for the turn, and tells each new position. Ends with the gate's error when it closes.
    pub(super) async fn turn(self, mut moved: impl FnMut(u32)) -> Result<Running, Error> {
        let mut changed = self.queue.changed.subscribe();
        let mut told = None;
        loop {
            {
                let mut inner = self.queue.lock();
                let position = inner.waiting.iter().position(|id| *id == self.id).unwrap_or(0);
                match &inner.gate {
                    Gate::Closed(error) => return Err(error.clone()),
                    Gate::Open if position == 0 && inner.running < inner.parallel => {
                        inner.running += 1;
                        let queue = Arc::clone(&self.queue);
                        drop(inner);
                        // Dropping `self` leaves the waiting ones, and tells them.
                        return Ok(Running { queue, since: Instant::now() });
                    }
                    Gate::Open | Gate::Paused => {}
                }
                drop(inner);
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                if told.replace(position) != Some(position) {
                    moved(position);
                }
            }
            // The queue owns the sender and this ticket owns the queue: it cannot be gone.
            let _ = changed.changed().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.lock().waiting.retain(|id| *id != self.id);
        self.queue.changed.send_replace(());
    }
}

/// A place among those who run.
pub(super) struct Running {
    queue: Arc<Queue>,
    since: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.running = inner.running.saturating_sub(1);
        inner.mean = (inner.mean * 7 + self.since.elapsed()) / 8;
        drop(inner);
        self.queue.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_come_first_served_up_to_the_limits() {
        let queue = Queue::new(Gate::Open, 1, 2);
        let first = queue.enter(1).unwrap().turn(|_| {}).await.unwrap();
        let second = queue.enter(2).unwrap();
        let third = queue.enter(3).unwrap();
        assert!(matches!(queue.enter(4), Err(Error::QueueFull { limit: 2, .. })));
        assert_eq!(queue.counts(), (1, 2));

        let mut positions = Vec::new();
        let (second, third) = {
            let third = third.turn(|position| positions.push(position));
            tokio::pin!(third);
            assert!(futures::poll!(&mut third).is_pending());
            drop(first);
            let second = second.turn(|_| {}).await.unwrap();
            assert!(futures::poll!(&mut third).is_pending());
            drop(second);
            ((), third.await.unwrap())
        };
        let () = second;
        assert_eq!(positions, [1, 0]);
        assert_eq!(queue.counts(), (1, 0));
        drop(third);
        queue.idle().await;
    }

    #[tokio::test]
    async fn a_closed_gate_ends_those_who_wait() {
        let queue = Queue::new(Gate::Paused, 1, 1);
        let turn = queue.enter(1).unwrap().turn(|_| {});
        tokio::pin!(turn);
        assert!(futures::poll!(&mut turn).is_pending());
        queue.set_gate(Gate::Closed(Error::ShuttingDown));
        assert_eq!(turn.await.err(), Some(Error::ShuttingDown));
        assert!(matches!(queue.enter(2), Err(Error::ShuttingDown)));
        assert_eq!(queue.counts(), (0, 0));
    }

    #[tokio::test]
    async fn a_ticket_that_is_dropped_leaves_the_queue() {
        let queue = Queue::new(Gate::Paused, 1, 1);
        drop(queue.enter(1).unwrap().turn(|_| {}));
        assert_eq!(queue.counts(), (0, 0));
    }
}
