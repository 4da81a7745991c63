//! Who may generate, and who waits: the most urgent first, then first come, first served, up to the limits.
//! Waiting makes more urgent, so that background work ends some day. An interactive request may take one
//! place more than there are while a background one runs, on an engine that lets that one stand still.
//!
//! A gate stands before the queue: open while a model answers, paused while one is being loaded, and
//! closed, with the reason, while there is none. The service owns the queue and moves the gate; each
//! request owns its [`Ticket`], then its [`Running`], whose drops give the place back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::types::{Error, Priority};

/// Waiting for this long makes a request one priority more urgent.
const AGING: Duration = Duration::from_secs(30);

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
    limits: Limits,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    running: u32,
    /// Of those, at priority background.
    running_background: u32,
    /// A moving average of how long a request runs, for the time to retry.
    mean: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Requests that run at once.
    pub(super) parallel: u32,
    /// Requests that wait.
    pub(super) places: u32,
    /// Whether the engine lets background requests stand still.
    pub(super) overtaking: bool,
}

struct Waiting {
    id: u64,
    priority: Priority,
    since: Instant,
    /// What it waited for has failed.
    refused: Option<Error>,
}

impl Waiting {
    /// The lower, the sooner.
    fn rank(&self, now: Instant) -> u64 {
        let aged = now.saturating_duration_since(self.since).as_secs() / AGING.as_secs();
        (self.priority as u64).saturating_sub(aged)
    }
}

impl Inner {
    /// How many are ahead of a waiting request.
    fn position(&self, id: u64) -> usize {
        let now = Instant::now();
        let ahead = |me: &Waiting| {
            let before = |other: &&Waiting| (other.rank(now), other.id) < (me.rank(now), me.id);
            self.waiting.iter().filter(before).count()
        };
        self.waiting.iter().find(|waiting| waiting.id == id).map_or(0, ahead)
    }

    /// Whether it is a waiting request's turn: it has room, and nobody ahead of it has. Who is ahead and
    /// has no room waits for a place that this one may not need.
    fn is_turn_of(&self, id: u64) -> bool {
        let now = Instant::now();
        let admissible = self.waiting.iter().filter(|waiting| self.has_room_for(waiting.priority));
        let first = admissible.min_by_key(|waiting| (waiting.rank(now), waiting.id));
        first.is_some_and(|first| first.id == id)
    }

    fn has_room_for(&self, priority: Priority) -> bool {
        let extra = self.limits.overtaking
            && priority == Priority::Interactive
            && self.running_background > 0;
        self.running < self.limits.parallel + u32::from(extra)
    }
}

impl Queue {
    pub(super) fn new(gate: Gate, limits: Limits) -> Arc<Self> {
        let inner = Inner {
            gate,
            limits,
            waiting: Vec::new(),
            running: 0,
            running_background: 0,
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

    pub(super) fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
        self.changed.send_replace(());
    }

    /// Requests that run, and that wait.
    pub(super) fn counts(&self) -> (u32, u32) {
        let inner = self.lock();
        (inner.running, u32::try_from(inner.waiting.len()).unwrap_or(u32::MAX))
    }

    /// Takes the last place in the queue, or says why there is none.
    pub(super) fn enter(self: &Arc<Self>, id: u64, priority: Priority) -> Result<Ticket, Error> {
        let mut inner = self.lock();
        if let Gate::Closed(error) = &inner.gate {
            return Err(error.clone());
        }
        let Limits { parallel, places, .. } = inner.limits;
        let free = parallel.saturating_sub(inner.running) + places;
        if inner.waiting.len() >= free as usize {
            let mean = inner.mean / parallel.max(1);
            let retry_after_ms = u64::try_from(mean.as_millis()).unwrap_or(u64::MAX);
            return Err(Error::QueueFull {
                limit: places,
                retry_after_ms: retry_after_ms.clamp(100, 60_000),
            });
        }
        inner.waiting.push(Waiting { id, priority, since: Instant::now(), refused: None });
        drop(inner);
        self.changed.send_replace(());
        Ok(Ticket { queue: Arc::clone(self), id, priority })
    }

    /// Ends those who wait now, whatever becomes of the gate before they notice.
    pub(super) fn refuse_waiting(&self, error: &Error) {
        for waiting in &mut self.lock().waiting {
            waiting.refused = Some(error.clone());
        }
        self.changed.send_replace(());
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
    priority: Priority,
}

impl Ticket {
    /// Waits for the turn, and tells each new position. Ends with the gate's error when it closes.
    pub(super) async fn turn(self, mut moved: impl FnMut(u32)) -> Result<Running, Error> {
        let mut changed = self.queue.changed.subscribe();
        let mut told = None;
        loop {
            {
                let mut inner = self.queue.lock();
                let own = inner.waiting.iter().find(|waiting| waiting.id == self.id);
                if let Some(error) = own.and_then(|own| own.refused.clone()) {
                    return Err(error);
                }
                let position = inner.position(self.id);
                match &inner.gate {
                    Gate::Closed(error) => return Err(error.clone()),
                    Gate::Open if inner.is_turn_of(self.id) => {
                        let background = self.priority == Priority::Background;
                        inner.running += 1;
                        inner.running_background += u32::from(background);
                        let queue = Arc::clone(&self.queue);
                        drop(inner);
                        // Dropping `self` leaves the waiting ones, and tells them.
                        return Ok(Running { queue, background, since: Instant::now() });
                    }
                    Gate::Open | Gate::Paused => {}
                }
                drop(inner);
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                if told.replace(position) != Some(position) {
                    moved(position);
                }
            }
            // The queue owns the sender and this ticket owns the queue: it cannot be gone. The order
            // changes by waiting, too.
            let _ = tokio::time::timeout(AGING, changed.changed()).await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.lock().waiting.retain(|waiting| waiting.id != self.id);
        self.queue.changed.send_replace(());
    }
}

/// A place among those who run.
pub(super) struct Running {
    queue: Arc<Queue>,
    background: bool,
    since: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.running = inner.running.saturating_sub(1);
        let background = u32::from(self.background);
        inner.running_background = inner.running_background.saturating_sub(background);
        inner.mean = (inner.mean * 7 + self.since.elapsed()) / 8;
        drop(inner);
        self.queue.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(gate: Gate, parallel: u32, places: u32) -> Arc<Queue> {
        Queue::new(gate, Limits { parallel, places, overtaking: true })
    }

    #[tokio::test]
    async fn first_come_first_served_up_to_the_limits() {
        let queue = queue(Gate::Open, 1, 2);
        let first = queue.enter(1, Priority::Normal).unwrap().turn(|_| {}).await.unwrap();
        let second = queue.enter(2, Priority::Normal).unwrap();
        let third = queue.enter(3, Priority::Normal).unwrap();
        assert!(matches!(queue.enter(4, Priority::Normal), Err(Error::QueueFull { limit: 2, .. })));
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
        let queue = queue(Gate::Paused, 1, 1);
        let turn = queue.enter(1, Priority::Normal).unwrap().turn(|_| {});
        tokio::pin!(turn);
        assert!(futures::poll!(&mut turn).is_pending());
        queue.set_gate(Gate::Closed(Error::ShuttingDown));
        assert_eq!(turn.await.err(), Some(Error::ShuttingDown));
        assert!(matches!(queue.enter(2, Priority::Normal), Err(Error::ShuttingDown)));
        assert_eq!(queue.counts(), (0, 0));
    }

    #[tokio::test]
    async fn those_who_waited_for_what_failed_are_told() {
        let queue = queue(Gate::Paused, 1, 2);
        let waiting = queue.enter(1, Priority::Normal).unwrap().turn(|_| {});
        queue.refuse_waiting(&Error::ShuttingDown);
        let later = queue.enter(2, Priority::Normal).unwrap().turn(|_| {});
        queue.set_gate(Gate::Open);
        assert_eq!(waiting.await.err(), Some(Error::ShuttingDown));
        assert!(later.await.is_ok());
    }

    #[tokio::test]
    async fn a_ticket_that_is_dropped_leaves_the_queue() {
        let queue = queue(Gate::Paused, 1, 1);
        drop(queue.enter(1, Priority::Normal).unwrap().turn(|_| {}));
        assert_eq!(queue.counts(), (0, 0));
    }

    #[tokio::test]
    async fn the_most_urgent_goes_first() {
        let queue = queue(Gate::Paused, 1, 4);
        let enter = |id, priority| {
            let ticket = queue.enter(id, priority).unwrap();
            async move { ticket.turn(|_| {}).await.unwrap() }
        };
        let background = enter(1, Priority::Background);
        let normal = enter(2, Priority::Normal);
        let interactive = enter(3, Priority::Interactive);
        tokio::pin!(background, normal, interactive);
        assert!(futures::poll!(&mut background).is_pending());
        assert!(futures::poll!(&mut normal).is_pending());
        queue.set_gate(Gate::Open);
        assert!(futures::poll!(&mut background).is_pending());
        assert!(futures::poll!(&mut normal).is_pending());
        drop(interactive.await);
        assert!(futures::poll!(&mut background).is_pending());
        drop(normal.await);
        drop(background.await);
    }

    #[tokio::test]
    async fn an_interactive_request_needs_no_place_of_a_background_one() {
        for overtaking in [true, false] {
            let queue = Queue::new(Gate::Open, Limits { parallel: 1, places: 4, overtaking });
            let running = queue.enter(1, Priority::Background).unwrap().turn(|_| {}).await.unwrap();
            let normal = queue.enter(2, Priority::Normal).unwrap().turn(|_| {});
            let first = queue.enter(3, Priority::Interactive).unwrap().turn(|_| {});
            let second = queue.enter(4, Priority::Interactive).unwrap().turn(|_| {});
            tokio::pin!(normal, first, second);
            assert!(futures::poll!(&mut normal).is_pending());
            let first = futures::poll!(&mut first);
            assert_eq!(first.is_ready(), overtaking);
            assert!(futures::poll!(&mut second).is_pending(), "one place, not more");
            drop(running);
        }
    }

    #[tokio::test]
    async fn who_has_no_room_holds_up_nobody_who_has() {
        let queue = queue(Gate::Open, 1, 4);
        let running = queue.enter(1, Priority::Background).unwrap().turn(|_| {}).await.unwrap();
        let aged = queue.enter(2, Priority::Normal).unwrap();
        let hour = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        queue.lock().waiting[0].since = hour;
        let aged = aged.turn(|_| {});
        tokio::pin!(aged);
        assert!(futures::poll!(&mut aged).is_pending());
        let interactive = queue.enter(3, Priority::Interactive).unwrap().turn(|_| {});
        drop(interactive.await.unwrap());
        assert!(futures::poll!(&mut aged).is_pending());
        drop(running);
        drop(aged.await.unwrap());
    }

    #[test]
    fn waiting_makes_more_urgent() {
        let since = Instant::now();
        let rank = |priority, seconds| {
            Waiting { id: 1, priority, since, refused: None }
                .rank(since + Duration::from_secs(seconds))
        };
        assert!(rank(Priority::Normal, 0) < rank(Priority::Background, 29));
        assert_eq!(rank(Priority::Normal, 0), rank(Priority::Background, 31));
        assert_eq!(rank(Priority::Interactive, 0), rank(Priority::Background, 3600));
    }
}
