//! What happens to a request, in the order in which its reader sees it.

use super::Error;

/// One event. The stream is any number of the others, then `Finished` or `Failed`, exactly once.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Waits for this many other requests.
    Queued {
        /// 0 is next.
        position: u32,
    },
    /// Waits for the model, or is a load itself.
    Loading {
        /// 0 to 1, an estimate.
        fraction: f64,
    },
    /// The prompt is being read.
    Prefill {
        /// Tokens read.
        done_tokens: u32,
        /// Tokens of the prompt.
        total_tokens: u32,
    },
    /// A piece of the answer.
    Text(Text),
    /// The answer goes on at another MatFormer size.
    SizeChanged {
        /// The size before.
        from: String,
        /// The size from here on.
        to: String,
        /// Why.
        reason: String,
    },
    /// The end of a request that did not fail.
    Finished(Finished),
    /// The end of one that did.
    Failed(Error),
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    /// What follows the text before; may be empty.
    pub delta: String,
    /// The tokens drawn since the piece before, where the request asked for them.
    pub logprobs: Vec<TokenLogprobs>,
}

impl Text {
    /// Memory that it takes, more or less.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |one: &Logprob| size_of::<Logprob>() + one.text.len();
        let token = |one: &TokenLogprobs| {
            size_of::<Vec<Logprob>>() + of(&one.token) + one.top.iter().map(of).sum::<usize>()
        };
        self.delta.len() + self.logprobs.iter().map(token).sum::<usize>()
    }

    /// Joins the next piece to it.
    pub fn append(&mut self, mut next: Self) {
        self.delta.push_str(&next.delta);
        self.logprobs.append(&mut next.logprobs);
    }
}

/// How likely a token of an answer was, as the model computed it: over all tokens, at temperature 1,
/// before anything changed it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The one that was drawn.
    pub token: Logprob,
    /// The likeliest, the likeliest first.
    pub top: Vec<Logprob>,
}

/// A token and its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Its number in the vocabulary.
    pub id: u32,
    /// What it reads; U+FFFD for a part of a character, its name for a control token.
    pub text: String,
    /// The natural logarithm of its probability.
    pub logprob: f64,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for others, or for the model.
    Queued,
    /// Its prompt is being read.
    Prefill,
    /// Its answer is being made.
    Decode,
}

impl Stage {
    /// The name on D-Bus.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// How a request ended, and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens.
    pub usage: Usage,
    /// Times and rates.
    pub timings: Timings,
    /// The MatFormer sizes that made the answer, in order of first use.
    pub sizes: Vec<String>,
}

/// Why a request ended without an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or a stop string was reached.
    #[default]
    Stop,
    /// The maximum of new tokens was made.
    Length,
    /// The client asked for the end.
    Cancelled,
    /// The request's deadline passed.
    Deadline,
}

impl FinishReason {
    /// Whether the answer is one, however short; else nobody waited for the rest.
    #[must_use]
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Stop | Self::Length)
    }

    /// The name on D-Bus and in the metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the conversation, template included.
    pub prompt_tokens: u32,
    /// Of those, taken from a KV cache.
    pub cached_tokens: u32,
    /// Made.
    pub completion_tokens: u32,
}

/// Times of a request, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From the call to the start of prefill.
    pub queue_us: u64,
    /// From the call to the first token; 0 if none was made.
    pub ttft_us: u64,
    /// Prompt tokens over the time from the start of prefill to the first token; 0 if unknown.
    pub prefill_tokens_per_s: f64,
    /// Tokens after the first over the time from first to last; 0 with fewer than two.
    pub decode_tokens_per_s: f64,
}
