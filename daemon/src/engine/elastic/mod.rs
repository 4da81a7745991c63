//! The engine `elastic`: a GGUF file of Gemma 3n, mapped, by the crate `nestd-elastic`.
//!
//! The engine thread itself computes, with the pool's threads. A step is one pass over the weights: a
//! chunk of the prompt of the first request that is not done reading, and the next token of every
//! request that is; background requests stand still while an interactive one runs. So a cancelled request
//! ends within a token or a chunk, an interactive one begins with the next step, and a change of the size
//! takes effect there too: the KV caches serve all sizes.
//!
//! What takes longer than a step has a thread of its own: reading a JSON Schema, reading weights ahead, and
//! giving memory back after a change of the size.

mod load;
mod pages;
mod prefix;
mod request;
mod spill;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{SLACK, Sequence, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::sizes::Slice;
use nestd_elastic::text::constrain::Constraint;

pub use load::{Settings, inspect};
pub use spill::Settings as SpillSettings;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use spill::fuzzing;

use self::load::{Rung, Text};
use self::pages::Pages;
use self::prefix::Prefixes;
use self::request::{Outcome, Running, Start};
use self::spill::{Away, Spill};
use super::{Constraints, Engine, Job, Probe, Step};
use crate::types::{Error, GenerateRequest, Loaded, Message, Priority};

/// Prompt tokens in a step when nobody else waits for a token, and when somebody does.
const CHUNK: usize = SLACK;
const SHARED_CHUNK: usize = 32;
/// While an interactive request runs, background ones take part in one step of so many: they end some day.
const BACKGROUND_STEP: u32 = 16;
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
    steps: u32,
    constraints: Constraints,
    pages: Pages,
    /// What all KV caches take, for those who ask from elsewhere.
    kv_bytes: Arc<AtomicU64>,
}

/// A request that cannot begin yet: it has a schema to be read, or caches that are brought back.
struct Waiting {
    job: Job,
    schema: Option<Receiver<Result<Constraint, Error>>>,
    constraint: Option<Constraint>,
    caches: Option<Back>,
}

/// A session's caches on their way back, with the tokens that they are of.
struct Back {
    tokens: Vec<u32>,
    sequence: Receiver<Option<Sequence>>,
}

impl Engine for Elastic {
    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn start(&mut self, job: Job) {
        let caches = self.bring_back(&job);
        let schema = match job.request.json_schema.clone().map(|schema| self.read_schema(schema)) {
            Some(Err(error)) => return job.sink.fail(error),
            Some(Ok(schema)) => Some(schema),
            None => None,
        };
        if schema.is_none() && caches.is_none() {
            return self.begin(job, None, None);
        }
        self.waiting.push(Waiting { job, schema, constraint: None, caches });
    }

    fn step(&mut self) -> Step {
        // Dropping a request's sink tells its reader the cause.
        self.running.retain(|running| !running.sink().cancelled().is_cancelled());
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
        Some(Arc::new(move || {
            let Some(resident) = model.upgrade().and_then(|model| model.resident().ok()) else {
                return Vec::new();
            };
            vec![
                ("layers", resident.layers),
                ("embedding", resident.embedding),
                ("ple", resident.ple),
                ("rest", resident.rest),
                ("kv", kv_bytes.load(Ordering::Relaxed)),
            ]
        }))
    }

    fn count_tokens(&mut self, messages: &[Message]) -> Result<u32, Error> {
        Ok(count(self.text.prompt(messages)?.len()))
    }
}

/// A session's tokens and their caches.
type Caches = (Vec<u32>, Sequence);

impl Waiting {
    /// Ready when everything is there, with the caches that came back, if any did.
    fn poll(&mut self) -> Poll<Result<Option<Caches>, Error>> {
        if let Some(schema) = &self.schema {
            match schema.try_recv() {
                Err(TryRecvError::Empty) => return Poll::Pending,
                Err(TryRecvError::Disconnected) => {
                    let problem = "reading the schema ended without a result";
                    return Poll::Ready(Err(Error::Internal(problem.into())));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Ok(Ok(constraint)) => self.constraint = Some(constraint),
            }
            self.schema = None;
        }
        let Some(Back { sequence, .. }) = &self.caches else { return Poll::Ready(Ok(None)) };
        let sequence = match sequence.try_recv() {
            Err(TryRecvError::Empty) => return Poll::Pending,
            Err(TryRecvError::Disconnected) => None,
            Ok(sequence) => sequence,
        };
        let tokens = self.caches.take().map(|caches| caches.tokens).unwrap_or_default();
        Poll::Ready(Ok(sequence.map(|sequence| (tokens, sequence))))
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

    /// Has the caches of a request's session brought back, where that spares reading.
    fn bring_back(&mut self, job: &Job) -> Option<Back> {
        let (spill, session) = (self.spill.as_mut()?, job.session?);
        if !spill.has(session) {
            return None;
        }
        let prompt = self.text.prompt(&job.request.messages).ok()?;
        if spill.known(session, &prompt) <= self.prefixes.known(&prompt) {
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

    /// Begins the requests that wait for nothing any more.
    fn collect(&mut self) {
        let mut index = 0;
        while let Some(waiting) = self.waiting.get_mut(index) {
            let Poll::Ready(ready) = waiting.poll() else {
                index += 1;
                continue;
            };
            let Waiting { job, constraint, .. } = self.waiting.remove(index);
            match ready {
                Ok(back) => self.begin(job, constraint, back),
                Err(error) => job.sink.fail(error),
            }
        }
    }

    fn begin(&mut self, job: Job, constraint: Option<Constraint>, back: Option<Caches>) {
        match self.accept(&job.request, back) {
            Ok(start) => {
                job.sink.size(&self.loaded.size);
                self.running.push(Running::new(job, start, constraint, &self.text));
            }
            Err(error) => job.sink.fail(error),
        }
    }

    /// Checks that a request fits, and finds what is known of its prompt; `back` came from storage.
    fn accept(&mut self, request: &GenerateRequest, back: Option<Caches>) -> Result<Start, Error> {
        let (prompt, max_tokens) = if request.prewarm {
            (self.text.beginning(&request.messages)?, 0)
        } else {
            (self.text.prompt(&request.messages)?, request.stopping.max_tokens)
        };
        let context_tokens = self.loaded.context_tokens.min(self.constraints.context_tokens);
        let needed = prompt.len().saturating_add(max_tokens as usize);
        if needed > context_tokens as usize {
            let prompt_tokens = count(prompt.len());
            return Err(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
        }
        let shape = Shape::new(self.model.config(), needed, self.store);
        let config = self.model.config();
        let sequence = match back {
            Some(back) => self.prefixes.take_back(back, &prompt, &shape, config),
            None => self.prefixes.take(&prompt, &shape, config),
        };
        let standing = self.text.standing(&request.messages, &prompt);
        Ok(Start { prompt, sequence, standing })
    }

    /// One pass over the weights.
    fn compute(&mut self) -> Result<(), nestd_elastic::error::Error> {
        self.steps = self.steps.wrapping_add(1);
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
            let outcome = match drawn.then(|| rows.next()).flatten() {
                Some(logits) => running.draw(logits, &self.text),
                None if given.get(index).is_none_or(Vec::is_empty) => continue,
                None => running.read(),
            };
            match outcome {
                Outcome::GoesOn => {}
                Outcome::Standing if !self.constraints.caches => {}
                Outcome::Standing => gone.extend(self.prefixes.keep(
                    running.read_so_far(),
                    running.sequence(),
                    self.model.config(),
                )),
                outcome => ended.push((index, outcome)),
            }
        }
        for (index, outcome) in ended.into_iter().rev() {
            let running = self.running.remove(index);
            match outcome {
                Outcome::Ended(reason) => {
                    let session = running.session();
                    let (tokens, sequence) = running.finish(reason);
                    if self.constraints.caches {
                        gone.extend(self.prefixes.give(session, tokens, sequence));
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
    fn share(&self) -> Vec<Vec<u32>> {
        let urgent = self.running.iter().any(|r| r.priority() == Priority::Interactive)
            && !self.steps.is_multiple_of(BACKGROUND_STEP);
        let stands = |r: &Running| urgent && r.priority() == Priority::Background;
        // One prompt is read at a time, the most urgent first: it is answered sooner, and the last no
        // later.
        let reading = self.running.iter().enumerate().filter(|(_, r)| r.unread() > 0 && !stands(r));
        let reader =
            reading.min_by_key(|(index, r)| (r.priority(), *index)).map(|(index, _)| index);
        let others = self.running.iter().any(|r| r.unread() == 0 && !stands(r));
        let chunk = if others { SHARED_CHUNK } else { CHUNK };
        let tokens = |(index, r): (usize, &Running)| match r.unread() {
            _ if stands(r) => Vec::new(),
            0 => r.next(chunk),
            _ if reader == Some(index) => r.next(chunk),
            _ => Vec::new(),
        };
        self.running.iter().enumerate().map(tokens).collect()
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
