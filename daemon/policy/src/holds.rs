//! What clients and a person ask of the size.
//!
//! Where wishes conflict, the strongest of these wins: memory and danger to the device (level critical),
//! a person's pin, the smallest maximum, the largest minimum, the levels.

use crate::ladder::Ladder;

/// A client's wish, for the life of its connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Unique while the daemon runs.
    pub id: u64,
    /// Who, for people.
    pub client: String,
    /// No smaller than this size.
    pub min_size: Option<String>,
    /// No larger than this size.
    pub max_size: Option<String>,
    /// Background requests do not run.
    pub no_background: bool,
    /// Why, for people.
    pub reason: String,
}

/// Every wish at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// The clients' in the order of their ids.
    pub holds: Vec<Hold>,
    /// The size that a person fixed.
    pub pin: Option<String>,
}

impl Holds {
    /// The place of the smallest maximum, with its hold. A size that the model does not have asks for
    /// nothing.
    #[must_use]
    pub fn max(&self, ladder: &Ladder) -> Option<(usize, &Hold)> {
        let place = |hold: &Hold| ladder.index(hold.max_size.as_deref()?);
        let places = self.holds.iter().filter_map(|hold| Some((place(hold)?, hold)));
        places.max_by_key(|(index, _)| *index)
    }

    /// The place of the largest minimum, with its hold.
    #[must_use]
    pub fn min(&self, ladder: &Ladder) -> Option<(usize, &Hold)> {
        let place = |hold: &Hold| ladder.index(hold.min_size.as_deref()?);
        let places = self.holds.iter().filter_map(|hold| Some((place(hold)?, hold)));
        places.min_by_key(|(index, _)| *index)
    }

    /// The first hold against background work.
    #[must_use]
    pub fn no_background(&self) -> Option<&Hold> {
        self.holds.iter().find(|hold| hold.no_background)
    }

    /// The pin's place, where the model has that size.
    #[must_use]
    pub fn pin(&self, ladder: &Ladder) -> Option<usize> {
        ladder.index(self.pin.as_deref()?)
    }
}
