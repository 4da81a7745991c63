//! Battery and mains, from `UPower` or from sysfs.
//!
//! The governor's task owns the sensor. [`Source::Auto`] takes `UPower`'s word while it is there, and
//! sysfs's until it is and whenever it is away.

mod power_supply;
mod uevent;
mod upower;

use futures::future::BoxFuture;
use nestd_policy::snapshot::Battery;

use super::{Reading, Sensor, Settings};
pub use power_supply::PowerSupply;
pub use upower::UPower;

/// Where the battery is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// `UPower` while it is there, else sysfs.
    #[default]
    Auto,
    /// `UPower` only.
    UPower,
    /// Sysfs only.
    Sysfs,
    /// Nowhere: as if the device had none.
    None,
}

impl Source {
    /// Its name in the settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::UPower => "upower",
            Self::Sysfs => "sysfs",
            Self::None => "none",
        }
    }

    /// The source of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Auto, Self::UPower, Self::Sysfs, Self::None];
        all.into_iter().find(|source| source.name() == name)
    }
}

/// The sensor of these settings.
#[must_use]
pub fn sensor(settings: &Settings) -> Option<Box<dyn Sensor>> {
    match (settings.battery, &settings.bus) {
        (Source::Auto, Some(bus)) => Some(Box::new(Auto {
            upower: Some(UPower::new(bus)),
            present: false,
            supply: PowerSupply::new(settings),
        })),
        (Source::Sysfs, _) | (Source::Auto, None) => Some(Box::new(PowerSupply::new(settings))),
        (Source::UPower, Some(bus)) => Some(Box::new(UPower::new(bus))),
        (Source::UPower, None) | (Source::None, _) => None,
    }
}

/// Mains and battery.
type Power = (Option<bool>, Option<Battery>);

/// Both sources.
struct Auto {
    /// None: the bus is gone.
    upower: Option<UPower>,
    /// Whether `UPower` spoke last, and is there.
    present: bool,
    supply: PowerSupply,
}

impl Sensor for Auto {
    fn name(&self) -> &'static str {
        "battery"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            loop {
                let upower = async {
                    match &mut self.upower {
                        Some(upower) => upower.power().await,
                        None => std::future::pending().await,
                    }
                };
                let word = tokio::select! {
                    word = upower => word,
                    reading = self.supply.next(), if !self.present => return reading,
                };
                match word {
                    Some(Some((on_ac, battery))) => {
                        self.present = true;
                        return Some(Reading::Power(on_ac, battery));
                    }
                    Some(None) => {}
                    None => self.upower = None,
                }
                if std::mem::take(&mut self.present) {
                    self.supply.say_again();
                }
            }
        })
    }
}

/// Without digits that only tell of noise: tenths of a percent and of a watt, minutes.
fn tidy(battery: Battery) -> Battery {
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    Battery {
        percent: tenth(battery.percent),
        power_w: battery.power_w.map(|watts| tenth(watts) + 0.0),
        time_to_empty_s: battery.time_to_empty_s.map(|seconds| seconds.div_ceil(60) * 60),
        warning: battery.warning,
    }
}

/// A charge in percent, if it can be one. Some say a little more than all.
fn percent(value: f64) -> Option<f64> {
    (0.0..=110.0).contains(&value).then(|| value.min(100.0))
}

/// A rate in watts without its sign, if it can be one.
fn watts(value: f64) -> Option<f64> {
    let value = value.abs();
    (value <= 1000.0).then_some(value)
}

/// A time until empty, if it can be one: not zero, and less than a month.
fn until_empty(seconds: f64) -> Option<u64> {
    // In range, so that nothing is cut off but the fraction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (1.0..=2_678_400.0).contains(&seconds).then_some(seconds as u64)
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::super::testing::{Bus, said, tree, until};
    use super::upower::tests::{battery, fake};
    use super::*;

    #[test]
    fn sources_have_names() {
        for source in [Source::Auto, Source::UPower, Source::Sysfs, Source::None] {
            assert_eq!(Source::parse(source.name()), Some(source));
        }
        assert_eq!(Source::parse("solar"), None);
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e300];
        for value in bad {
            assert_eq!((percent(value), watts(value), until_empty(value)), (None, None, None));
        }
        assert_eq!(percent(104.0), Some(100.0));
        assert_eq!(until_empty(0.0), None);
    }

    #[tokio::test]
    async fn sysfs_stands_in_while_upower_is_away() {
        let root = tempfile::tempdir().unwrap();
        let supply = [("type", "Battery"), ("capacity", "40"), ("status", "Discharging")];
        tree(root.path(), "class/power_supply/BAT0", &supply);
        let bus = Bus::start().await;
        let settings = Settings::below(root.path(), root.path(), Some(bus.connect().await));
        let mut sensor = sensor(&settings).unwrap();
        let sysfs = Some(battery(40.0, None, None));
        assert_eq!(said(sensor.next()).await, Some(Reading::Power(Some(false), sysfs)));
        let service = fake(&bus).await;
        let upower = Reading::Power(Some(false), Some(battery(87.5, Some(12.5), Some(3600))));
        until(&mut *sensor, upower.clone()).await;
        drop(service);
        until(&mut *sensor, Reading::Power(Some(false), sysfs)).await;
        let _service = fake(&bus).await;
        until(&mut *sensor, upower).await;
        drop(bus);
        until(&mut *sensor, Reading::Power(Some(false), sysfs)).await;
    }
}
