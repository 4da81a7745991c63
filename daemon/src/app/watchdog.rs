//! Feeds the watchdog of the service manager for as long as the engine gives signs of life, and this loop
//! turns.
//!
//! It looks four times in the manager's time, and feeds while no sign is missing for half of that. So an
//! engine that hangs is ended after between one and one and a half of the manager's time.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::engine::Pulse;
use crate::systemd;

/// Nothing, where the manager does not watch.
pub(super) struct Watchdog(Option<Watch>);

struct Watch {
    turns: Interval,
    pulse: Pulse,
    patience: Duration,
    /// A hang is told once.
    told: bool,
}

impl Watchdog {
    pub(super) fn new(pulse: Pulse) -> Self {
        Self(systemd::watchdog().map(|time| {
            let mut turns = interval(time / 4);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Watch { turns, pulse, patience: time / 2, told: false }
        }))
    }

    /// Completes when it is time to look.
    pub(super) async fn turn(&mut self) {
        match &mut self.0 {
            Some(watch) => drop(watch.turns.tick().await),
            None => std::future::pending().await,
        }
    }

    pub(super) fn all_is_well(&mut self) -> bool {
        let Some(watch) = &mut self.0 else { return true };
        let silence = watch.pulse.silence();
        let well = silence < watch.patience;
        if !well && !watch.told {
            let s = silence.as_secs();
            tracing::error!(s, "the engine hangs: if it stays so, the watchdog ends nestd");
        } else if well && watch.told {
            tracing::warn!("the engine goes on");
        }
        watch.told = !well;
        well
    }
}
