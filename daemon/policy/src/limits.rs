//! What the readings, the wishes and the memory say of the size, each with its reason.

use crate::decide::{Cause, Inputs, Wanted};
use crate::holds::Hold;
use crate::ladder::Ladder;
use crate::level::{Bands, Level, Worse};
use crate::settings::Settings;
use crate::snapshot::{PowerProfile, Snapshot, Warning};

/// The level of each reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Levels {
    battery: Level,
    temperature: Level,
    pressure: Level,
    available: Level,
    power_profile: Level,
}

impl Levels {
    pub(crate) fn worst(self) -> Level {
        self.battery.max(self.temperature).max(self.power_profile).max(self.memory())
    }

    pub(crate) fn memory(self) -> Level {
        self.pressure.max(self.available)
    }
}

/// What keeps the size from being larger, or smaller.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    pub(crate) cause: Cause,
    pub(crate) text: String,
}

impl Limit {
    fn new(cause: Cause, text: String) -> Self {
        Self { cause, text }
    }
}

/// The charge, where it counts.
fn discharging(snapshot: &Snapshot) -> Option<f64> {
    snapshot.battery.filter(|_| snapshot.on_ac != Some(true)).map(|battery| battery.percent)
}

/// What the system warns of, where it counts.
fn warning(snapshot: &Snapshot) -> Option<Warning> {
    discharging(snapshot)?;
    snapshot.battery?.warning
}

/// The levels of a snapshot, after those before. A reading that is gone has none.
pub(crate) fn levels(settings: &Settings, snapshot: &Snapshot, before: Option<Levels>) -> Levels {
    let before = before.unwrap_or_default();
    let level = |bands: &Bands, value: Option<f64>, before| {
        value.map_or(Level::Full, |value| bands.level(value, before))
    };
    // `full` is in `some`, so a machine at a standstill is critical by both.
    let pressure = snapshot.pressure.map(|pressure| {
        let level = settings.pressure.level(pressure.some_avg10, before.pressure);
        if pressure.stalled { level.max(Level::Saving) } else { level }
    });
    let available = snapshot.memory.map(|memory| memory.available_mib as f64);
    // Who runs out of power does not wait for a threshold.
    let warned = match warning(snapshot) {
        None => Level::Full,
        Some(Warning::Low) => Level::Saving,
        Some(Warning::Critical | Warning::Action) => Level::Critical,
    };
    let saver = snapshot.power_profile == Some(PowerProfile::PowerSaver);
    Levels {
        battery: level(&settings.battery, discharging(snapshot), before.battery).max(warned),
        temperature: level(&settings.temperature, snapshot.temperature_c, before.temperature),
        pressure: pressure.unwrap_or_default(),
        available: level(&settings.available, available, before.available),
        power_profile: if saver { settings.power_saver } else { Level::Full },
    }
}

/// The share of the largest size's cost that a level allows.
fn cost(settings: &Settings, level: Level) -> f64 {
    let [full, eased, saving] = settings.cost_percent;
    match level {
        Level::Full => full,
        Level::Eased => eased,
        Level::Saving => saving,
        Level::Critical => 0.0,
    }
}

/// The reading that is worst, as a limit.
fn comfort(settings: &Settings, snapshot: &Snapshot, levels: Levels) -> Limit {
    let worst = levels.worst();
    let name = worst.name();
    if worst == Level::Full {
        let text = match settings.cost_percent {
            [full, ..] if full < 100.0 => format!(
                "nothing is short; sizes up to {full:.0} % of the largest's cost are configured"
            ),
            _ => "nothing is short".into(),
        };
        return Limit::new(Cause::Plenty, text);
    }
    if levels.available == worst
        && let Some(memory) = snapshot.memory
    {
        let text = format!("{} MiB of memory are available: {name}", memory.available_mib);
        return Limit::new(Cause::Pressure, text);
    }
    if levels.pressure == worst
        && let Some(pressure) = snapshot.pressure
    {
        let text = if pressure.stalled {
            format!("the system reports that programs wait for memory: {name}")
        } else {
            format!("programs wait for memory {:.0} % of the time: {name}", pressure.some_avg10)
        };
        return Limit::new(Cause::Pressure, text);
    }
    if levels.temperature == worst
        && let Some(celsius) = snapshot.temperature_c
    {
        return Limit::new(
            Cause::Temperature,
            format!("the temperature is {celsius:.0} °C: {name}"),
        );
    }
    if levels.battery == worst
        && let Some(percent) = discharging(snapshot)
    {
        let text = match warning(snapshot) {
            None => format!("the battery is at {percent:.0} %: {name}"),
            Some(warning) => {
                let warning = warning.name();
                format!(
                    "the battery is at {percent:.0} %, and the system warns of it ({warning}): {name}"
                )
            }
        };
        return Limit::new(Cause::Battery, text);
    }
    Limit::new(Cause::PowerProfile, format!("the power profile is power-saver: {name}"))
}

/// The size that readings, wishes and memory together want. `current` is the place of the size in use.
pub(crate) fn wanted(
    settings: &Settings,
    inputs: &Inputs<'_>,
    levels: Levels,
    current: Option<usize>,
) -> Wanted {
    let Inputs { snapshot, holds, ladder, .. } = *inputs;
    let level = levels.worst();
    // Danger to the device: a low battery is none for whoever pinned a size.
    let danger = levels.temperature.max(levels.memory()) == Level::Critical;
    let mut index = ladder.within_cost(cost(settings, level));
    let mut limit = comfort(settings, snapshot, levels);
    let (mut largest, mut smallest) = (0, ladder.smallest());
    if let Some(pin) = holds.pin(ladder).filter(|_| !danger) {
        (index, largest, smallest) = (pin, pin, pin);
        limit = Limit::new(Cause::Pin, format!("{} is pinned", ladder.name(pin)));
    } else {
        let by = |what: &str, place: usize, hold: &Hold| {
            let reason = if hold.reason.is_empty() { "no reason given" } else { &hold.reason };
            let size = ladder.name(place);
            Limit::new(Cause::Hold, format!("{} holds {what} {size}: {reason}", hold.client))
        };
        if let Some((min, hold)) = holds.min(ladder).filter(|_| level < Level::Critical) {
            smallest = min;
            if min < index {
                (index, limit) = (min, by("at least", min, hold));
            }
        }
        if let Some((max, hold)) = holds.max(ladder) {
            (largest, smallest) = (max, smallest.max(max));
            if max > index {
                (index, limit) = (max, by("at most", max, hold));
            }
        }
    }
    let available = snapshot.memory.map(|memory| memory.available_mib);
    // A size that is in use may stay where it leaves the reserve; a larger one needs more.
    let stays = ladder.within_memory(available, settings.reserve_mib);
    let grows = ladder.within_memory(available, settings.reserve_leave_mib);
    let most = current.map_or(grows, |current| grows.min(current.max(stays)));
    (largest, smallest) = (largest.max(most), smallest.max(most));
    if most > index {
        index = most;
        limit = Limit::new(Cause::Memory, too_large(settings, ladder, available, most - 1));
    }
    // Memory and danger make smaller at once.
    if level == Level::Critical || levels.memory() >= Level::Saving {
        largest = largest.max(index);
        smallest = smallest.max(largest);
    }
    Wanted { index, limit, largest, smallest }
}

/// Why the size at this place is not taken.
fn too_large(
    settings: &Settings,
    ladder: &Ladder,
    available_mib: Option<u64>,
    index: usize,
) -> String {
    let rung = ladder.rungs.get(index);
    let (name, need) = rung.map_or(("", 0), |rung| (rung.name.as_str(), rung.need_mib));
    if let Some(limit) = ladder.limit_mib.filter(|limit| need > *limit) {
        return format!("{name} needs {need} MiB, and model.memory_mib allows {limit}");
    }
    let there = available_mib.unwrap_or(0).saturating_add(ladder.held_mib);
    let reserve = settings.reserve_mib;
    format!("{name} needs {need} MiB; {there} are there, and {reserve} stay free")
}

/// What would change the size next, in words: the better way first.
pub(crate) fn next(
    settings: &Settings,
    inputs: &Inputs<'_>,
    levels: Levels,
    index: usize,
) -> String {
    let Inputs { snapshot, holds, ladder, .. } = *inputs;
    if holds.pin(ladder).is_some() {
        return "letting go of the pin (nestctl size --auto)".into();
    }
    let mut parts = Vec::new();
    let worst = levels.worst();
    let dwell = settings.dwell_s;
    let readings = [
        ("battery", "%", levels.battery, &settings.battery, discharging(snapshot)),
        ("temperature", "°C", levels.temperature, &settings.temperature, snapshot.temperature_c),
        (
            "waiting for memory",
            "%",
            levels.pressure,
            &settings.pressure,
            snapshot.pressure.map(|pressure| pressure.some_avg10),
        ),
        (
            "available memory",
            "MiB",
            levels.available,
            &settings.available,
            snapshot.memory.map(|memory| memory.available_mib as f64),
        ),
    ];
    let words = |bands: &Bands| match bands.worse {
        Worse::Falling => ("above", "at or below"),
        Worse::Rising => ("below", "at or above"),
    };
    for (name, unit, level, bands, value) in readings {
        if value.is_none() {
            continue;
        }
        let (up, down) = words(bands);
        if level == worst
            && let Some(leave) = larger_beyond(settings, inputs, bands, level, index)
        {
            parts.push(format!("larger with {name} {up} {leave} {unit} for {dwell:.0} s"));
        }
        if let Some((next, enter)) = bands.next(level.max(worst)) {
            let place = ladder.within_cost(cost(settings, next));
            if place > index {
                let size = ladder.name(place);
                parts.push(format!("{size} with {name} {down} {enter} {unit}"));
            }
        }
    }
    if levels.power_profile == worst && worst > Level::Full {
        parts.push(format!("larger with another power profile for {dwell:.0} s"));
    }
    if index > 0
        && let (Some(rung), Some(memory)) = (ladder.rungs.get(index - 1), snapshot.memory)
        && ladder.limit_mib.is_none_or(|limit| rung.need_mib <= limit)
        && ladder.within_memory(Some(memory.available_mib), settings.reserve_leave_mib) >= index
    {
        let need = rung.need_mib as f64 + settings.reserve_leave_mib - ladder.held_mib as f64;
        parts.insert(0, format!("{} with {need:.0} MiB available", rung.name));
    }
    if parts.is_empty() { "nothing that is measured".into() } else { parts.join("; ") }
}

/// The value beyond which a larger size is allowed: that of the first level, from this one to milder ones,
/// whose leaving allows more.
fn larger_beyond(
    settings: &Settings,
    inputs: &Inputs<'_>,
    bands: &Bands,
    level: Level,
    index: usize,
) -> Option<f64> {
    let milder = |than: Level| {
        let entered = Level::ENTERED.into_iter().rev();
        entered.filter(|level| *level < than).find(|level| bands.band(*level).is_some())
    };
    let mut level = level;
    loop {
        let band = bands.band(level)?;
        let then = milder(level).unwrap_or_default();
        if inputs.ladder.within_cost(cost(settings, then)) < index {
            return Some(band.leave);
        }
        level = then;
    }
}
