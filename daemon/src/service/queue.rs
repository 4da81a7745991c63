//! Who may generate, and who waits: the most urgent first, up to the limits; among those alike, the users
//! take turns, and each user's own are first come, first served. A user has no more places than its quota.
//! Waiting makes more urgent, so that background work ends some day; it begins anew when another request of
//! the user at the same priority runs, so that many of one user do not age past another's. An interactive request may take one
//! place more than there are while a background one runs, on an engine that lets that one stand still. While
//! an app is in the foreground, only its interactive requests are served as that ([`served_as`]).
//!
//! A gate stands before the queue: open while a model answers, paused while one is being loaded, and
//! closed, with the reason, while there is none. The service owns the queue and moves the gate; each
//! request owns its [`Ticket`], then its [`Running`], whose drops give the place back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::foreground::{App, served_as};
use crate::types::{Client, Error, Priority};

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
    /// The app in the foreground.
    foreground: Option<App>,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    running: u32,
    /// Of those, at priority background.
    running_background: u32,
    /// The users that have requests here.
    users: HashMap<Arc<str>, User>,
    /// Requests that ran so far.
    turns: u64,
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
    /// Requests of one user that run at once.
    pub(super) user_parallel: u32,
    /// Requests of one user that wait.
    pub(super) user_places: u32,
}

/// What was given to a user.
#[derive(Clone, Copy, Default)]
struct User {
    /// Requests that run, and those of them at priority background.
    running: u32,
    running_background: u32,
    /// When one began last, at each priority.
    served: [Option<Instant>; 3],
    /// Which of all requests that was; 0 for none.
    turn: u64,
}

struct Waiting {
    id: u64,
    user: Arc<str>,
    client: Client,
    asked: Priority,
    /// What it is served as: `asked`, unless another app is in the foreground.
    priority: Priority,
    since: Instant,
    /// Whether it takes a place that is free; not while its need is looked at.
    ready: bool,
    /// What it waited for has failed.
    refused: Option<Error>,
}

impl Waiting {
    /// The lower, the sooner. `served` is when its user was last given a place at its priority.
    fn rank(&self, served: Option<Instant>, now: Instant) -> u64 {
        let since = served.map_or(self.since, |served| served.max(self.since));
        let aged = now.saturating_duration_since(since).as_secs() / AGING.as_secs();
        (self.priority as u64).saturating_sub(aged)
    }
}

impl Inner {
    fn user(&self, user: &str) -> User {
        self.users.get(user).copied().unwrap_or_default()
    }

    fn rank(&self, waiting: &Waiting, now: Instant) -> u64 {
        let served = self.user(&waiting.user).served;
        waiting.rank(served.get(waiting.priority as usize).copied().flatten(), now)
    }

    /// How many are ahead of a waiting request, if each user takes one turn after the other.
    fn position(&self, id: u64) -> usize {
        let now = Instant::now();
        let Some(me) = self.waiting.iter().find(|waiting| waiting.id == id) else { return 0 };
        let own_rank = self.rank(me, now);
        let mut ahead = 0;
        // Of each user, how many are as urgent, and whose turn it is.
        let mut alike: HashMap<&str, (usize, (u64, u64))> = HashMap::new();
        let mut own_round = 0;
        for other in &self.waiting {
            let rank = self.rank(other, now);
            ahead += usize::from(rank < own_rank);
            if rank == own_rank {
                let first = (self.user(&other.user).turn, other.id);
                alike.entry(&other.user).or_insert((0, first)).0 += 1;
                own_round += usize::from(other.user == me.user && other.id < id);
            }
        }
        let own_turn = alike.remove(&*me.user).map(|(_, turn)| turn);
        let of_user = |(count, turn): (usize, (u64, u64))| {
            count.min(own_round + usize::from(Some(turn) < own_turn))
        };
        ahead + own_round + alike.into_values().map(of_user).sum::<usize>()
    }

    /// Whether it is a waiting request's turn: it has room, and nobody ahead of it has. Who is ahead and
    /// has no room waits for a place that this one may not need.
    fn is_turn_of(&self, id: u64) -> bool {
        let now = Instant::now();
        let admissible = self.waiting.iter().filter(|w| w.ready && self.has_room_for(w));
        let first = admissible.min_by_key(|waiting| {
            (self.rank(waiting, now), self.user(&waiting.user).turn, waiting.id)
        });
        first.is_some_and(|first| first.id == id)
    }

    fn has_room_for(&self, waiting: &Waiting) -> bool {
        let overtakes = self.limits.overtaking && waiting.priority == Priority::Interactive;
        let room = |running: u32, background: u32, limit: u32| {
            running < limit.saturating_add(u32::from(overtakes && background > 0))
        };
        let user = self.user(&waiting.user);
        room(self.running, self.running_background, self.limits.parallel)
            && room(user.running, user.running_background, self.limits.user_parallel)
    }

    /// Gives a waiting request its place.
    fn serve(&mut self, user: &Arc<str>, priority: Priority) {
        let background = u32::from(priority == Priority::Background);
        self.running += 1;
        self.running_background += background;
        self.turns += 1;
        let user = self.users.entry(Arc::clone(user)).or_default();
        user.running += 1;
        user.running_background += background;
        user.turn = self.turns;
        if let Some(served) = user.served.get_mut(priority as usize) {
            *served = Some(Instant::now());
        }
    }

    /// Forgets a user that has nothing here.
    fn tidy(&mut self, user: &str) {
        let waits = || self.waiting.iter().any(|waiting| *waiting.user == *user);
        if self.user(user).running == 0 && !waits() {
            self.users.remove(user);
        }
    }

    /// When a place is likely to be free, of so many.
    fn retry_after_ms(&self, places: u32) -> u64 {
        let mean = self.mean / places.max(1);
        u64::try_from(mean.as_millis()).unwrap_or(u64::MAX).clamp(100, 60_000)
    }
}

/// How many of the places that wait are open to a priority: some are left to what is more urgent.
fn open_to(priority: Priority, places: u32) -> u32 {
    match priority {
        Priority::Interactive => places,
        Priority::Normal => places - places / 8,
        Priority::Background => places - places / 4,
    }
}

impl Queue {
    pub(super) fn new(gate: Gate, limits: Limits) -> Arc<Self> {
        let inner = Inner {
            gate,
            limits,
            foreground: None,
            waiting: Vec::new(),
            running: 0,
            running_background: 0,
            users: HashMap::new(),
            turns: 0,
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

    /// Serves this app first from now on; those who wait are ranked anew.
    pub(super) fn set_foreground(&self, app: Option<App>) {
        let mut inner = self.lock();
        for waiting in &mut inner.waiting {
            waiting.priority = served_as(app.as_ref(), &waiting.client, waiting.asked);
        }
        inner.foreground = app;
        drop(inner);
        self.changed.send_replace(());
    }

    /// Requests that run, and that wait.
    pub(super) fn counts(&self) -> (u32, u32) {
        let inner = self.lock();
        (inner.running, u32::try_from(inner.waiting.len()).unwrap_or(u32::MAX))
    }

    /// Takes the last place in the queue, or says why there is none.
    pub(super) fn enter(
        self: &Arc<Self>,
        id: u64,
        client: impl Into<Client>,
        asked: Priority,
    ) -> Result<Ticket, Error> {
        let client: Client = client.into();
        let user = client.account();
        let mut inner = self.lock();
        if let Gate::Closed(error) = &inner.gate {
            return Err(error.clone());
        }
        let Limits { parallel, places, user_parallel, user_places, .. } = inner.limits;
        let (places, user_places) = (open_to(asked, places), open_to(asked, user_places));
        let own = inner.waiting.iter().filter(|waiting| *waiting.user == *user).count();
        let free = user_parallel.saturating_sub(inner.user(&user).running);
        if own >= free.saturating_add(user_places) as usize {
            let what = format!("{own} requests of one user wait: let one end first");
            return Err(Error::OverQuota {
                what,
                limit: user_places.into(),
                retry_after_ms: inner.retry_after_ms(parallel.min(user_parallel)),
            });
        }
        let free = parallel.saturating_sub(inner.running) + places;
        if inner.waiting.len() >= free as usize {
            let retry_after_ms = inner.retry_after_ms(parallel);
            return Err(Error::QueueFull { limit: places, retry_after_ms });
        }
        let user: Arc<str> = user.into();
        let since = Instant::now();
        let priority = served_as(inner.foreground.as_ref(), &client, asked);
        inner.waiting.push(Waiting {
            id,
            user: Arc::clone(&user),
            client,
            asked,
            priority,
            since,
            ready: false,
            refused: None,
        });
        drop(inner);
        self.changed.send_replace(());
        Ok(Ticket { queue: Arc::clone(self), id, user, asked })
    }

    /// Ends those who wait now at this priority or a lower one, whatever becomes of the gate before they
    /// notice.
    pub(super) fn refuse_waiting(&self, highest: Priority, error: &Error) {
        for waiting in self.lock().waiting.iter_mut().filter(|w| w.priority >= highest) {
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
    user: Arc<str>,
    asked: Priority,
}

impl Ticket {
    /// Waits for the turn, and tells each new position. Ends with the gate's error when it closes.
    pub(super) async fn turn(self, mut moved: impl FnMut(u32)) -> Result<Running, Error> {
        let mut changed = self.queue.changed.subscribe();
        let mut told = None;
        loop {
            {
                let mut inner = self.queue.lock();
                let own = inner.waiting.iter_mut().find(|waiting| waiting.id == self.id);
                let mut priority = self.asked;
                if let Some(own) = own {
                    own.ready = true;
                    if let Some(error) = own.refused.clone() {
                        return Err(error);
                    }
                    priority = own.priority;
                }
                let position = inner.position(self.id);
                match &inner.gate {
                    Gate::Closed(error) => return Err(error.clone()),
                    Gate::Open if inner.is_turn_of(self.id) => {
                        inner.serve(&self.user, priority);
                        let user = Arc::clone(&self.user);
                        let queue = Arc::clone(&self.queue);
                        drop(inner);
                        // Dropping `self` leaves the waiting ones, and tells them.
                        return Ok(Running { queue, user, priority, since: Instant::now() });
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
        let mut inner = self.queue.lock();
        inner.waiting.retain(|waiting| waiting.id != self.id);
        inner.tidy(&self.user);
        drop(inner);
        self.queue.changed.send_replace(());
    }
}

/// A place among those who run.
pub(super) struct Running {
    queue: Arc<Queue>,
    user: Arc<str>,
    priority: Priority,
    since: Instant,
}

impl Running {
    /// What it is served as to its end, whoever comes to the foreground.
    pub(super) fn priority(&self) -> Priority {
        self.priority
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut inner = self.queue.lock();
        inner.running = inner.running.saturating_sub(1);
        let background = u32::from(self.priority == Priority::Background);
        inner.running_background = inner.running_background.saturating_sub(background);
        if let Some(user) = inner.users.get_mut(&self.user) {
            user.running = user.running.saturating_sub(1);
            user.running_background = user.running_background.saturating_sub(background);
        }
        inner.tidy(&self.user);
        inner.mean = (inner.mean * 7 + self.since.elapsed()) / 8;
        drop(inner);
        self.queue.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests;
