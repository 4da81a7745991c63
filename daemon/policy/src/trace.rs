//! Snapshots over time, as CSV with a header. An empty cell: no such sensor.
//!
//! | column | unit |
//! | --- | --- |
//! | `t_s` | seconds since the start; never falls |
//! | `battery_percent` | percent |
//! | `on_ac` | `true`, `false`, `1` or `0` |
//! | `mem_available_mib`, `mem_total_mib` | MiB |
//! | `psi_some_avg10`, `psi_full_avg10` | percent |
//! | `temp_c` | degrees Celsius |
//! | `power_profile` | `power-saver`, `balanced` or `performance` |

use std::io::{Read, Write};
use std::time::Duration;

use crate::snapshot::{Battery, Memory, PowerProfile, Pressure, Snapshot};

/// The header.
pub const COLUMNS: [&str; 9] = [
    "t_s",
    "battery_percent",
    "on_ac",
    "mem_available_mib",
    "mem_total_mib",
    "psi_some_avg10",
    "psi_full_avg10",
    "temp_c",
    "power_profile",
];

/// A snapshot with its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Since the start of the trace.
    pub at: Duration,
    /// What the sensors said.
    pub snapshot: Snapshot,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No table, or a broken one.
    #[error("{0}")]
    Csv(#[from] csv::Error),
    /// The header is another one.
    #[error("the header is not {}", COLUMNS.join(","))]
    Header,
    /// A cell holds something else than its column's unit.
    #[error("line {line}, {column}: {cell:?} is not {expected}")]
    Cell {
        /// The line of the file, from 1.
        line: u64,
        /// Its column.
        column: &'static str,
        /// What it holds.
        cell: String,
        /// What it may hold.
        expected: &'static str,
    },
}

/// Reads a trace, line by line.
pub fn read(from: impl Read) -> Result<impl Iterator<Item = Result<Point, Error>>, Error> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(from);
    if reader.headers()?.iter().ne(COLUMNS) {
        return Err(Error::Header);
    }
    let mut before = Duration::ZERO;
    Ok(reader.into_records().map(move |record| {
        let point = point(&record?, before)?;
        before = point.at;
        Ok(point)
    }))
}

fn point(record: &csv::StringRecord, before: Duration) -> Result<Point, Error> {
    let cells = Cells(record);
    let at = cells.number(0, 0.0..=1e9)?.and_then(|at| Duration::try_from_secs_f64(at).ok());
    let at = at.filter(|at| *at >= before);
    let at = at.ok_or_else(|| cells.wrong(0, "a time in seconds, at or after the line before"))?;
    let percent = cells.number(1, 0.0..=100.0)?;
    let on_ac = cells.parse(2, "true or false", |cell| match cell {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    })?;
    let mib = |column| cells.parse(column, "a number of MiB", |cell| cell.parse::<u64>().ok());
    let (available, total) = (mib(3)?, mib(4)?);
    let (some, full) = (cells.number(5, 0.0..=100.0)?, cells.number(6, 0.0..=100.0)?);
    let temperature_c = cells.number(7, -100.0..=250.0)?;
    let profiles = "power-saver, balanced or performance";
    let power_profile = cells.parse(8, profiles, PowerProfile::parse)?;
    let snapshot = Snapshot {
        memory: available.map(|available_mib| Memory {
            available_mib,
            total_mib: total.unwrap_or(available_mib).max(available_mib),
            ..Memory::default()
        }),
        pressure: some.or(full).map(|_| Pressure {
            some_avg10: some.or(full).unwrap_or_default(),
            full_avg10: full.unwrap_or_default(),
            stalled: false,
        }),
        on_ac,
        battery: percent.map(|percent| Battery { percent, ..Battery::default() }),
        temperature_c,
        power_profile,
        sleeping: false,
    };
    Ok(Point { at, snapshot })
}

/// The cells of a line, checked as they are taken.
struct Cells<'a>(&'a csv::StringRecord);

impl Cells<'_> {
    fn cell(&self, column: usize) -> &str {
        self.0.get(column).unwrap_or_default()
    }

    fn wrong(&self, column: usize, expected: &'static str) -> Error {
        Error::Cell {
            line: self.0.position().map_or(0, csv::Position::line),
            column: COLUMNS.get(column).copied().unwrap_or_default(),
            cell: self.cell(column).to_owned(),
            expected,
        }
    }

    fn parse<T>(
        &self,
        column: usize,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        match self.cell(column) {
            "" => Ok(None),
            cell => parse(cell).map(Some).ok_or_else(|| self.wrong(column, expected)),
        }
    }

    fn number(
        &self,
        column: usize,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>, Error> {
        self.parse(column, "a number in its range", |cell| {
            cell.parse().ok().filter(|number| range.contains(number))
        })
    }
}

/// Writes a trace, line by line.
pub struct Writer<W: Write>(csv::Writer<W>);

impl<W: Write> Writer<W> {
    /// Begins with the header.
    pub fn new(to: W) -> Result<Self, Error> {
        let mut writer = csv::Writer::from_writer(to);
        writer.write_record(COLUMNS)?;
        writer.flush().map_err(csv::Error::from)?;
        Ok(Self(writer))
    }

    /// Adds a line, and passes it on at once.
    pub fn write(&mut self, point: &Point) -> Result<(), Error> {
        fn text<T: ToString>(value: Option<T>) -> String {
            value.map_or_else(String::new, |value| value.to_string())
        }
        let short = |value: f64| format!("{value:.2}");
        let Snapshot { memory, pressure, on_ac, battery, temperature_c, power_profile, .. } =
            &point.snapshot;
        self.0.write_record([
            format!("{:.1}", point.at.as_secs_f64()),
            text(battery.map(|battery| short(battery.percent))),
            text(*on_ac),
            text(memory.map(|memory| memory.available_mib)),
            text(memory.map(|memory| memory.total_mib)),
            text(pressure.map(|pressure| short(pressure.some_avg10))),
            text(pressure.map(|pressure| short(pressure.full_avg10))),
            text(temperature_c.map(short)),
            text(power_profile.map(PowerProfile::name)),
        ])?;
        self.0.flush().map_err(csv::Error::from)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn all(text: &str) -> Result<Vec<Point>, Error> {
        read(text.as_bytes())?.collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let text = "t_s,battery_percent,on_ac,mem_available_mib,mem_total_mib,psi_some_avg10,\
                    psi_full_avg10,temp_c,power_profile\n\
                    0.0,87.50,false,1500,4000,0.50,0.00,41.00,balanced\n\
                    5.5,,true,,,,,,\n";
        let points = all(text).unwrap();
        assert_eq!(points[0].snapshot.battery.map(|b| b.percent.to_string()), Some("87.5".into()));
        assert_eq!(points[1].at, Duration::from_millis(5500));
        assert_eq!(points[1].snapshot, Snapshot { on_ac: Some(true), ..Snapshot::default() });
        let mut written = Vec::new();
        let mut writer = Writer::new(&mut written).unwrap();
        for point in &points {
            writer.write(point).unwrap();
        }
        drop(writer);
        assert_eq!(String::from_utf8(written).unwrap(), text);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let told = |text: &str| all(text).unwrap_err().to_string();
        let header = COLUMNS.join(",");
        assert!(told("a,b\n").contains("t_s,battery_percent"));
        assert!(told("").contains("header"));
        let cell = |line: &str| told(&format!("{header}\n0,,,,,,,,\n{line}\n"));
        assert!(cell("1,many,,,,,,,").contains("line 3, battery_percent: \"many\""));
        assert!(cell("1,101,,,,,,,").contains("battery_percent"));
        assert!(cell("1,NaN,,,,,,,").contains("battery_percent"));
        assert!(cell("-1,,,,,,,,").contains("t_s"));
        assert!(cell(",,,,,,,,").contains("t_s"));
        assert!(cell("1,,maybe,,,,,,").contains("on_ac"));
        assert!(cell("1,,,-5,,,,,").contains("mem_available_mib"));
        assert!(cell("1,,,,,,,,fast").contains("power_profile"));
        assert!(cell("1,2").contains("2 fields"), "{}", cell("1,2"));
        let falling = format!("{header}\n5,,,,,,,,\n4,,,,,,,,\n");
        assert!(told(&falling).contains("line 3, t_s"));
    }
}
