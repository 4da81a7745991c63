//! Takes settings out of the merged layers one by one, collects what is wrong with them, and in the
//! end whatever nobody asked for.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use config::{ConfigError, Value, ValueKind};

use nestd_policy::level::Level;
use nestd_policy::settings::Source;

use super::Problem;

pub(super) struct Reader {
    /// What was not taken yet, as `section.key`.
    values: Vec<(String, Value)>,
    /// Every key that was asked for, for the hint beside an unknown one.
    known: Vec<&'static str>,
    /// Where the keys that were taken came from.
    origins: Vec<(&'static str, String)>,
    problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn new(merged: Value, problems: Vec<Problem>) -> Self {
        let mut values = Vec::new();
        flatten(String::new(), merged, &mut values);
        Self { values, known: Vec::new(), origins: Vec::new(), problems }
    }

    pub(super) fn string(&mut self, key: &'static str) -> String {
        self.take(key, Value::into_string).unwrap_or_default()
    }

    pub(super) fn path(&mut self, key: &'static str) -> PathBuf {
        let path = PathBuf::from(self.string(key));
        if !path.is_absolute() {
            self.wrong(key, format!("\"{}\" is not an absolute path", path.display()));
        }
        path
    }

    /// A path, or nothing.
    pub(super) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.string(key));
        if path.as_os_str().is_empty() {
            return None;
        }
        if !path.is_absolute() {
            self.wrong(key, format!("\"{}\" is not an absolute path", path.display()));
        }
        Some(path)
    }

    /// A list, each item with a grammar of its own; in the environment one text with commas between.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let texts = self.take(key, |value| match value.kind {
            ValueKind::Array(items) => items.into_iter().map(Value::into_string).collect(),
            _ => value.into_string().map(|text| {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(str::to_owned).collect::<Vec<_>>()
            }),
        });
        let mut items = Vec::new();
        for text in texts.unwrap_or_default() {
            match parse(&text) {
                Ok(item) => items.push(item),
                Err(problem) => self.wrong(key, problem),
            }
        }
        items
    }

    pub(super) fn bool(&mut self, key: &'static str) -> bool {
        self.take(key, Value::into_bool).unwrap_or_default()
    }

    pub(super) fn u64(&mut self, key: &'static str, range: RangeInclusive<u64>) -> u64 {
        let value = self.take(key, Value::into_uint);
        self.within(key, value, &range)
    }

    pub(super) fn u32(&mut self, key: &'static str, range: RangeInclusive<u32>) -> u32 {
        let (low, high) = range.into_inner();
        u32::try_from(self.u64(key, low.into()..=high.into())).unwrap_or_default()
    }

    pub(super) fn f64(&mut self, key: &'static str, range: RangeInclusive<f64>) -> f64 {
        let value = self.take(key, Value::into_float);
        self.within(key, value, &range)
    }

    /// A string with a grammar of its own. `parse` says what is wrong, to stand behind the value.
    pub(super) fn parsed<T: Default>(
        &mut self,
        key: &'static str,
        parse: fn(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = self.take(key, Value::into_string) else { return T::default() };
        parse(&text).unwrap_or_else(|problem| {
            self.wrong(key, format!("{text:?} {problem}"));
            T::default()
        })
    }

    /// Whether nothing was wrong so far.
    pub(super) fn is_fine(&self) -> bool {
        self.problems.is_empty()
    }

    /// Adds a problem with a key that was taken.
    pub(super) fn wrong(&mut self, key: &str, what: impl Display) {
        let origin = self.origins.iter().find(|(known, _)| *known == key);
        let origin = origin.map_or_else(|| "settings".to_owned(), |(_, origin)| origin.clone());
        self.problems.push(Problem { origin, what: format!("{key}: {what}") });
    }

    /// Everything that is wrong, the keys that nobody knows included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (key, value) in std::mem::take(&mut self.values) {
            let section = key.split('.').next().unwrap_or_default();
            let mut near: Vec<_> = self
                .known
                .iter()
                .filter(|known| known.split('.').next() == Some(section))
                .copied()
                .collect();
            if near.is_empty() {
                near = vec![
                    "[model]",
                    "[grpc]",
                    "[tcp]",
                    "[dbus]",
                    "[metrics]",
                    "[access]",
                    "[limits]",
                    "[quotas]",
                    "[sessions]",
                    "[elastic]",
                    "[governor]",
                    "[log]",
                    "[sim]",
                ];
            }
            let what = format!("{key}: unknown key; there are {}", near.join(", "));
            self.problems.push(Problem { origin: origin(&value), what });
        }
        self.problems
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        into: fn(Value) -> Result<T, ConfigError>,
    ) -> Option<T> {
        self.known.push(key);
        let Some(index) = self.values.iter().position(|(known, _)| known == key) else {
            self.wrong(key, "has no value");
            return None;
        };
        let (_, value) = self.values.swap_remove(index);
        self.origins.push((key, origin(&value)));
        match into(value) {
            Ok(value) => Some(value),
            Err(ConfigError::Type { unexpected, expected, .. }) => {
                self.wrong(key, format!("{unexpected} is not {expected}"));
                None
            }
            Err(error) => {
                self.wrong(key, error);
                None
            }
        }
    }

    /// The value, or the lowest of the range where it is missing or outside.
    fn within<T>(&mut self, key: &str, value: Option<T>, range: &RangeInclusive<T>) -> T
    where
        T: PartialOrd + Display + Copy,
    {
        let (low, high) = (*range.start(), *range.end());
        match value {
            Some(value) if range.contains(&value) => return value,
            Some(value) => self.wrong(key, format!("{value} is not within {low} and {high}")),
            None => {}
        }
        low
    }
}

/// The keys of the governor's policy.
impl Source for Reader {
    fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> f64 {
        self.f64(key, range)
    }

    fn truth(&mut self, key: &'static str) -> bool {
        self.bool(key)
    }

    fn level(&mut self, key: &'static str) -> Level {
        self.parsed(key, |text| {
            let wrong = "is not one of \"full\", \"eased\", \"saving\", \"critical\"";
            Level::parse(text).ok_or_else(|| wrong.into())
        })
    }
}

fn flatten(key: String, value: Value, values: &mut Vec<(String, Value)>) {
    match value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(key, value, values);
            }
        }
        _ => values.push((key, value)),
    }
}

fn origin(value: &Value) -> String {
    let origin = value.origin().unwrap_or("built-in defaults");
    // The config crate names files relative to the working directory.
    std::fs::canonicalize(origin).map_or_else(|_| origin.into(), |path| path.display().to_string())
}
