//! Joules per token, from the batteries' power while requests run.
//!
//! The power is the whole device's, so this is what a token costs with the display and all else that is on
//! meanwhile: an upper bound for the model, and what the battery feels. Held by the governor's task.

use std::time::Instant;

/// So many tokens make an estimate; fewer say nothing against one reading a few seconds.
const TOKENS: u64 = 16;
/// How much a new estimate counts.
const WEIGHT: f64 = 0.3;

/// The estimate so far.
#[derive(Debug, Default)]
pub struct Energy {
    last: Option<Seen>,
    /// Since the last estimate.
    joules: f64,
    tokens: u64,
    per_token_j: Option<f64>,
    /// What was not taken yet.
    spent_j: f64,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    tokens: u64,
    power_w: Option<f64>,
    busy: bool,
}

impl Energy {
    /// Takes the state of things; it lasted since the last call. `tokens` is the count of all so far,
    /// `power_w` what leaves the batteries. Gives joules per token, once they are known.
    pub fn see(
        &mut self,
        at: Instant,
        tokens: u64,
        power_w: Option<f64>,
        busy: bool,
    ) -> Option<f64> {
        let power_w = power_w.filter(|watts| *watts > 0.0);
        let last = self.last.replace(Seen { at, tokens, power_w, busy });
        if let Some(Seen { at: before, tokens: counted, power_w: Some(watts), busy: true }) = last {
            let joules = watts * at.saturating_duration_since(before).as_secs_f64();
            self.joules += joules;
            self.spent_j += joules;
            self.tokens += tokens.saturating_sub(counted);
        }
        if self.tokens >= TOKENS {
            let fresh = self.joules / self.tokens as f64;
            let blend = |old: f64| old + WEIGHT * (fresh - old);
            self.per_token_j = Some(self.per_token_j.map_or(fresh, blend));
            (self.joules, self.tokens) = (0.0, 0);
        }
        self.per_token_j
    }

    /// What left the batteries while requests ran, since the last call.
    pub fn take_spent_j(&mut self) -> f64 {
        std::mem::take(&mut self.spent_j)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn energy_counts_while_requests_run_on_battery() {
        let mut energy = Energy::default();
        let start = Instant::now();
        let mut see = |second: u64, tokens, power, busy| {
            energy.see(start + Duration::from_secs(second), tokens, power, busy)
        };
        assert_eq!(see(0, 0, Some(5.0), false), None);
        // Idle time and charging cost no token anything.
        assert_eq!(see(100, 0, Some(5.0), true), None);
        assert_eq!(see(102, 20, Some(5.0), false), Some(0.5));
        assert_eq!(see(200, 20, Some(-3.0), true), Some(0.5));
        assert_eq!(see(210, 120, None, true), Some(0.5));
        assert_eq!(see(220, 220, Some(10.0), true), Some(0.5));
        let now = see(230, 320, Some(10.0), false).unwrap();
        assert!((now - 0.65).abs() < 1e-9, "{now}");
        // 2 s at 5 W, then 10 s at 10 W.
        assert!((energy.take_spent_j() - 110.0).abs() < 1e-9);
        assert!(energy.take_spent_j().abs() < 1e-9);
    }
}
