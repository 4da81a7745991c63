//! Signs of life of what computes, from which the watchdog of the service manager is fed.
//!
//! The engine thread gives one with each turn and, inside a step, with each layer; a library that
//! computes on threads of its own, with each token. Whoever has no work owes none. So a hang is
//! noticed, and a long prompt is none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One that works, or waits for work. Clones are the same one.
#[derive(Clone, Default)]
pub struct Work(Arc<Mutex<Option<Owed>>>);

#[derive(Clone, Copy)]
struct Owed {
    since: Instant,
    patience: Duration,
}

impl Work {
    /// Work begins whose first sign may take so much longer than usual.
    pub(super) fn begin(&self, patience: Duration) {
        self.set(Some(Owed { since: Instant::now(), patience }));
    }

    /// Work is about to be handed over: one that does not take it hangs, too.
    pub(super) fn expect(&self) {
        let mut owed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owed.get_or_insert(Owed { since: Instant::now(), patience: Duration::ZERO });
    }

    /// It goes on. Nothing, while no work was begun.
    pub(super) fn sign(&self) {
        let mut owed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owed) = &mut *owed {
            *owed = Owed { since: Instant::now(), patience: Duration::ZERO };
        }
    }

    /// It is done.
    pub(super) fn end(&self) {
        self.set(None);
    }

    /// It is done when this is dropped, however that comes: a task may end half-way, with its engine.
    #[cfg_attr(not(feature = "mistralrs"), allow(dead_code, reason = "no engine has one"))]
    pub(super) fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    fn set(&self, owed: Option<Owed>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = owed;
    }

    fn silence(&self) -> Duration {
        let owed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owed.map_or(Duration::ZERO, |owed| owed.since.elapsed().saturating_sub(owed.patience))
    }
}

/// See [`Work::guard`].
#[cfg_attr(not(feature = "mistralrs"), allow(dead_code, reason = "no engine has one"))]
pub struct Guard(Work);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// All that compute.
#[derive(Clone, Default)]
pub struct Pulse {
    pub(super) thread: Work,
    /// A library with threads of its own.
    #[cfg_attr(not(feature = "mistralrs"), allow(dead_code, reason = "no engine has one"))]
    pub(super) library: Work,
}

impl Pulse {
    /// How long a sign of life has been missing; nothing while all is well.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.thread.silence().max(self.library.silence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_while_work_is_under_way_and_beyond_what_was_asked_for() {
        let pulse = Pulse::default();
        let wait = || std::thread::sleep(Duration::from_millis(20));
        pulse.thread.sign();
        wait();
        assert_eq!(pulse.silence(), Duration::ZERO, "who waits owes nothing");
        pulse.thread.begin(Duration::ZERO);
        pulse.library.begin(Duration::from_secs(3600));
        wait();
        assert!(pulse.silence() >= Duration::from_millis(20));
        pulse.thread.end();
        assert_eq!(pulse.silence(), Duration::ZERO, "the library may take an hour");
        pulse.library.sign();
        wait();
        assert!(pulse.silence() >= Duration::from_millis(20), "its hour ended with its first sign");
        drop(pulse.library.guard());
        assert_eq!(pulse.silence(), Duration::ZERO);
        pulse.thread.expect();
        wait();
        pulse.thread.expect();
        assert!(pulse.silence() >= Duration::from_millis(20), "the first is still not taken");
    }
}
