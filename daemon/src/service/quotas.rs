//! What each user has used of its tokens and, on battery, of its energy.
//!
//! What was used fades at the quota's rate, so a whole quota can be used at once and is back after its
//! period. A request may begin while there is some left, and is charged when it ends, whatever it took:
//! a user can be over its quota by what its running and waiting requests make, and then waits longer.
//!
//! The service owns it and asks before it accepts a request; each request's stream charges its end. The
//! governor tells what a token costs. The quotas of places are the queue's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::types::{Error, Quotas as Settings};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// With so many accounts, those are forgotten that have used nothing lately.
const TIDY: usize = 64;

/// What a token costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Power {
    /// Whether the device runs on a battery.
    pub on_battery: bool,
    /// Joules for each token of an answer; None while that is not known.
    pub per_token_j: Option<f64>,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
}

/// All accounts. One instance, which the service owns.
pub(super) struct Quotas {
    state: Mutex<State>,
}

struct State {
    settings: Settings,
    power: Power,
    accounts: HashMap<String, Account>,
}

#[derive(Clone, Copy)]
struct Account {
    tokens: Used,
    joules: Used,
}

/// What was used of a quota, and when that was true.
#[derive(Clone, Copy)]
struct Used {
    amount: f64,
    at: Instant,
}

impl Used {
    /// What has not faded yet, of so much in a period.
    fn left(&self, limit: u64, period: Duration, now: Instant) -> f64 {
        let faded = now.saturating_duration_since(self.at).div_duration_f64(period);
        (self.amount - faded * limit as f64).max(0.0)
    }

    fn add(&mut self, amount: f64, limit: u64, period: Duration, now: Instant) {
        // Without a quota nothing is owed when there is one again.
        let amount = if limit == 0 { 0.0 } else { self.left(limit, period, now) + amount };
        *self = Self { amount, at: now };
    }

    /// How long until there is some of the quota again; None if there is.
    fn wait(&self, limit: u64, period: Duration, now: Instant) -> Option<Duration> {
        if limit == 0 {
            return None;
        }
        let over = self.left(limit, period, now) - limit as f64;
        (over >= 0.0).then(|| period.mul_f64((over / limit as f64).min(1e6)))
    }
}

impl Quotas {
    pub(super) fn new(settings: Settings) -> Self {
        let (power, accounts) = (Power::default(), HashMap::new());
        Self { state: Mutex::new(State { settings, power, accounts }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies new settings; what was used stays used, unless there is no quota of it any more.
    pub(super) fn configure(&self, settings: Settings) {
        let mut state = self.lock();
        state.settings = settings;
        for account in state.accounts.values_mut() {
            if settings.tokens_per_minute == 0 {
                account.tokens.amount = 0.0;
            }
            if settings.energy_j_per_hour == 0 {
                account.joules.amount = 0.0;
            }
        }
    }

    /// What tokens cost from now on.
    pub(super) fn set_power(&self, power: Power) {
        self.lock().power = power;
    }

    /// Whether a request of the user may begin.
    pub(super) fn check(&self, user: &str, now: Instant) -> Result<(), Error> {
        let state = self.lock();
        let Some(account) = state.accounts.get(user) else { return Ok(()) };
        let Settings { tokens_per_minute, energy_j_per_hour, .. } = state.settings;
        let over = |what: &str, limit, wait: Duration| {
            // A moment more, so that who comes again then is let in.
            let wait = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
            let retry_after_ms = wait.saturating_add(1);
            let what = format!("this user's {what} are used up: try again in {retry_after_ms} ms");
            Err(Error::OverQuota { what, limit, retry_after_ms })
        };
        if let Some(wait) = account.tokens.wait(tokens_per_minute, MINUTE, now) {
            return over(&format!("{tokens_per_minute} tokens a minute"), tokens_per_minute, wait);
        }
        if state.power.on_battery
            && let Some(wait) = account.joules.wait(energy_j_per_hour, HOUR, now)
        {
            let what = format!("{energy_j_per_hour} joules an hour on battery");
            return over(&what, energy_j_per_hour, wait);
        }
        Ok(())
    }

    /// A request of the user has ended.
    pub(super) fn charge(&self, user: &str, taken: Taken, now: Instant) {
        let mut state = self.lock();
        let Settings { tokens_per_minute, energy_j_per_hour, .. } = state.settings;
        let tokens = f64::from(taken.prompt_tokens) + f64::from(taken.completion_tokens);
        if tokens <= 0.0 || (tokens_per_minute == 0 && energy_j_per_hour == 0) {
            return;
        }
        // Who has a prompt read for no answer is not free: the joules of a token are those of all.
        let answered = f64::from(taken.completion_tokens.max(1));
        let power = state.power;
        let joules = power.per_token_j.filter(|_| power.on_battery).map_or(0.0, |j| j * answered);
        if state.accounts.len() >= TIDY {
            state.accounts.retain(|_, account| {
                account.tokens.left(tokens_per_minute, MINUTE, now) > 0.0
                    || account.joules.left(energy_j_per_hour, HOUR, now) > 0.0
            });
        }
        let none = Used { amount: 0.0, at: now };
        let account = Account { tokens: none, joules: none };
        let account = state.accounts.entry(user.to_owned()).or_insert(account);
        account.tokens.add(tokens, tokens_per_minute, MINUTE, now);
        account.joules.add(joules, energy_j_per_hour, HOUR, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        parallel_requests: 0,
        queued_requests: 0,
        tokens_per_minute: 600,
        energy_j_per_hour: 3600,
    };

    fn taken(prompt_tokens: u32, completion_tokens: u32) -> Taken {
        Taken { prompt_tokens, completion_tokens }
    }

    fn refused(result: Result<(), Error>) -> Option<(u64, u64)> {
        match result {
            Ok(()) => None,
            Err(Error::OverQuota { limit, retry_after_ms, .. }) => Some((limit, retry_after_ms)),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn tokens_come_back_with_time() {
        let quotas = Quotas::new(SETTINGS);
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(quotas.check("a", start), Ok(()));
        quotas.charge("a", taken(500, 99), start);
        assert_eq!(quotas.check("a", start), Ok(()), "one is left");
        quotas.charge("a", taken(0, 101), start);
        assert_eq!(refused(quotas.check("a", start)), Some((600, 10_001)));
        assert_eq!(quotas.check("b", start), Ok(()), "another's are another's");
        assert_eq!(refused(quotas.check("a", after(9_000))), Some((600, 1_001)));
        assert_eq!(quotas.check("a", after(10_001)), Ok(()));
        // What is not used is not saved up beyond a minute's.
        quotas.charge("a", taken(600, 0), after(3_600_000));
        assert!(quotas.check("a", after(3_600_000)).is_err());
    }

    #[test]
    fn energy_counts_on_battery_where_it_is_known() {
        let quotas = Quotas::new(Settings { tokens_per_minute: 0, ..SETTINGS });
        let now = Instant::now();
        let power = |on_battery, per_token_j| quotas.set_power(Power { on_battery, per_token_j });
        quotas.charge("a", taken(0, 5000), now);
        power(false, Some(1.0));
        quotas.charge("a", taken(0, 5000), now);
        power(true, None);
        quotas.charge("a", taken(0, 5000), now);
        assert_eq!(quotas.check("a", now), Ok(()));
        power(true, Some(2.0));
        quotas.charge("a", taken(100, 0), now);
        quotas.charge("a", taken(0, 1800), now);
        assert_eq!(refused(quotas.check("a", now)), Some((3600, 2_001)));
        power(false, None);
        assert_eq!(quotas.check("a", now), Ok(()), "on mains there is no budget");
        power(true, None);
        assert!(quotas.check("a", now).is_err());
        assert_eq!(quotas.check("a", now + Duration::from_millis(2_001)), Ok(()));
    }

    #[test]
    fn a_quota_that_changes_leaves_what_was_used() {
        let quotas = Quotas::new(SETTINGS);
        let now = Instant::now();
        quotas.charge("a", taken(600, 0), now);
        quotas.configure(Settings { tokens_per_minute: 1200, ..SETTINGS });
        assert_eq!(quotas.check("a", now), Ok(()));
        quotas.configure(Settings { tokens_per_minute: 0, ..SETTINGS });
        quotas.charge("a", taken(100_000, 0), now);
        assert_eq!(quotas.check("a", now), Ok(()));
        quotas.configure(Settings { tokens_per_minute: 1, ..SETTINGS });
        assert_eq!(quotas.check("a", now), Ok(()), "what was free then is not owed now");
    }

    #[test]
    fn accounts_that_are_settled_are_forgotten() {
        let quotas = Quotas::new(SETTINGS);
        let start = Instant::now();
        for connection in 0..1000 {
            let now = start + Duration::from_secs(connection);
            quotas.charge(&format!(":1.{connection}"), taken(1, 0), now);
        }
        assert!(quotas.lock().accounts.len() <= TIDY);
    }
}
