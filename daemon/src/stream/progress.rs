//! What the engine did so far for a request.

use std::time::{Duration, Instant};

use crate::types::{FinishReason, Finished, Timings, Usage};

/// What the engine did so far, for the last event.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) usage: Usage,
    /// Tokens of the prompt that were read, those from a cache included.
    pub(super) read_tokens: u32,
    pub(super) prefill_began: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    pub(super) sizes: Vec<String>,
}

impl Progress {
    /// Tokens of the prompt that were computed, and those of the answer.
    pub(super) fn computed(&self) -> (u32, u32) {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        // Before the answer, only a part may have been read.
        let read = if completion_tokens > 0 { prompt_tokens } else { self.read_tokens };
        (read.saturating_sub(cached_tokens), completion_tokens)
    }

    /// The last event of a request that was accepted then.
    pub(super) fn finished(&self, reason: FinishReason, accepted: Instant) -> Finished {
        let rate = |tokens: u32, from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) if to > from => f64::from(tokens) / (to - from).as_secs_f64(),
            _ => 0.0,
        };
        let since_accepted =
            |at: Option<Instant>| at.map_or(0, |at| micros(at.saturating_duration_since(accepted)));
        let computed = self.usage.prompt_tokens.saturating_sub(self.usage.cached_tokens);
        Finished {
            reason,
            usage: self.usage,
            timings: Timings {
                queue_us: since_accepted(self.prefill_began.or_else(|| Some(Instant::now()))),
                ttft_us: since_accepted(self.first_token),
                prefill_tokens_per_s: rate(computed, self.prefill_began, self.first_token),
                decode_tokens_per_s: rate(
                    self.usage.completion_tokens.saturating_sub(1),
                    self.first_token,
                    self.last_token,
                ),
            },
            sizes: self.sizes.clone(),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
