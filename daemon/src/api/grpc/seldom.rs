//! Lines of the log that others could make too many of.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What happens more often is counted, and told with the next line.
const BETWEEN: Duration = Duration::from_secs(10);

/// When a line was written, and what has happened since.
#[derive(Default)]
pub(super) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// It happened. Gives how many times since the last line, if one is due.
    pub(super) fn times(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, times) = &mut *state;
        *times += 1;
        if told.is_some_and(|told| told.elapsed() < BETWEEN) {
            return None;
        }
        *told = Some(Instant::now());
        Some(std::mem::take(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_one_line() {
        let seldom = Seldom::default();
        assert_eq!(seldom.times(), Some(1));
        assert!((0..1000).all(|_| seldom.times().is_none()));
    }
}
