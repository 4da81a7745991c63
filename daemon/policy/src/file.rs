//! Settings from a shipped profile and a file of one's own, for whoever is not the daemon: it reads its
//! own layers.

use std::ops::RangeInclusive;

use toml::{Table, Value};

use crate::level::Level;
use crate::settings::{PROFILES, Settings, Source};

/// The settings of a profile, with those of the table `[governor]` in `text` in place of its own. The
/// error is the whole list of what is wrong.
pub fn settings(profile: &str, text: &str) -> Result<Settings, Vec<String>> {
    let Some((_, shipped)) = PROFILES.iter().find(|(name, _)| *name == profile) else {
        let names = PROFILES.map(|(name, _)| name).join(", ");
        return Err(vec![format!("there is no profile {profile:?}; there are {names}")]);
    };
    let mut tables = Tables { values: Table::new(), known: Vec::new(), problems: Vec::new() };
    for text in [shipped, text] {
        match text.parse::<Table>() {
            Err(error) => tables.problems.push(error.to_string()),
            Ok(mut table) => match table.remove("governor") {
                Some(Value::Table(governor)) => tables.values.extend(governor),
                Some(_) => tables.problems.push("governor: is not a table".into()),
                None => {}
            },
        }
    }
    let settings = Settings::read(&mut tables);
    let Tables { values, known, mut problems } = tables;
    for key in values.keys().filter(|key| !known.contains(&key.as_str()) && *key != "profile") {
        problems.push(format!("governor.{key}: unknown key; there are {}", known.join(", ")));
    }
    if problems.is_empty() {
        let unordered = settings.problems();
        problems.extend(unordered.into_iter().map(|(key, what)| format!("governor.{key}: {what}")));
    }
    if problems.is_empty() { Ok(settings) } else { Err(problems) }
}

struct Tables {
    values: Table,
    known: Vec<&'static str>,
    problems: Vec<String>,
}

impl Tables {
    fn take<T: Default>(
        &mut self,
        key: &'static str,
        wants: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> T {
        let name = key.strip_prefix("governor.").unwrap_or(key);
        self.known.push(name);
        let value = self.values.get(name);
        value.and_then(read).unwrap_or_else(|| {
            let value = value.map_or_else(|| "nothing".to_owned(), shown);
            self.problems.push(format!("{key}: {value} is not {wants}"));
            T::default()
        })
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        other => format!("a {}", other.type_str()),
    }
}

impl Source for Tables {
    fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> f64 {
        let wants = format!("a number within {} and {}", range.start(), range.end());
        self.take(key, &wants, |value| {
            let number = value.as_float().or_else(|| Some(value.as_integer()? as f64));
            number.filter(|number| range.contains(number))
        })
    }

    fn truth(&mut self, key: &'static str) -> bool {
        self.take(key, "true or false", Value::as_bool)
    }

    fn level(&mut self, key: &'static str) -> Level {
        let wants = "one of \"full\", \"eased\", \"saving\", \"critical\"";
        self.take(key, wants, |value| Level::parse(value.as_str()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_profiles_are_valid() {
        for (name, _) in PROFILES {
            if let Err(problems) = settings(name, "") {
                panic!("{name}: {problems:?}");
            }
        }
        assert!(settings("toaster", "").unwrap_err()[0].contains("glasses, headset"));
    }

    #[test]
    fn what_is_wrong_is_told_with_the_key() {
        let told = |line: &str| settings("headset", &format!("[governor]\n{line}")).unwrap_err();
        let has = |line: &str, words: &[&str]| {
            let told = told(line);
            let found = told.iter().any(|told| words.iter().all(|word| told.contains(word)));
            assert!(found, "{line}: {words:?} in {told:?}");
        };
        has("dwell_s = 'long'", &["governor.dwell_s", "\"long\"", "a number"]);
        has("dwell_s = -1", &["governor.dwell_s", "-1"]);
        has("dwell = 1", &["governor.dwell", "unknown key", "dwell_s"]);
        has("power_saver = 'off'", &["governor.power_saver", "saving"]);
        has("battery_saving_leave = 20.0", &["battery_saving_leave", "above", "enter"]);
        has(
            "battery_saving_enter = 60.0\nbattery_saving_leave = 70.0",
            &["battery_saving_enter", "below"],
        );
        has("temp_saving_leave = 90.0", &["temp_saving_leave", "below", "temp_saving_enter"]);
        has("temp_saving_enter = 30.0\ntemp_saving_leave = 20.0", &["temp_saving_enter", "above"]);
        has("eased_cost_percent = 100\nfull_cost_percent = 50", &["eased_cost_percent", "above"]);
        has("reserve_leave_mib = 1.0", &["reserve_leave_mib", "reserve_mib"]);
        has("[[governor]]", &["governor"]);
        let one = told("dwell_s = -1\nbattery_eased_enter = 500\n");
        assert_eq!(one.len(), 2, "all at once: {one:?}");
        assert!(settings("headset", "[governor]\nprofile = 'headset'\ndwell_s = 5").is_ok());
        assert!(settings("headset", "[model]\nname = 'x'").is_ok());
    }
}
