//! How short something is, with separate values for entering a level and for leaving it, so that a
//! reading that wavers around one value changes nothing.

/// How much the device has to save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is short.
    #[default]
    Full,
    /// A little less is spent.
    Eased,
    /// The least that answers.
    Saving,
    /// The device is in danger.
    Critical,
}

impl Level {
    /// Every one, the mildest first.
    pub const ALL: [Self; 4] = [Self::Full, Self::Eased, Self::Saving, Self::Critical];
    /// The levels that can be entered, the mildest first.
    pub const ENTERED: [Self; 3] = [Self::Eased, Self::Saving, Self::Critical];

    /// The name in the configuration and in both APIs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Eased => "eased",
            Self::Saving => "saving",
            Self::Critical => "critical",
        }
    }

    /// The level of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// The values at which a level is entered and left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// At or beyond this it is entered.
    pub enter: f64,
    /// Only beyond this, on the other side, it is left.
    pub leave: f64,
}

/// Which way a reading gets worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worse {
    /// Battery, memory.
    Falling,
    /// Temperature, pressure.
    Rising,
}

/// The bands of one reading, in the order of [`Level::ENTERED`]; None: the level is not entered by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bands {
    /// Which way it gets worse.
    pub worse: Worse,
    /// One for each level.
    pub bands: [Option<Band>; 3],
}

impl Bands {
    /// The level of a reading, after it was at `before`.
    #[must_use]
    pub fn level(&self, value: f64, before: Level) -> Level {
        let beyond = |limit: f64| match self.worse {
            Worse::Falling => value <= limit,
            Worse::Rising => value >= limit,
        };
        // Left means on the good side of the value, not at it.
        let holds = |level: Level, band: Band| {
            beyond(band.enter) || (before >= level && beyond(band.leave))
        };
        let entered = Level::ENTERED.into_iter().zip(self.bands);
        entered
            .filter(|(level, band)| band.is_some_and(|band| holds(*level, band)))
            .map(|(level, _)| level)
            .max()
            .unwrap_or_default()
    }

    /// The band of a level.
    #[must_use]
    pub fn band(&self, level: Level) -> Option<Band> {
        let index = Level::ENTERED.iter().position(|entered| *entered == level)?;
        *self.bands.get(index)?
    }

    /// The level after this one, with the value at which it is entered.
    #[must_use]
    pub fn next(&self, level: Level) -> Option<(Level, f64)> {
        let entered = Level::ENTERED.into_iter().zip(self.bands);
        entered.filter(|(next, _)| *next > level).find_map(|(next, b)| Some((next, b?.enter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_left_later_than_it_is_entered() {
        let band = |enter, leave| Some(Band { enter, leave });
        let battery =
            Bands { worse: Worse::Falling, bands: [band(50.0, 55.0), band(20.0, 25.0), None] };
        let mut level = Level::Full;
        let mut at = |percent| {
            level = battery.level(percent, level);
            level
        };
        assert_eq!(at(51.0), Level::Full);
        assert_eq!(at(50.0), Level::Eased);
        assert_eq!(at(55.0), Level::Eased);
        assert_eq!(at(15.0), Level::Saving);
        assert_eq!(at(25.0), Level::Saving);
        assert_eq!(at(26.0), Level::Eased);
        assert_eq!(at(55.5), Level::Full);
        assert_eq!(at(0.0), Level::Saving);
        assert_eq!(at(90.0), Level::Full);
        let heat = Bands { worse: Worse::Rising, bands: [None, None, band(80.0, 70.0)] };
        assert_eq!(heat.level(79.0, Level::Full), Level::Full);
        assert_eq!(heat.level(80.0, Level::Full), Level::Critical);
        assert_eq!(heat.level(70.0, Level::Critical), Level::Critical);
        assert_eq!(heat.level(69.0, Level::Critical), Level::Full);
    }
}
