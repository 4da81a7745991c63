//! The hottest of the chosen temperature sensors.
//!
//! Thermal zones and hwmon chips are read here and not by sysinfo: its components have no root to be
//! given, so that neither a test nor a container could say where they are. Labels are those of
//! sysinfo and of `sensors`: a zone's type (`cpu-thermal`), a chip's name and input (`coretemp
//! Package id 0`), or either half of that.
//!
//! The governor's task owns it. It looks at every poll, and speaks when the hottest moved by half a
//! degree. Values that cannot be (below -50, above 200) are ignored.

use std::path::{Path, PathBuf};

use futures::future::BoxFuture;

use super::{Every, Reading, Settings, files};

/// A smaller move is noise, in degrees.
const NOISE: f64 = 0.5;

/// The sensor.
pub struct Sensor {
    sys: PathBuf,
    labels: Vec<String>,
    every: Every,
    /// What was said last.
    told: Option<Reading>,
}

impl Sensor {
    /// Looks below the settings' root.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            sys: settings.sys.clone(),
            labels: settings.temperature.clone(),
            every: Every::new(settings.poll),
            told: None,
        }
    }

    fn chosen(&self, labels: &[&str]) -> bool {
        self.labels.is_empty() || self.labels.iter().any(|label| labels.contains(&label.as_str()))
    }

    fn read(&self) -> Option<f64> {
        self.zones().into_iter().chain(self.chips()).reduce(f64::max)
    }

    fn zones(&self) -> Vec<f64> {
        let zones = files::entries(&self.sys.join("class/thermal")).into_iter();
        zones
            .filter(|zone| files::name(zone).starts_with("thermal_zone"))
            .filter(|zone| self.chosen(&[&files::text(&zone.join("type")).unwrap_or_default()]))
            .filter_map(|zone| celsius(&zone.join("temp")))
            .collect()
    }

    fn chips(&self) -> Vec<f64> {
        let mut found = Vec::new();
        for chip in files::entries(&self.sys.join("class/hwmon")) {
            let name = files::text(&chip.join("name")).unwrap_or_default();
            for input in files::entries(&chip) {
                let file = files::name(&input);
                let Some(stem) = file.strip_suffix("_input") else { continue };
                if !stem.starts_with("temp") {
                    continue;
                }
                let label = files::text(&chip.join(format!("{stem}_label")));
                let label = label.unwrap_or_else(|| stem.to_owned());
                if self.chosen(&[&name, &label, &format!("{name} {label}")]) {
                    found.extend(celsius(&input));
                }
            }
        }
        found
    }
}

/// A file of millidegrees.
fn celsius(path: &Path) -> Option<f64> {
    let celsius = files::number::<f64>(path)? / 1000.0;
    (-50.0..=200.0).contains(&celsius).then_some(celsius)
}

/// Whether it is worth telling.
fn moved(before: Option<f64>, now: Option<f64>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => (before - now).abs() >= NOISE,
        (before, now) => before.is_some() != now.is_some(),
    }
}

impl super::Sensor for Sensor {
    fn name(&self) -> &'static str {
        "temperature"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            loop {
                self.every.tick().await;
                let now = self.read();
                let known = match &self.told {
                    Some(Reading::Temperature(before)) => !moved(*before, now),
                    _ => false,
                };
                if !known {
                    let reading = Reading::Temperature(now);
                    self.told = Some(reading.clone());
                    return Some(reading);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{said, tree, until};
    use super::super::{Sensor as _, Settings};
    use super::*;

    fn sensor(root: &Path, labels: &[&str]) -> Sensor {
        let mut settings = Settings::below(root, root, None);
        settings.poll = Duration::ZERO;
        settings.temperature = labels.iter().map(ToString::to_string).collect();
        Sensor::new(&settings)
    }

    fn device(root: &Path) {
        let zone = [("type", "cpu-thermal\n"), ("temp", "41500\n")];
        tree(root, "class/thermal/thermal_zone0", &zone);
        tree(root, "class/thermal/thermal_zone1", &[("type", "bad"), ("temp", "1000000000")]);
        tree(root, "class/thermal/thermal_zone2", &[("type", "cold"), ("temp", "-274000")]);
        tree(root, "class/thermal/thermal_zone3", &[("type", "nan"), ("temp", "NaN")]);
        tree(root, "class/thermal/cooling_device0", &[("type", "fan"), ("temp", "99000")]);
        let chip = [
            ("name", "coretemp\n"),
            ("temp1_label", "Package id 0\n"),
            ("temp1_input", "61000\n"),
            ("temp2_input", "55000\n"),
            ("temp3_input", ""),
            ("in1_input", "150000\n"),
        ];
        tree(root, "class/hwmon/hwmon0", &chip);
    }

    #[test]
    fn the_hottest_of_the_chosen_counts() {
        let root = tempfile::tempdir().unwrap();
        device(root.path());
        let read = |labels: &[&str]| sensor(root.path(), labels).read();
        assert_eq!(read(&[]), Some(61.0));
        assert_eq!(read(&["cpu-thermal"]), Some(41.5));
        assert_eq!(read(&["Package id 0"]), Some(61.0));
        assert_eq!(read(&["coretemp temp2", "cpu-thermal"]), Some(55.0));
        assert_eq!(read(&["coretemp"]), Some(61.0));
        assert_eq!(read(&["bad", "cold", "nan"]), None);
        assert_eq!(read(&["none"]), None);
    }

    #[tokio::test]
    async fn only_moves_are_told() {
        let root = tempfile::tempdir().unwrap();
        let temp = |value: &str| {
            tree(root.path(), "class/thermal/thermal_zone0", &[("temp", value)]);
        };
        let mut sensor = sensor(root.path(), &[]);
        assert_eq!(said(sensor.next()).await, Some(Reading::Temperature(None)));
        temp("40000");
        until(&mut sensor, Reading::Temperature(Some(40.0))).await;
        assert!(!moved(Some(40.0), Some(40.4)));
        temp("41000");
        until(&mut sensor, Reading::Temperature(Some(41.0))).await;
        std::fs::remove_dir_all(root.path().join("class")).unwrap();
        until(&mut sensor, Reading::Temperature(None)).await;
    }
}
