//! Battery and mains from sysfs (kernel documentation, ABI/testing/sysfs-class-power).
//!
//! Several batteries are summed by their energy; those of mice and keyboards are not the device's.
//! Drivers leave attributes out, and fail to read them: what is left is made use of. The kernel's
//! events say when to look, where the root is the real /sys; else, and where they cannot be had, it
//! looks at every poll.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use nestd_policy::snapshot::Battery;
use tokio::time::{Instant, sleep_until};

use super::super::{Every, SHORTEST, Settings, files};
use super::uevent::Uevents;
use super::{Power, Reading, Sensor, percent, tidy, until_empty, watts};

/// However often the kernel says that something changed, it is looked at this seldom.
const PAUSE: Duration = Duration::from_secs(1);
/// Micro-units to units.
const MICRO: f64 = 1e-6;
/// What a battery's energy can be, in watt-hours.
const ENERGY: std::ops::RangeInclusive<f64> = 0.0..=1e6;

/// The sensor.
pub struct PowerSupply {
    folder: PathBuf,
    /// Whether to listen to the kernel; done at the first call.
    listen: bool,
    poll: Duration,
    uevents: Option<Uevents>,
    every: Every,
    not_before: Instant,
    /// What was said last.
    told: Option<Power>,
}

impl PowerSupply {
    /// Looks below the settings' root.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            folder: settings.sys.join("class/power_supply"),
            listen: settings.sys == Path::new("/sys"),
            poll: settings.poll.max(SHORTEST),
            uevents: None,
            every: Every::new(settings.poll),
            not_before: Instant::now(),
            told: None,
        }
    }

    /// Forgets what it has said, so that it says it again.
    pub(super) fn say_again(&mut self) {
        self.told = None;
        self.every.again_in(Duration::ZERO);
    }
}

impl Sensor for PowerSupply {
    fn name(&self) -> &'static str {
        "battery (sysfs)"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            if std::mem::take(&mut self.listen) {
                self.uevents = Uevents::open();
                if self.uevents.is_some() {
                    self.every.period = self.poll.saturating_mul(6);
                } else {
                    tracing::debug!("no kernel events: power supplies are polled");
                }
            }
            loop {
                tokio::select! {
                    () = self.every.tick() => {}
                    open = changed(self.uevents.as_mut(), self.not_before) => if !open {
                        self.uevents = None;
                        self.every.period = self.poll;
                    },
                }
                self.not_before = Instant::now() + PAUSE;
                let power = read(&self.folder);
                if self.told != Some(power) {
                    self.told = Some(power);
                    return Some(Reading::Power(power.0, power.1));
                }
            }
        })
    }
}

async fn changed(uevents: Option<&mut Uevents>, not_before: Instant) -> bool {
    match uevents {
        Some(uevents) => {
            sleep_until(not_before).await;
            uevents.changed().await
        }
        None => std::future::pending().await,
    }
}

/// What one battery does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Charging,
    Discharging,
    Full,
    /// Something else, or the driver does not know.
    Other,
}

/// One battery.
struct Cell {
    /// In percent.
    percent: f64,
    /// What it holds and could hold, in watt-hours.
    energy: Option<(f64, f64)>,
    flow: Flow,
    /// Out of it.
    power_w: Option<f64>,
    /// By the driver's own reckoning.
    time_to_empty_s: Option<u64>,
}

fn read(folder: &Path) -> Power {
    let mut mains = None;
    let mut cells = Vec::new();
    for supply in files::entries(folder) {
        if files::text(&supply.join("scope")).is_some_and(|scope| scope == "Device") {
            continue;
        }
        match files::text(&supply.join("type")).unwrap_or_default().as_str() {
            "Battery" => cells.extend(cell(&supply)),
            "Mains" | "Wireless" => mains = mains.into_iter().chain(online(&supply)).max(),
            usb if usb.starts_with("USB") => {
                mains = mains.into_iter().chain(online(&supply)).max();
            }
            _ => {}
        }
    }
    let any = |flow| cells.iter().any(|cell: &Cell| cell.flow == flow);
    let on_ac = mains.or_else(|| {
        if any(Flow::Discharging) {
            Some(false)
        } else {
            (any(Flow::Charging) || any(Flow::Full)).then_some(true)
        }
    });
    (on_ac, together(&cells).map(tidy))
}

/// Whether a supply delivers: 2 is "online, and its voltage can be set".
fn online(supply: &Path) -> Option<bool> {
    match files::number::<u8>(&supply.join("online"))? {
        0 => Some(false),
        1 | 2 => Some(true),
        _ => None,
    }
}

/// A battery; none where it was taken out, or its charge is not known.
fn cell(supply: &Path) -> Option<Cell> {
    let number =
        |name: &str| files::number::<f64>(&supply.join(name)).filter(|number| number.is_finite());
    if number("present") == Some(0.0) {
        return None;
    }
    let volts = number("voltage_now").or_else(|| number("voltage_min_design"));
    let volts = volts.map(|volts| volts * MICRO).filter(|volts| *volts > 0.0);
    let pair = |now, full| {
        Some((number(now)?, number(full)?)).filter(|(now, full)| *full > 0.0 && *now >= 0.0)
    };
    let charge = pair("charge_now", "charge_full");
    let energy = pair("energy_now", "energy_full")
        .map(|(now, full)| (now * MICRO, full * MICRO))
        .or_else(|| {
            let ((now, full), volts) = charge.zip(volts)?;
            Some((now * MICRO * volts, full * MICRO * volts))
        })
        .filter(|(now, full)| ENERGY.contains(now) && ENERGY.contains(full));
    let share = energy.or(charge).and_then(|(now, full)| percent(100.0 * now / full));
    let flow = match files::text(&supply.join("status")).unwrap_or_default().as_str() {
        "Charging" => Flow::Charging,
        "Discharging" => Flow::Discharging,
        "Full" => Flow::Full,
        _ => Flow::Other,
    };
    let power = number("power_now")
        .map(|power| power * MICRO)
        .or_else(|| Some(number("current_now")? * MICRO * volts?))
        .and_then(watts);
    let power_w = match flow {
        // A battery that is used and loses nothing: the driver does not know.
        Flow::Discharging => power.filter(|power| *power > 0.0),
        Flow::Charging => power.filter(|power| *power > 0.0).map(|power| -power),
        Flow::Full => power,
        Flow::Other => power.filter(|power| *power == 0.0),
    };
    let time_to_empty_s = number("time_to_empty_now").and_then(until_empty);
    let percent = share.or_else(|| number("capacity").and_then(percent))?;
    Some(Cell {
        percent,
        energy: energy.filter(|_| share.is_some()),
        flow,
        power_w,
        time_to_empty_s,
    })
}

fn together(cells: &[Cell]) -> Option<Battery> {
    let mean = || {
        let sum: f64 = cells.iter().map(|cell| cell.percent).sum();
        sum / cells.len() as f64
    };
    let energy = cells
        .iter()
        .map(|cell| cell.energy)
        .try_fold((0.0, 0.0), |sum, energy| energy.map(|(now, full)| (sum.0 + now, sum.1 + full)));
    let energy = energy.filter(|(_, full)| *full > 0.0);
    let percent = percent(energy.map_or_else(mean, |(now, full)| 100.0 * now / full))?;
    let known: Vec<f64> = cells.iter().filter_map(|cell| cell.power_w).collect();
    let power_w = (!known.is_empty()).then(|| known.iter().sum());
    let any = |flow| cells.iter().any(|cell| cell.flow == flow);
    let time_to_empty_s = if any(Flow::Discharging) && !any(Flow::Charging) {
        let own = if let [cell] = cells { cell.time_to_empty_s } else { None };
        own.or_else(|| {
            let ((now, _), power) = energy.zip(power_w.filter(|power| *power > 0.0))?;
            until_empty(now / power * 3600.0)
        })
    } else {
        None
    };
    Some(Battery { percent, power_w, time_to_empty_s, warning: None })
}

#[cfg(test)]
#[path = "power_supply_tests.rs"]
mod tests;
