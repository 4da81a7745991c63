//! What is counted of the requests of one priority.

use std::collections::BTreeMap;
use std::time::Duration;

use nestd_client::Error;

use super::super::figures::Sorted;
use super::client::Seen;
use crate::{json, problem};

/// Counts and times, in milliseconds.
#[derive(Clone, Default)]
pub struct Tally {
    /// Calls that were made, those that were refused too.
    pub requests: u64,
    /// How they ended: the reason of the end, or the error's name.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Of those, with an answer.
    pub answered: u64,
    ttft: Vec<f64>,
    between: Vec<f64>,
    per_token: Vec<f64>,
    queue: Vec<f64>,
    /// Of the answered ones.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}

impl Tally {
    pub fn begun(&mut self) {
        self.requests += 1;
    }

    pub fn ended(&mut self, seen: &Seen) {
        *self.outcomes.entry(json::reason(seen.end.reason())).or_default() += 1;
        self.answered += 1;
        let usage = seen.end.usage.unwrap_or_default();
        let timings = seen.end.timings.unwrap_or_default();
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.cached_tokens += u64::from(usage.cached_tokens);
        self.completion_tokens += u64::from(usage.completion_tokens);
        self.queue.push(timings.queue_us as f64 / 1e3);
        self.ttft.extend(seen.ttft().map(ms));
        self.between.extend(seen.between.iter().copied().map(ms));
        // Of a single piece, or a single token, it is not known.
        if let Some(time) = seen.answering().filter(|time| !time.is_zero())
            && usage.completion_tokens > 1
        {
            self.per_token.push(ms(time) / f64::from(usage.completion_tokens - 1));
        }
    }

    pub fn failed(&mut self, error: &Error) {
        *self.outcomes.entry(problem::reason(error)).or_default() += 1;
    }

    /// Calls that had no end when the measurement had.
    pub fn unfinished(&self) -> u64 {
        self.requests.saturating_sub(self.outcomes.values().sum())
    }

    /// Pieces of text that came of the answered ones.
    pub fn pieces(&self) -> usize {
        self.ttft.len() + self.between.len()
    }

    /// Calls that ended with this error.
    pub fn failures(&self, reason: &str) -> u64 {
        self.outcomes.get(reason).copied().unwrap_or_default()
    }

    /// Puts another one's in.
    pub fn add(&mut self, other: &Self) {
        let Self { requests, outcomes, answered, ttft, between, per_token, queue, .. } = other;
        self.requests += requests;
        self.answered += answered;
        for (outcome, count) in outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        self.ttft.extend(ttft);
        self.between.extend(between);
        self.per_token.extend(per_token);
        self.queue.extend(queue);
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }

    /// What took how long: the name for a program, the one for a person, and the times in order.
    pub fn times(&self) -> [(&'static str, &'static str, Sorted); 4] {
        let sorted = |times: &[f64]| Sorted::new(times.iter().copied());
        [
            ("ttft_ms", "first token", sorted(&self.ttft)),
            ("between_tokens_ms", "between tokens", sorted(&self.between)),
            ("per_token_ms", "per token", sorted(&self.per_token)),
            ("queue_ms", "in the queue", sorted(&self.queue)),
        ]
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
