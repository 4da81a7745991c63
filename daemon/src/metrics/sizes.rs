//! How long each size was in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;

use super::Seconds;

/// Sizes that are told apart; models may come and go, and each may bring names of its own.
const NAMES: usize = 64;
/// The label of all further ones.
const OTHER: &str = "other";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Size {
    size: String,
}

#[derive(Debug, Default)]
pub(super) struct Sizes {
    seconds: Family<Size, Seconds>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    names: Vec<String>,
    /// The size in memory, and until when its time was counted.
    current: Option<(String, Instant)>,
}

impl Sizes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn family(&self) -> Family<Size, Seconds> {
        self.seconds.clone()
    }

    /// The name as a label.
    pub(super) fn label(&self, name: &str) -> String {
        self.lock().label(name)
    }

    /// This size is in memory from now on.
    pub(super) fn in_use(&self, size: Option<&str>) {
        let mut inner = self.lock();
        self.count(&mut inner);
        let label = size.map(|size| inner.label(size));
        inner.current = label.map(|label| (label, Instant::now()));
    }

    /// Counts the time so far.
    pub(super) fn settle(&self) {
        self.count(&mut self.lock());
    }

    fn count(&self, inner: &mut Inner) {
        if let Some((size, since)) = &mut inner.current {
            let now = Instant::now();
            let seconds = now.saturating_duration_since(*since).as_secs_f64();
            self.seconds.get_or_create(&Size { size: size.clone() }).inc_by(seconds);
            *since = now;
        }
    }
}

impl Inner {
    fn label(&mut self, name: &str) -> String {
        if !self.names.iter().any(|known| known == name) {
            if self.names.len() >= NAMES {
                return OTHER.into();
            }
            self.names.push(name.to_owned());
        }
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let sizes = Sizes::default();
        let labels: Vec<_> = (0..1000).map(|index| sizes.label(&format!("E{index}"))).collect();
        assert_eq!(labels[63], "E63");
        assert!(labels[64..].iter().all(|label| label == OTHER));
        assert_eq!(sizes.label("E7"), "E7");
    }

    #[test]
    fn time_is_counted_for_what_is_in_memory() {
        let sizes = Sizes::default();
        let seconds = |size: &str| {
            sizes.settle();
            sizes.seconds.get(&Size { size: size.into() }).map_or(0.0, |counter| counter.get())
        };
        assert!(seconds("E4B") <= 0.0, "nothing is in memory yet");
        sizes.in_use(Some("E4B"));
        let first = seconds("E4B");
        sizes.in_use(Some("E2B"));
        let large = seconds("E4B");
        assert!(large >= first);
        sizes.in_use(None);
        let small = seconds("E2B");
        assert!(small > 0.0);
        assert!(seconds("E4B") <= large, "nothing is in memory");
        assert!(seconds("E2B") <= small, "nothing is in memory");
    }
}
