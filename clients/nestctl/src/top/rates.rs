//! Rates, from the differences of looks.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::look::Look;

/// Rates are of this time, or of less while less was seen.
const TOKENS: Duration = Duration::from_secs(5);
const REQUESTS: Duration = Duration::from_secs(60);
/// The median is of so many first tokens at most.
const FIRST_TOKENS: usize = 100;

/// What was seen so far.
#[derive(Default)]
pub struct Rates {
    /// The oldest first, of the last minute.
    seen: VecDeque<Seen>,
    /// Each request's time to first token, the oldest first.
    ttft_us: VecDeque<(u64, u64)>,
    /// Tokens of the running requests, at the last look and at the one before.
    tokens: HashMap<u64, u32>,
    before: HashMap<u64, u32>,
}

#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    uptime_ms: u64,
    completion_tokens: u64,
    ended_requests: u64,
}

impl Rates {
    /// Takes a look into account.
    pub fn see(&mut self, look: &Look) {
        let activity = &look.activity;
        if self.seen.back().is_some_and(|last| last.uptime_ms > activity.uptime_ms) {
            // Another daemon, which counts from zero.
            *self = Self::default();
        }
        self.seen.push_back(Seen {
            at: look.at,
            uptime_ms: activity.uptime_ms,
            completion_tokens: activity.completion_tokens,
            ended_requests: activity.ended_requests,
        });
        // One that is older than the time stays, so that the whole of it is covered.
        while self.seen.get(1).is_some_and(|second| look.at - second.at > REQUESTS) {
            self.seen.pop_front();
        }
        let tokens = activity.requests.iter().map(|r| (r.request_id, r.completion_tokens));
        self.before = std::mem::replace(&mut self.tokens, tokens.collect());
        for request in activity.requests.iter().filter(|request| request.ttft_us > 0) {
            if !self.ttft_us.iter().any(|(id, _)| *id == request.request_id) {
                self.ttft_us.push_back((request.request_id, request.ttft_us));
            }
        }
        while self.ttft_us.len() > FIRST_TOKENS {
            self.ttft_us.pop_front();
        }
    }

    /// Of all requests together; None after the first look.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let (from, to) = self.over(TOKENS)?;
        Some(per_s(to.completion_tokens.saturating_sub(from.completion_tokens), from, to))
    }

    /// Requests that ended or were refused.
    pub fn requests_per_min(&self) -> Option<f64> {
        let (from, to) = self.over(REQUESTS)?;
        Some(60.0 * per_s(to.ended_requests.saturating_sub(from.ended_requests), from, to))
    }

    /// The median time to first token of the requests that were seen decoding.
    pub fn ttft_p50_us(&self) -> Option<u64> {
        let mut all: Vec<u64> = self.ttft_us.iter().map(|(_, ttft)| *ttft).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    }

    /// Of one request, between the last two looks.
    pub fn tokens_per_s_of(&self, id: u64) -> Option<f64> {
        let mut looks = self.seen.iter().rev();
        let (to, from) = (looks.next()?, looks.next()?);
        let made = self.tokens.get(&id)?.checked_sub(*self.before.get(&id)?)?;
        Some(per_s(made.into(), *from, *to))
    }

    /// The last look, and the newest one that is at least so much older, or the oldest.
    fn over(&self, time: Duration) -> Option<(Seen, Seen)> {
        let to = *self.seen.back()?;
        let old = self.seen.iter().rev().find(|seen| to.at - seen.at >= time);
        let from = *old.or_else(|| self.seen.front())?;
        (to.at > from.at).then_some((from, to))
    }
}

fn per_s(count: u64, from: Seen, to: Seen) -> f64 {
    count as f64 / (to.at - from.at).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use nestd_client::v1::{ActiveRequest, GovernorReport, ListRequestsResponse, StatusReport};

    use super::*;

    fn look(start: Instant, second: u64, tokens: u64, ended: u64, own: &[(u64, u32, u64)]) -> Look {
        let requests = own.iter().map(|(request_id, completion_tokens, ttft_us)| ActiveRequest {
            request_id: *request_id,
            completion_tokens: *completion_tokens,
            ttft_us: *ttft_us,
            ..ActiveRequest::default()
        });
        Look {
            at: start + Duration::from_secs(second),
            status: StatusReport::default(),
            governor: GovernorReport::default(),
            activity: ListRequestsResponse {
                requests: requests.collect(),
                uptime_ms: second * 1000,
                completion_tokens: tokens,
                ended_requests: ended,
                foreground: None,
            },
        }
    }

    #[test]
    fn rates_are_differences_over_their_time() {
        let start = Instant::now();
        let mut rates = Rates::default();
        rates.see(&look(start, 1, 100, 10, &[]));
        assert_eq!((rates.tokens_per_s(), rates.requests_per_min()), (None, None));
        rates.see(&look(start, 3, 120, 11, &[(7, 4, 300)]));
        assert_eq!((rates.tokens_per_s(), rates.requests_per_min()), (Some(10.0), Some(30.0)));
        assert_eq!(rates.tokens_per_s_of(7), None, "it was not there before");
        rates.see(&look(start, 4, 140, 11, &[(7, 24, 300), (8, 1, 100)]));
        assert_eq!(rates.tokens_per_s_of(7), Some(20.0));
        assert_eq!(rates.tokens_per_s_of(9), None);
        assert_eq!(rates.ttft_p50_us(), Some(300));
        // Five quiet seconds: no token counts any more, but the requests of the minute do.
        rates.see(&look(start, 9, 140, 11, &[]));
        assert_eq!((rates.tokens_per_s(), rates.requests_per_min()), (Some(0.0), Some(7.5)));
        assert_eq!(rates.ttft_p50_us(), Some(300), "they are remembered");
        for second in 10..1000 {
            rates.see(&look(start, second, 140, 11, &[]));
        }
        assert_eq!(rates.requests_per_min(), Some(0.0));
        assert!(rates.seen.len() < 70);
    }

    #[test]
    fn a_daemon_that_was_restarted_counts_anew() {
        let start = Instant::now();
        let mut rates = Rates::default();
        rates.see(&look(start, 100, 1000, 50, &[(7, 4, 300)]));
        let mut restarted = look(start, 102, 3, 1, &[]);
        restarted.activity.uptime_ms = 500;
        rates.see(&restarted);
        assert_eq!((rates.tokens_per_s(), rates.ttft_p50_us()), (None, None));
    }
}
