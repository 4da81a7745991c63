//! The engine `elastic`: a GGUF file of Gemma 3n, mapped, by the crate `nestd-elastic`.
//!
//! The engine thread itself computes, with the pool's threads. A step is one pass over the weights: a
//! chunk of the prompt of the first request that is not done reading, and the next token of every
//! request that is. So a cancelled request ends within a token or a chunk, and a change of the size
//! takes effect with the next step: the KV caches serve all sizes.

mod load;
mod prefix;
mod request;

use std::time::{Duration, Instant};

use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{SLACK, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::sizes::Slice;

pub use load::{Settings, inspect};

use self::load::{Rung, Text};
use self::prefix::Prefixes;
use self::request::{Outcome, Running, Start};
use super::{Engine, Job, Step};
use crate::types::{Error, GenerateRequest, Loaded, Message};

/// Prompt tokens in a step when nobody else waits for a token, and when somebody does.
const CHUNK: usize = SLACK;
const SHARED_CHUNK: usize = 32;
/// How long a size is in use before the memory of what it does not read is given back: bringing it in
/// again costs more than keeping it for a moment.
const SETTLED: Duration = Duration::from_secs(2);

/// A loaded model.
pub struct Elastic {
    loaded: Loaded,
    model: Model,
    text: Text,
    runner: Runner,
    rungs: Vec<Rung>,
    /// The size in use.
    slice: Slice,
    store: Store,
    prefixes: Prefixes,
    running: Vec<Running>,
    /// When the size was changed, until its memory was given back.
    switched: Option<Instant>,
}

impl Engine for Elastic {
    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn start(&mut self, job: Job) {
        match self.accept(&job.request) {
            Ok(start) => {
                job.sink.size(&self.loaded.size);
                self.running.push(Running::new(job, start, &self.text));
            }
            Err(error) => job.sink.fail(error),
        }
    }

    fn step(&mut self) -> Step {
        // Dropping a request's sink tells its reader the cause.
        self.running.retain(|running| !running.sink().cancelled().is_cancelled());
        if !self.running.is_empty()
            && let Err(error) = self.compute()
        {
            tracing::error!(%error, "the step failed");
            let (model, problem) = (self.loaded.model.clone(), error.to_string());
            let error = Error::ModelInvalid { model, problem };
            self.running.drain(..).for_each(|running| running.fail(error.clone()));
        }
        match (self.running.is_empty(), self.tidy()) {
            (false, _) => Step::Ready,
            (true, Some(time)) => Step::Wait(time),
            (true, None) => Step::Idle,
        }
    }

    fn switch(&mut self, size: &str, reason: &str) -> Option<()> {
        let rung = self.rungs.iter().find(|rung| rung.name == size)?;
        self.model.read_ahead(&self.slice, &rung.slice);
        self.slice = rung.slice.clone();
        self.switched = Some(Instant::now());
        let from = std::mem::replace(&mut self.loaded.size, size.to_owned());
        for running in &self.running {
            running.sink().size_changed(&from, size, reason);
        }
        Some(())
    }

    fn count_tokens(&mut self, messages: &[Message]) -> Result<u32, Error> {
        Ok(count(self.text.prompt(messages)?.len()))
    }
}

impl Elastic {
    /// Checks that a request fits, and finds what is known of its prompt.
    fn accept(&mut self, request: &GenerateRequest) -> Result<Start, Error> {
        let prompt = self.text.prompt(&request.messages)?;
        let max_tokens = request.stopping.max_tokens;
        let context_tokens = self.loaded.context_tokens;
        let needed = prompt.len().saturating_add(max_tokens as usize);
        if needed > context_tokens as usize {
            let prompt_tokens = count(prompt.len());
            return Err(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
        }
        let shape = Shape::new(self.model.config(), needed, self.store);
        let sequence = self.prefixes.take(&prompt, &shape, self.model.config());
        let standing = self.text.standing(&request.messages, &prompt);
        let constraint = request
            .json_schema
            .as_deref()
            .map(|schema| self.text.constraint(schema))
            .transpose()?;
        Ok(Start { prompt, sequence, standing, constraint })
    }

    /// One pass over the weights.
    fn compute(&mut self) -> Result<(), nestd_elastic::error::Error> {
        // One prompt is read at a time: the first is answered sooner, and the last no later.
        let reader = self.running.iter().position(|running| running.unread() > 0);
        let others = self.running.iter().any(|running| running.unread() == 0);
        let chunk = if others { SHARED_CHUNK } else { CHUNK };
        let mut given = Vec::new();
        for (index, running) in self.running.iter().enumerate() {
            let computed = running.unread() == 0 || Some(index) == reader;
            given.push(if computed { running.next(chunk) } else { Vec::new() });
        }
        let mut parts = Vec::new();
        let mut wanted = Vec::new();
        for (running, tokens) in self.running.iter_mut().zip(&given) {
            let draw = tokens.len() >= running.unread() && !tokens.is_empty();
            let logits = if draw { Logits::Last } else { Logits::None };
            wanted.push(draw);
            if !tokens.is_empty() {
                parts.push(Part { sequence: running.sequence_mut(), tokens, logits });
            }
        }
        let logits = self.runner.step(&self.model, &self.slice, &mut parts)?;
        let mut rows = logits.chunks_exact_mut(self.model.vocabulary());
        let mut ended = Vec::new();
        for (index, running) in self.running.iter_mut().enumerate() {
            let drawn = wanted.get(index) == Some(&true);
            let outcome = match rows.next().filter(|_| drawn) {
                Some(logits) => running.draw(logits, &self.text),
                None if given.get(index).is_none_or(Vec::is_empty) => continue,
                None => running.read(),
            };
            match outcome {
                Outcome::GoesOn => {}
                Outcome::Standing => self.prefixes.keep(
                    running.read_so_far(),
                    running.sequence(),
                    self.model.config(),
                ),
                outcome => ended.push((index, outcome)),
            }
        }
        for (index, outcome) in ended.into_iter().rev() {
            let running = self.running.remove(index);
            match outcome {
                Outcome::Ended(reason) => {
                    let (tokens, sequence) = running.finish(reason);
                    self.prefixes.give(tokens, sequence);
                }
                Outcome::Unfit(why) => running.fail(Error::invalid("json_schema", why)),
                _ => {
                    let problem = "the model's output is not finite: are the weights damaged?";
                    running.fail(Error::Internal(problem.into()));
                }
            }
        }
        Ok(())
    }

    /// Gives memory back that the size in use does not read, once it has been in use for a while. Tells
    /// when that is due.
    fn tidy(&mut self) -> Option<Duration> {
        let left = SETTLED.saturating_sub(self.switched?.elapsed());
        if left > Duration::ZERO {
            return Some(left);
        }
        self.switched = None;
        self.model.give_back(&self.slice);
        None
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
