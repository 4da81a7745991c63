//! The decision: a function of the readings, the wishes, the last decision and the time.
//!
//! 1. Each reading gives a level ([`crate::level`]); the worst level caps the size by its cost.
//! 2. Wishes move the size within that ([`crate::holds`]), and the memory that there is bounds it.
//! 3. Down at once; up when the better state has lasted for the dwell. Neither turns the size round within
//!    the dwell after a change, unless memory, danger, a pin or a hold wants it.
//! 4. While memory is critical more is given up with each evaluation ([`Shed`]).

use std::time::Duration;

use crate::holds::Holds;
use crate::ladder::Ladder;
use crate::level::Level;
use crate::limits::{self, Levels, Limit};
use crate::settings::Settings;
use crate::snapshot::Snapshot;

/// How long one stage of giving up may show its effect before the next, while memory stays critical.
const SHED_INTERVAL: Duration = Duration::from_secs(2);
/// Never again sooner than this.
const SOON: Duration = Duration::from_millis(50);
/// The context is not cut below this.
const SHORTEST_CONTEXT: u32 = 256;

/// What is given up while memory is critical, in this order; each includes those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shed {
    /// Nothing.
    #[default]
    Nothing,
    /// Caches that no running request uses.
    Caches,
    /// Half of the context that a new request may have.
    Context,
    /// Every size but the smallest.
    Size,
    /// Background requests, and all but one place.
    Background,
    /// The model: it is loaded again when it is asked for.
    Model,
}

impl Shed {
    /// The name in both APIs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Caches => "caches",
            Self::Context => "context",
            Self::Size => "size",
            Self::Background => "background",
            Self::Model => "model",
        }
    }
}

/// What limits the size, in one word for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// Nothing is short.
    #[default]
    Plenty,
    /// The batteries' charge.
    Battery,
    /// The temperature.
    Temperature,
    /// Programs wait for memory, or little is left.
    Pressure,
    /// Larger sizes do not fit the memory.
    Memory,
    /// The person's power profile.
    PowerProfile,
    /// A client's hold.
    Hold,
    /// A person's pin.
    Pin,
    /// Nobody asked for long.
    Idle,
}

impl Cause {
    /// The name in both APIs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plenty => "plenty",
            Self::Battery => "battery",
            Self::Temperature => "temperature",
            Self::Pressure => "memory-pressure",
            Self::Memory => "memory",
            Self::PowerProfile => "power-profile",
            Self::Hold => "hold",
            Self::Pin => "pin",
            Self::Idle => "idle",
        }
    }
}

/// What to decide on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The readings.
    pub snapshot: &'a Snapshot,
    /// The wishes.
    pub holds: &'a Holds,
    /// The model's sizes.
    pub ladder: &'a Ladder,
    /// Since the last request ended; None while one runs or waits.
    pub idle: Option<Duration>,
}

/// What the device can afford.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The size.
    pub size: String,
    /// The larger size that comes when the dwell is over, if it does.
    pub planned: Option<String>,
    /// The worst level of any reading.
    pub level: Level,
    /// The longest context that a new request may have.
    pub max_context: u32,
    /// Requests that run at once.
    pub max_parallel: u32,
    /// Whether background requests run.
    pub background_allowed: bool,
    /// What is given up for memory.
    pub shed: Shed,
    /// The model leaves memory until it is asked for.
    pub park: bool,
    /// What decided on the size.
    pub cause: Cause,
    /// The same as a sentence, with the numbers.
    pub reason: String,
    /// What would change the size, as a sentence.
    pub next_threshold: String,
    /// When to decide again though no reading has changed.
    pub again_in: Option<Duration>,
    /// For the next decision.
    pub memo: Memo,
}

/// What a decision remembers for the next one. Times are the caller's `now`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memo {
    levels: Levels,
    /// Why the size is what it is.
    because: String,
    /// The size's place.
    index: usize,
    /// When it changed, and whether it became larger.
    changed: Option<(Duration, bool)>,
    /// Since when a larger size would do.
    better_since: Option<Duration>,
    /// When the last stage was given up.
    shed_at: Option<Duration>,
    /// Since when memory is no longer critical, while something is still given up.
    calm_since: Option<Duration>,
}

/// Decides. `now` is any clock that does not go back; `previous` is the last decision on this ladder.
#[must_use]
pub fn decide(
    settings: &Settings,
    inputs: &Inputs<'_>,
    previous: Option<&Decision>,
    now: Duration,
) -> Decision {
    let Inputs { snapshot, holds, ladder, idle } = *inputs;
    let before = previous.map(|decision| &decision.memo);
    let levels = limits::levels(settings, snapshot, before.map(|memo| memo.levels));
    let level = levels.worst();
    let dwell = Duration::from_secs_f64(settings.dwell_s);

    let wanted = limits::wanted(settings, inputs, levels, before.map(|memo| memo.index));
    let turn = Turn { dwell, now, before }.take(&wanted);
    let (shed, shed_at, calm_since) = give_up(levels, previous, dwell, now);
    let index = if shed >= Shed::Size { ladder.smallest() } else { turn.index };
    let changed = match before {
        Some(memo) if memo.index == index => memo.changed,
        Some(memo) => Some((now, index < memo.index)),
        None => None,
    };
    let idle_limit = Duration::from_secs_f64(settings.idle_unload_s);
    let idles = idle.is_some_and(|idle| !idle_limit.is_zero() && idle >= idle_limit);
    let background = shed < Shed::Background
        && level < Level::Critical
        && (level < Level::Saving || settings.saving_background)
        && holds.no_background().is_none();

    // A size that the dwell keeps has the reason that it came with.
    let kept = previous.filter(|before| turn.left.is_some() && before.memo.index == turn.index);
    let (cause, because) = match kept {
        Some(kept) => (kept.cause, kept.memo.because.clone()),
        None => (wanted.limit.cause, wanted.limit.text.clone()),
    };
    let (cause, reason) = if idles {
        (Cause::Idle, format!("nobody asked for {:.0} s", settings.idle_unload_s))
    } else if index != turn.index {
        let dwell = settings.dwell_s;
        (Cause::Pressure, format!("memory was critical; it stays small until {dwell:.0} s of calm"))
    } else if kept.is_some() {
        (cause, format!("{} waits out the dwell; before: {because}", ladder.name(wanted.index)))
    } else {
        (cause, because.clone())
    };
    let next_threshold = match turn.left {
        Some(left) => {
            let seconds = left.as_secs_f64().ceil();
            format!("{} after {seconds:.0} s more of this", ladder.name(wanted.index))
        }
        None => limits::next(settings, inputs, levels, index),
    };
    let again = match calm_since {
        Some(since) => Some((since + dwell).saturating_sub(now)),
        None if shed >= Shed::Size && shed < Shed::Model => Some(SHED_INTERVAL),
        None => None,
    };
    let idle_left = idle.map(|idle| idle_limit.saturating_sub(idle));
    let idle_left = idle_left.filter(|left| !left.is_zero());
    let context = ladder.context_tokens;
    Decision {
        size: ladder.name(index).to_owned(),
        planned: turn
            .left
            .filter(|_| wanted.index < index)
            .map(|_| ladder.name(wanted.index).to_owned()),
        level,
        max_context: match shed {
            Shed::Nothing | Shed::Caches => context,
            _ => (context / 2).max(SHORTEST_CONTEXT.min(context)),
        },
        max_parallel: if shed >= Shed::Background { 1 } else { ladder.parallel_requests },
        background_allowed: background,
        shed,
        park: idles || shed == Shed::Model,
        cause,
        reason,
        next_threshold,
        again_in: [turn.left, again, idle_left].into_iter().flatten().min().map(|t| t.max(SOON)),
        memo: Memo {
            because,
            levels,
            index,
            changed,
            better_since: turn.better_since,
            shed_at,
            calm_since,
        },
    }
}

/// What the size would be if it could change at once, and why.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) index: usize,
    pub(crate) limit: Limit,
    /// Memory, danger, a pin or a hold wants the size between these two at once, whatever the dwell.
    pub(crate) largest: usize,
    pub(crate) smallest: usize,
}

/// The move from the size before to the one that is wanted.
struct Turn<'a> {
    dwell: Duration,
    now: Duration,
    before: Option<&'a Memo>,
}

/// What comes of it.
struct Turned {
    /// The size's place.
    index: usize,
    /// Since when a larger one would do.
    better_since: Option<Duration>,
    /// How long the change still waits, if it does.
    left: Option<Duration>,
}

impl Turn<'_> {
    fn take(&self, wanted: &Wanted) -> Turned {
        let there = Turned { index: wanted.index, better_since: None, left: None };
        let Some(before) = self.before else { return there };
        let kept = before.index.clamp(wanted.largest, wanted.smallest);
        if kept == wanted.index {
            return there;
        }
        let larger = wanted.index < kept;
        let since = before.better_since.filter(|_| larger).unwrap_or(self.now);
        // Turning round soon after a change is what wavering readings would cause.
        let turned = before.changed.filter(|(_, went_up)| *went_up != larger).map(|(at, _)| at);
        let from = turned.max(larger.then_some(since));
        let left = from.map_or(Duration::ZERO, |from| (from + self.dwell).saturating_sub(self.now));
        if left.is_zero() {
            return there;
        }
        Turned { index: kept, better_since: larger.then_some(since), left: Some(left) }
    }
}

/// The next stage of giving up, or one less once memory was calm for the dwell.
fn give_up(
    levels: Levels,
    previous: Option<&Decision>,
    dwell: Duration,
    now: Duration,
) -> (Shed, Option<Duration>, Option<Duration>) {
    let before = previous.map_or(Shed::Nothing, |decision| decision.shed);
    let memo = previous.map(|decision| &decision.memo);
    let at = memo.and_then(|memo| memo.shed_at);
    if levels.memory() == Level::Critical {
        // A stage has its time from when memory became critical, not from some earlier time.
        let entered = memo.is_none_or(|memo| memo.levels.memory() != Level::Critical);
        if entered {
            return (before.max(Shed::Size), Some(now), None);
        }
        let due = at.is_none_or(|at| now.saturating_sub(at) >= SHED_INTERVAL);
        // Caches, context and size go at once: they cost nobody a request.
        return match before {
            Shed::Nothing | Shed::Caches | Shed::Context => (Shed::Size, Some(now), None),
            Shed::Size if due => (Shed::Background, Some(now), None),
            Shed::Background if due => (Shed::Model, Some(now), None),
            before => (before, at, None),
        };
    }
    if levels.memory() >= Level::Saving && before <= Shed::Caches {
        return (Shed::Caches, None, None);
    }
    if before <= Shed::Caches {
        return (Shed::Nothing, None, None);
    }
    let calm = memo.and_then(|memo| memo.calm_since).unwrap_or(now);
    if now.saturating_sub(calm) >= dwell {
        (Shed::Nothing, None, None)
    } else {
        // The model may come back at once when it is asked for.
        (before.min(Shed::Background), at, Some(calm))
    }
}
