//! The policy's thresholds, and the four shipped profiles that give each its value.

use std::ops::RangeInclusive;

use crate::level::{Band, Bands, Level, Worse};

/// The shipped profiles: name and file. Each file holds every key.
pub const PROFILES: [(&str, &str); 4] = [
    ("glasses", include_str!("../profiles/glasses.toml")),
    ("headset", include_str!("../profiles/headset.toml")),
    ("handheld", include_str!("../profiles/handheld.toml")),
    ("plugged", include_str!("../profiles/plugged.toml")),
];

/// Everything that the policy goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How long a better state lasts before the size goes up, and how long after a change the size
    /// does not turn round without need; seconds.
    pub dwell_s: f64,
    /// A size costs at most this share of the largest, in percent of its parameters, at levels full,
    /// eased and saving. The smallest size is always allowed.
    pub cost_percent: [f64; 3],
    /// Whether background requests run at level saving.
    pub saving_background: bool,
    /// The level while power-profiles-daemon says power-saver.
    pub power_saver: Level,
    /// Charge in percent, while no mains are connected.
    pub battery: Bands,
    /// The hottest sensor, in degrees Celsius.
    pub temperature: Bands,
    /// `some` of memory's pressure stall information over ten seconds, in percent.
    pub pressure: Bands,
    /// Available memory, in MiB.
    pub available: Bands,
    /// Memory that a size leaves to others, in MiB.
    pub reserve_mib: f64,
    /// A larger size needs this much more, so that it does not have to go at once; MiB.
    pub reserve_leave_mib: f64,
    /// A model that nobody asked for so long leaves memory; seconds, 0: never.
    pub idle_unload_s: f64,
}

/// Where settings are read from. `key` is one of [`Settings::read`]'s, such as
/// `governor.dwell_s`.
pub trait Source {
    /// A number within a range.
    fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> f64;
    /// A truth value.
    fn truth(&mut self, key: &'static str) -> bool;
    /// The name of a level.
    fn level(&mut self, key: &'static str) -> Level;
}

impl Settings {
    /// Takes every key.
    pub fn read(from: &mut impl Source) -> Self {
        let mut band = |enter, leave, range: RangeInclusive<f64>| {
            Some(Band {
                enter: from.number(enter, range.clone()),
                leave: from.number(leave, range),
            })
        };
        let percent = 0.0..=100.0;
        let celsius = -50.0..=200.0;
        let mib = 0.0..=1e7;
        let battery = [
            band("governor.battery_eased_enter", "governor.battery_eased_leave", percent.clone()),
            band("governor.battery_saving_enter", "governor.battery_saving_leave", percent.clone()),
            band(
                "governor.battery_critical_enter",
                "governor.battery_critical_leave",
                percent.clone(),
            ),
        ];
        let temperature = [
            band("governor.temp_eased_enter", "governor.temp_eased_leave", celsius.clone()),
            band("governor.temp_saving_enter", "governor.temp_saving_leave", celsius.clone()),
            band("governor.temp_critical_enter", "governor.temp_critical_leave", celsius),
        ];
        let pressure = [
            None,
            band(
                "governor.pressure_saving_enter",
                "governor.pressure_saving_leave",
                percent.clone(),
            ),
            band(
                "governor.pressure_critical_enter",
                "governor.pressure_critical_leave",
                percent.clone(),
            ),
        ];
        let available = [
            None,
            None,
            band(
                "governor.available_critical_enter",
                "governor.available_critical_leave",
                mib.clone(),
            ),
        ];
        Self {
            dwell_s: from.number("governor.dwell_s", 0.0..=86_400.0),
            cost_percent: [
                from.number("governor.full_cost_percent", percent.clone()),
                from.number("governor.eased_cost_percent", percent.clone()),
                from.number("governor.saving_cost_percent", percent),
            ],
            saving_background: from.truth("governor.saving_background"),
            power_saver: from.level("governor.power_saver"),
            battery: Bands { worse: Worse::Falling, bands: battery },
            temperature: Bands { worse: Worse::Rising, bands: temperature },
            pressure: Bands { worse: Worse::Rising, bands: pressure },
            available: Bands { worse: Worse::Falling, bands: available },
            reserve_mib: from.number("governor.reserve_mib", mib.clone()),
            reserve_leave_mib: from.number("governor.reserve_leave_mib", mib),
            idle_unload_s: from.number("governor.idle_unload_s", 0.0..=1e7),
        }
    }

    /// What is wrong with values that are each within their range: the key, and what.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        for (name, bands) in [
            ("battery", &self.battery),
            ("temp", &self.temperature),
            ("pressure", &self.pressure),
            ("available", &self.available),
        ] {
            let worse = |a: f64, b: f64| match bands.worse {
                Worse::Falling => a < b,
                Worse::Rising => a > b,
            };
            let side = |bad, good| if bands.worse == Worse::Falling { bad } else { good };
            let mut milder: Option<(&str, Band)> = None;
            for (level, band) in Level::ENTERED.into_iter().zip(bands.bands) {
                let (Some(band), level) = (band, level.name()) else { continue };
                if !worse(band.enter, band.leave) {
                    let (key, than) =
                        (format!("{name}_{level}_leave"), format!("{name}_{level}_enter"));
                    let word = side("above", "below");
                    problems.push((
                        key,
                        format!("{} is not {word} {than}, {}", band.leave, band.enter),
                    ));
                }
                if let Some((before, milder)) = milder {
                    for (part, value, than) in
                        [("enter", band.enter, milder.enter), ("leave", band.leave, milder.leave)]
                    {
                        if !worse(value, than) {
                            let word = side("below", "above");
                            let key = format!("{name}_{level}_{part}");
                            let than = format!("{name}_{before}_{part}, {than}");
                            problems.push((key, format!("{value} is not {word} {than}")));
                        }
                    }
                }
                milder = Some((level, band));
            }
        }
        let [full, eased, saving] = self.cost_percent;
        for (key, value, than, limit) in [
            ("eased_cost_percent", eased, "full_cost_percent", full),
            ("saving_cost_percent", saving, "eased_cost_percent", eased),
        ] {
            if value > limit {
                problems.push((key.into(), format!("{value} is above {than}, {limit}")));
            }
        }
        if self.reserve_leave_mib < self.reserve_mib {
            let problem =
                format!("{} is below reserve_mib, {}", self.reserve_leave_mib, self.reserve_mib);
            problems.push(("reserve_leave_mib".into(), problem));
        }
        problems
    }
}
