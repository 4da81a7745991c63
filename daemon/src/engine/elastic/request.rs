//! One request that runs: how far its prompt is read, what was drawn, what its reader was told.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use nestd_elastic::kv::Sequence;
use nestd_elastic::text::constrain::Constraint;
use nestd_elastic::text::penalty::{Penalties, Seen};
use nestd_elastic::text::sample::{Draw, greedy, logprobs};
use nestd_elastic::text::stop::Stops;
use nestd_elastic::text::tokenizer::Decoder;

use super::super::Job;
use super::count;
use super::load::Text;
use super::prefix::Owner;
use crate::stream::Sink;
use crate::types::{Error, FinishReason, Logprob, Priority, Sampling, TokenLogprobs};

/// What a request begins with.
pub struct Start {
    /// The conversation as tokens.
    pub prompt: Vec<u32>,
    /// Caches that begin with the known part of the prompt.
    pub sequence: Sequence,
    /// Tokens of the prompt that are likely to come again.
    pub standing: Option<usize>,
}

/// A request that was let through.
pub struct Running {
    job: Job,
    /// The step in which its prompt was read last, or in which it began.
    pub read_in: u64,
    prompt: Vec<u32>,
    /// Tokens of the prompt that came from a cache.
    cached: usize,
    /// Where the standing instructions end, until a copy of their cache was kept.
    standing: Option<usize>,
    sequence: Sequence,
    /// The answer's tokens.
    answer: Vec<u32>,
    draw: Option<Draw>,
    penalties: Penalties,
    seen: Seen,
    /// What keeps the answer to its schema.
    constraint: Option<Constraint>,
    decoder: Decoder,
    stops: Stops,
}

/// What a step did for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is more to do.
    GoesOn,
    /// The standing instructions are read, and nothing more: their cache can be kept.
    Standing,
    /// It is over.
    Ended(FinishReason),
    /// The model gave no number to choose by.
    Broken,
    /// The answer's schema turned out to be too much to follow, and why.
    Unfit(String),
}

impl Running {
    /// Begins a request after so many steps.
    pub fn new(
        job: Job,
        start: Start,
        constraint: Option<Constraint>,
        text: &Text,
        steps: u64,
    ) -> Self {
        let Start { prompt, sequence, standing } = start;
        let cached = sequence.len();
        let request = &job.request;
        job.sink.prefill(count(cached), count(prompt.len()), count(cached));
        #[expect(clippy::cast_possible_truncation, reason = "a penalty needs no 53 bits")]
        let penalty = |value: Option<f64>, none: f32| value.map_or(none, |value| value as f32);
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            request.sampling;
        Self {
            cached,
            standing: standing.filter(|standing| *standing > cached),
            sequence,
            answer: Vec::new(),
            draw: draw(&request.sampling, text),
            penalties: Penalties {
                repetition: penalty(repetition_penalty, 1.0),
                presence: penalty(presence_penalty, 0.0),
                frequency: penalty(frequency_penalty, 0.0),
                count_prompt: false,
            },
            seen: Seen::new(&prompt),
            constraint,
            decoder: Decoder::default(),
            stops: Stops::new(request.stopping.stop.clone()),
            prompt,
            read_in: steps,
            job,
        }
    }

    /// Where its reader is told.
    pub fn sink(&self) -> &Sink {
        &self.job.sink
    }

    /// How urgent it is.
    pub fn priority(&self) -> Priority {
        self.job.request.priority
    }

    /// Whether only its prompt is to be read.
    pub fn prewarms(&self) -> bool {
        self.job.request.prewarm
    }

    /// Its KV caches.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Its KV caches, for a step.
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    /// Tokens of the prompt that are still to be read.
    pub fn unread(&self) -> usize {
        self.prompt.len().saturating_sub(self.sequence.len())
    }

    /// The tokens of its next step: some of the prompt, at most `chunk`, or the one drawn last.
    pub fn next(&self, chunk: usize) -> Vec<u32> {
        let read = self.sequence.len();
        if read >= self.prompt.len() {
            return self.answer.last().copied().into_iter().collect();
        }
        // The standing instructions end a chunk, so that their cache can be copied there.
        let end = self.standing.unwrap_or(usize::MAX).min(read + chunk).min(self.prompt.len());
        self.prompt.get(read..end).unwrap_or_default().to_vec()
    }

    /// The prompt's tokens so far.
    pub fn read_so_far(&self) -> &[u32] {
        self.prompt.get(..self.sequence.len()).unwrap_or(&self.prompt)
    }

    /// A step has read more of the prompt, and no token is to be drawn.
    pub fn read(&mut self) -> Outcome {
        let read = self.sequence.len();
        self.sink().prefill(count(read), count(self.prompt.len()), count(self.cached));
        if self.standing == Some(read) {
            self.standing = None;
            return Outcome::Standing;
        }
        self.goes_on()
    }

    /// Whether there is more to do before a token is drawn.
    pub fn goes_on(&self) -> Outcome {
        if self.prewarms() && self.unread() == 0 {
            Outcome::Ended(FinishReason::Stop)
        } else {
            Outcome::GoesOn
        }
    }

    /// Draws the next token from its logits.
    pub fn draw(&mut self, logits: &mut [f32], text: &Text) -> Outcome {
        if self.answer.is_empty() {
            let all = count(self.prompt.len());
            self.sink().prefill(all, all, count(self.cached));
        }
        // What the model thinks, before anything is taken from it.
        let thought = self.job.request.top_logprobs.map(|top| (logits.to_vec(), top));
        self.penalties.apply(logits, &self.seen);
        if let Some(constraint) = &mut self.constraint {
            match constraint.allowed() {
                Ok(allowed) => allowed.apply(logits),
                Err(error) => return Outcome::Unfit(error.to_string()),
            }
        }
        let token = match &self.draw {
            None => greedy(logits),
            Some(draw) => draw.token(logits, self.sequence.len()),
        };
        let Some(token) = token.and_then(|token| u32::try_from(token).ok()) else {
            return Outcome::Broken;
        };
        if let Some(Err(error)) = self.constraint.as_mut().map(|c| c.accept(token)) {
            return Outcome::Unfit(error.to_string());
        }
        let told: Vec<_> =
            thought.and_then(|(logits, top)| told(&logits, token, top, text)).into_iter().collect();
        self.seen.push(token);
        self.answer.push(token);
        if text.tokenizer.ends(token) {
            self.sink().text_with("", 1, told);
            return Outcome::Ended(FinishReason::Stop);
        }
        let passed = self.stops.push(&self.decoder.push(&text.tokenizer, token));
        self.sink().text_with(&passed.text, 1, told);
        if passed.stopped {
            // What is held back after a stop string is no part of the answer.
            self.decoder = Decoder::default();
            return Outcome::Ended(FinishReason::Stop);
        }
        if self.constraint.as_ref().is_some_and(Constraint::is_complete) {
            return Outcome::Ended(FinishReason::Stop);
        }
        if self.answer.len() >= self.job.request.stopping.max_tokens as usize {
            return Outcome::Ended(FinishReason::Length);
        }
        Outcome::GoesOn
    }

    /// Ends the request; gives its caches with their tokens, and whose they are.
    pub fn finish(mut self, reason: FinishReason) -> (Owner, Vec<u32>, Sequence) {
        let rest = self.stops.push(&self.decoder.finish());
        let mut rest = rest.text;
        rest.push_str(&self.stops.finish());
        self.job.sink.text(&rest, 0);
        self.end(|sink| sink.finish(reason))
    }

    /// Ends the request as its reader, or who cancelled it, wants it; gives what was read so far.
    pub fn give_up(self) -> (Owner, Vec<u32>, Sequence) {
        // Dropping the sink tells the reader the cause.
        self.end(drop)
    }

    fn end(mut self, tell: impl FnOnce(Sink)) -> (Owner, Vec<u32>, Sequence) {
        let Job { sink, place, account, session, .. } = self.job;
        drop(place);
        tell(sink);
        self.prompt.append(&mut self.answer);
        (Owner { account, session }, self.prompt, self.sequence)
    }

    /// Ends the request with an error.
    pub fn fail(self, error: Error) {
        self.job.sink.fail(error);
    }
}

/// How likely a token was, and the `top` likeliest.
fn told(logits: &[f32], token: u32, top: u32, text: &Text) -> Option<TokenLogprobs> {
    let likely = logprobs(logits, token as usize, top as usize)?;
    let one = |id: u32, logprob: f32| Logprob {
        id,
        text: text.tokenizer.shown(id),
        logprob: logprob.into(),
    };
    let top = likely.top.iter().map(|(id, logprob)| one(*id, *logprob));
    Some(TokenLogprobs { token: one(token, likely.chosen), top: top.collect() })
}

/// How to draw, the model's own defaults where the request does not say. None is greedy.
fn draw(sampling: &Sampling, text: &Text) -> Option<Draw> {
    let defaults = &text.sampling;
    let temperature = sampling.temperature.unwrap_or(defaults.temperature);
    let top_k = sampling.top_k.unwrap_or(defaults.top_k);
    (temperature > 0.0).then(|| Draw {
        temperature,
        top_k: usize::try_from(top_k).unwrap_or(0),
        top_p: sampling.top_p.unwrap_or(defaults.top_p),
        min_p: sampling.min_p.unwrap_or(defaults.min_p),
        // The standard library's hasher starts at random: the one source of chance needed here.
        seed: sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
    })
}
