//! The engine `elastic`: a GGUF file of Gemma 3n, mapped, by the crate `nestd-elastic`.
//!
//! The engine thread has steps computed by the pool's threads, and samples. A step is one pass over the weights: a
//! chunk of the prompt of the first request that is not done reading, and the next token of every
//! request that is. Background requests stand still while an interactive one runs, but for one step in
//! sixteen, in which the prompt that waited longest is read, too: everything ends some day. So a cancelled
//! request ends within a token or a chunk, an interactive one begins with the next step, and a change of the size
//! takes effect there too: the KV caches serve all sizes.
//!
//! What takes longer than a step has a thread of its own: reading a JSON Schema, reading weights ahead, and
//! giving memory back after a change of the size.

mod load;
mod pages;
mod prefix;
mod request;
mod spill;
mod vault;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{SLACK, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::sizes::Slice;
use nestd_elastic::text::constrain::Constraint;

pub use load::{Settings, inspect};
pub use spill::Settings as SpillSettings;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use vault::fuzzing;

use self::load::{Rung, Text};
use self::pages::Pages;
use self::prefix::Prefixes;
use self::request::{Outcome, Running, Start};
use self::spill::{Away, Spill};
use self::waiting::{Back, Caches, Waiting};
use super::{Constraints, Counter, Engine, Job, Probe, Step};
use crate::types::{Error, GenerateRequest, Loaded, Message, Priority};

/// Prompt tokens in a step when nobody else waits for a token, and when somebody does, or nobody waits for
/// the prompt: an interactive request that comes begins with the next step.
const CHUNK: usize = SLACK;
const SHARED_CHUNK: usize = 32;
/// In one step of so many background requests take part whatever else runs, and the prompt that waited
/// longest is read: they end some day.
const FAIR_STEP: u64 = 16;
/// Threads that read schemas: as many as requests may run, and some of requests that were cancelled.
const SCHEMAS: usize = 80;
/// How often is looked for what requests wait for, when nothing else is to do.
const WAITING: Duration = Duration::from_millis(2);

/// A loaded model.
pub struct Elastic {
    loaded: Loaded,
    model: Arc<Model>,
    text: Arc<Text>,
    runner: Runner,
    rungs: Vec<Rung>,
    /// The size in use.
    slice: Slice,
    store: Store,
    prefixes: Prefixes,
    /// Sessions' caches outside of memory, where they may go there.
    spill: Option<Spill>,
    /// Tokens of a prompt in a second, once some were read.
    prefill: Option<f64>,
    /// Requests that cannot begin yet.
    waiting: Vec<Waiting>,
    /// Shared with each thread that reads one, also for a request that was cancelled.
    readers: Arc<()>,
    running: Vec<Running>,
    /// Steps so far.
    steps: u64,
    constraints: Constraints,
    pages: Pages,
    /// What all KV caches take, for those who ask from elsewhere.
    kv_bytes: Arc<AtomicU64>,
}

impl Engine for Elastic {
    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn start(&mut self, job: Job) {
        let prompt = match self.prompt(&job.request) {
            Ok(prompt) => prompt,
            Err(error) => return job.sink.fail(error),
        };
        let schema = match job.request.json_schema.clone().map(|schema| self.read_schema(schema)) {
            Some(Err(error)) => return job.sink.fail(error),
            Some(Ok(schema)) => Some(schema),
            None => None,
        };
        let caches = self.bring_back(&job, &prompt);
        let waits = schema.is_some() || caches.is_some();
        let waiting = Waiting { job, prompt, schema, constraint: None, caches };
        if waits {
            self.waiting.push(waiting);
        } else {
            self.begin(waiting, None);
        }
    }

    fn step(&mut self) -> Step {
        self.drop_cancelled();
        self.waiting.retain(|waiting| !waiting.job.sink.cancelled().is_cancelled());
        self.collect();
        if !self.running.is_empty()
            && let Err(error) = self.compute()
        {
            tracing::error!(%error, "the step failed");
            let (model, problem) = (self.loaded.model.clone(), error.to_string());
            let error = Error::ModelInvalid { model, problem };
            self.running.drain(..).for_each(|running| running.fail(error.clone()));
        }
        self.tell_kv();
        let tidy = self.pages.tidy(&self.slice);
        if !self.running.is_empty() {
            return Step::Ready;
        }
        let waiting = (!self.waiting.is_empty()).then_some(WAITING);
        waiting.into_iter().chain(tidy).min().map_or(Step::Idle, Step::Wait)
    }

    fn switch(&mut self, size: &str, reason: &str) -> Option<()> {
        let rung = self.rungs.iter().find(|rung| rung.name == size)?;
        self.pages.switch(&rung.slice);
        self.slice = rung.slice.clone();
        let from = std::mem::replace(&mut self.loaded.size, size.to_owned());
        let waiting = self.waiting.iter().map(|waiting| &waiting.job.sink);
        for sink in self.running.iter().map(Running::sink).chain(waiting) {
            sink.size_changed(&from, size, reason);
        }
        Some(())
    }

    fn prepare(&mut self, size: &str) {
        if let Some(rung) = self.rungs.iter().find(|rung| rung.name == size) {
            self.pages.prepare(&rung.slice);
        }
    }

    fn constrain(&mut self, constraints: Constraints) {
        self.constraints = constraints;
        if !constraints.caches {
            self.prefixes.clear();
            self.tell_kv();
        }
    }

    fn forget(&mut self, session: u64) {
        self.prefixes.forget(session);
        if let Some(spill) = &mut self.spill {
            spill.forget(session);
        }
    }

    fn probe(&self) -> Option<Probe> {
        let (model, kv_bytes) = (Arc::downgrade(&self.model), Arc::clone(&self.kv_bytes));
        let waiting = self.spill.as_ref().map(|spill| Arc::clone(spill.waiting()));
        let waiting = waiting.unwrap_or_default();
        Some(Arc::new(move || {
            let Some(resident) = model.upgrade().and_then(|model| model.resident().ok()) else {
                return Vec::new();
            };
            vec![
                ("layers", resident.layers),
                ("embedding", resident.embedding),
                ("ple", resident.ple),
                ("rest", resident.rest),
                ("kv", kv_bytes.load(Ordering::Relaxed) + waiting.load(Ordering::Relaxed)),
            ]
        }))
    }

    fn counter(&self) -> Counter {
        let text = Arc::downgrade(&self.text);
        let estimate = move |messages: &[Message]| {
            let text = text.upgrade().ok_or_else(super::thread::not_loaded)?;
            Ok(count(text.prompt(messages)?.len()))
        };
        Counter { estimate: Arc::new(estimate), exact: None }
    }
}

impl Elastic {
    /// Has a JSON Schema read, on a thread of its own.
    fn read_schema(&self, schema: String) -> Result<Receiver<Result<Constraint, Error>>, Error> {
        if Arc::strong_count(&self.readers) > SCHEMAS {
            let why = "too many JSON Schemas are being read".into();
            return Err(Error::Busy { why, retry_after_ms: 1000 });
        }
        let (reply, result) = sync_channel(1);
        let (text, reader) = (Arc::clone(&self.text), Arc::clone(&self.readers));
        let read = move || {
            // Nobody waits for it any more when the request was cancelled.
            let _ = reply.send(text.constraint(&schema));
            drop(reader);
        };
        let thread = std::thread::Builder::new().name("nestd-schema".into()).spawn(read);
        thread.map_err(|error| Error::Internal(format!("a thread: {error}")))?;
        Ok(result)
    }

    /// The tokens of a request that fits.
    fn prompt(&self, request: &GenerateRequest) -> Result<Vec<u32>, Error> {
        let (prompt, max_tokens) = if request.prewarm {
            (self.text.beginning(&request.messages)?, 0)
        } else {
            (self.text.prompt(&request.messages)?, request.stopping.max_tokens)
        };
        if prompt.is_empty() {
            let problem = "the model's chat template and tokenizer make no token of them";
            return Err(Error::invalid("messages", problem));
        }
        let context_tokens = self.loaded.context_tokens.min(self.constraints.context_tokens);
        let prompt_tokens = count(prompt.len());
        if prompt_tokens.saturating_add(max_tokens) > context_tokens {
            return Err(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
        }
        Ok(prompt)
    }

    /// Has the caches of a request's session brought back, where that spares reading.
    fn bring_back(&mut self, job: &Job, prompt: &[u32]) -> Option<Back> {
        let (spill, session) = (self.spill.as_mut()?, job.session?);
        if spill.known(session, prompt) <= self.prefixes.known(&job.account, prompt) {
            return None;
        }
        let (tokens, sequence) = spill.fetch(session)?;
        Some(Back { tokens, sequence })
    }

    /// Has caches stored that leave memory.
    fn put_away(&mut self, gone: Vec<Away>) {
        let Some(spill) = &mut self.spill else { return };
        for away in gone {
            spill.store(away, self.prefill);
        }
    }

    /// Ends the requests that were cancelled. What was read for them is kept.
    fn drop_cancelled(&mut self) {
        let cancelled = |running: &mut Running| running.sink().cancelled().is_cancelled();
        let mut gone = Vec::new();
        for running in self.running.extract_if(.., cancelled) {
            let (owner, tokens, sequence) = running.give_up();
            if self.constraints.caches {
                gone.extend(self.prefixes.give(Some(owner), tokens, sequence));
            }
        }
        self.put_away(gone);
    }

    /// Begins the requests that wait for nothing any more.
    fn collect(&mut self) {
        let mut index = 0;
        while let Some(waiting) = self.waiting.get_mut(index) {
            let Poll::Ready(ready) = waiting.poll() else {
                index += 1;
                continue;
            };
            let waiting = self.waiting.remove(index);
            match ready {
                Ok(back) => self.begin(waiting, back),
                Err(error) => waiting.job.sink.fail(error),
            }
        }
    }

    /// Begins a request with what is known of its prompt; `back` came from storage.
    fn begin(&mut self, waiting: Waiting, back: Option<Caches>) {
        let Waiting { job, prompt, constraint, .. } = waiting;
        let config = self.model.config();
        let max_tokens = if job.request.prewarm { 0 } else { job.request.stopping.max_tokens };
        let capacity = prompt.len().saturating_add(max_tokens as usize);
        let shape = Shape::new(config, capacity, self.store);
        let sequence = match back {
            Some(back) => self.prefixes.take_back(back, &job.account, &prompt, &shape, config),
            None => self.prefixes.take(&job.account, &prompt, &shape, config),
        };
        let standing = self.text.standing(&job.request.messages, &prompt);
        job.sink.size(&self.loaded.size);
        let start = Start { prompt, sequence, standing };
        self.running.push(Running::new(job, start, constraint, &self.text, self.steps));
    }

    /// One pass over the weights.
    fn compute(&mut self) -> Result<(), nestd_elastic::error::Error> {
        self.steps += 1;
        let given = self.share();
        if given.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let mut parts = Vec::new();
        let mut wanted = Vec::new();
        for (running, tokens) in self.running.iter_mut().zip(&given) {
            let draw =
                tokens.len() >= running.unread() && !tokens.is_empty() && !running.prewarms();
            let logits = if draw { Logits::Last } else { Logits::None };
            wanted.push(draw);
            if !tokens.is_empty() {
                parts.push(Part { sequence: running.sequence_mut(), tokens, logits });
            }
        }
        let began = Instant::now();
        let tokens: usize = parts.iter().map(|part| part.tokens.len()).sum();
        let logits = self.runner.step(&self.model, &self.slice, &mut parts)?;
        if tokens >= SHARED_CHUNK {
            self.prefill = Some(tokens as f64 / began.elapsed().as_secs_f64().max(1e-6));
        }
        let mut rows = logits.chunks_exact_mut(self.model.vocabulary());
        let mut ended = Vec::new();
        let mut gone = Vec::new();
        for (index, running) in self.running.iter_mut().enumerate() {
            let drawn = wanted.get(index) == Some(&true);
            let mut outcome = match drawn.then(|| rows.next()).flatten() {
                Some(logits) => running.draw(logits, &self.text),
                None if given.get(index).is_none_or(Vec::is_empty) => continue,
                None => running.read(),
            };
            if outcome == Outcome::Standing {
                if self.constraints.caches {
                    gone.extend(self.prefixes.keep(
                        running.read_so_far(),
                        running.sequence(),
                        self.model.config(),
                    ));
                }
                outcome = running.goes_on();
            }
            if outcome != Outcome::GoesOn {
                ended.push((index, outcome));
            }
        }
        for (index, outcome) in ended.into_iter().rev() {
            let running = self.running.remove(index);
            match outcome {
                Outcome::Ended(reason) => {
                    let (owner, tokens, sequence) = running.finish(reason);
                    if self.constraints.caches {
                        gone.extend(self.prefixes.give(Some(owner), tokens, sequence));
                    }
                }
                Outcome::Unfit(why) => running.fail(Error::invalid("json_schema", why)),
                _ => {
                    let problem = "the model's output is not finite: are the weights damaged?";
                    running.fail(Error::Internal(problem.into()));
                }
            }
        }
        self.put_away(gone);
        Ok(())
    }

    fn tell_kv(&self) {
        let running: u64 = self.running.iter().map(|running| running.sequence().bytes()).sum();
        self.kv_bytes.store(running + self.prefixes.bytes(), Ordering::Relaxed);
    }

    /// The tokens that each running request gets into the next step.
    fn share(&mut self) -> Vec<Vec<u32>> {
        let fair = self.steps.is_multiple_of(FAIR_STEP);
        let urgent = self.running.iter().any(|r| r.priority() == Priority::Interactive) && !fair;
        let stands = |r: &Running| urgent && r.priority() == Priority::Background;
        // One prompt is read at a time, the most urgent first: it is answered sooner, and the last no
        // later.
        let reading =
            self.running.iter_mut().enumerate().filter(|(_, r)| r.unread() > 0 && !stands(r));
        let reader = if fair {
            reading.min_by_key(|(_, r)| r.read_in)
        } else {
            reading.min_by_key(|(index, r)| (r.priority(), *index))
        };
        let reader = reader.map(|(index, running)| {
            running.read_in = self.steps;
            (index, running.priority())
        });
        let others = self.running.iter().any(|r| r.unread() == 0 && !stands(r));
        let background = reader.is_some_and(|(_, priority)| priority == Priority::Background);
        let chunk = if others || background { SHARED_CHUNK } else { CHUNK };
        let tokens = |(index, r): (usize, &Running)| match r.unread() {
            _ if stands(r) => Vec::new(),
            0 => r.next(chunk),
            _ if reader.is_some_and(|(reading, _)| reading == index) => r.next(chunk),
            _ => Vec::new(),
        };
        self.running.iter().enumerate().map(tokens).collect()
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
