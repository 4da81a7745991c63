//! The simulator: an engine without a model, deterministic, at a set speed. Tests of the service and
//! of both APIs run on it.
//!
//! While an interactive request runs, background ones go on at a sixteenth of the speed, as elastic's do.
//!
//! Of a session it remembers what it read and said, and reads it no second time.
//!
//! It repeats the last user message word by word; a word with the space behind it is a token. Its
//! sizes differ in speed only: a token of the small one takes half the time. Sampling has nothing to
//! choose from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Constraints, Counter, Engine, Job, Plan, SimSettings, Step};
use crate::types::{
    EngineKind, Error, FinishReason, Loaded, Message, ModelInfo, Priority, Role, SizeInfo,
};

/// The simulator's model, size names and context.
pub const MODEL: &str = "sim";
const SIZES: [(&str, f64); 2] = [("large", 2.0), ("small", 1.0)];
const CONTEXT_TOKENS: u32 = 8192;
/// While an interactive request runs, a token of a background one takes so many times as long.
const BACKGROUND: u32 = 16;
/// Prompt tokens that are read between two looks at the clock and the commands.
const PREFILL_CHUNK: u32 = 64;

/// What the catalogue says of the simulator.
pub fn info() -> ModelInfo {
    ModelInfo {
        engine: EngineKind::Sim,
        sizes: SIZES
            .iter()
            .map(|(name, params)| SizeInfo {
                name: (*name).into(),
                effective_params_b: *params,
                memory_mib: 1,
            })
            .collect(),
        context_tokens: CONTEXT_TOKENS,
    }
}

/// The loaded simulator. Jobs run side by side, each at the set speed.
pub struct Sim {
    loaded: Loaded,
    speeds: SimSettings,
    decode: Duration,
    prefill: Duration,
    running: Vec<Running>,
    constraints: Constraints,
    /// The tokens of each session so far.
    kept: HashMap<u64, Vec<String>>,
}

struct Running {
    job: Job,
    /// The prompt, and the answer so far.
    said: Vec<String>,
    words: std::vec::IntoIter<String>,
    left_tokens: u32,
    prompt_tokens: u32,
    cached_tokens: u32,
    prefilled_tokens: u32,
    /// When the next token or chunk is done.
    due: Instant,
    /// Whether it makes way for an interactive request.
    slowed: bool,
}

impl Sim {
    /// Takes the configured time, in ten steps of progress.
    pub fn load(plan: &Plan, progress: &dyn Fn(f64)) -> Self {
        let speeds = plan.settings.sim.clone();
        for tenth in 1..=10_u32 {
            std::thread::sleep(Duration::from_millis(speeds.load_ms) / 10);
            progress(f64::from(tenth) / 10.0);
        }
        let cost = SIZES.iter().find(|(name, _)| *name == plan.size).map_or(1.0, |(_, cost)| *cost);
        let (decode, prefill) = speeds.at(cost);
        let context = plan.settings.context_tokens;
        Self {
            loaded: Loaded {
                model: plan.model.clone(),
                engine: EngineKind::Sim,
                size: plan.size.clone(),
                sizes: SIZES.iter().map(|(name, _)| (*name).into()).collect(),
                context_tokens: if context == 0 {
                    CONTEXT_TOKENS
                } else {
                    context.min(CONTEXT_TOKENS)
                },
                parallel_requests: plan.settings.parallel_requests,
            },
            speeds,
            decode,
            prefill,
            running: Vec::new(),
            constraints: Constraints::default(),
            kept: HashMap::new(),
        }
    }
}

impl SimSettings {
    /// Times of a token, in decode and in prefill, at a size of this cost.
    fn at(&self, cost: f64) -> (Duration, Duration) {
        let time = |tokens_per_s: f64| Duration::from_secs_f64(cost / 2.0 / tokens_per_s);
        (time(self.tokens_per_s), time(self.prefill_tokens_per_s))
    }
}

impl Engine for Sim {
    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn start(&mut self, job: Job) {
        let request = &job.request;
        let beyond = [
            (request.json_schema.is_some(), "json_schema"),
            (request.top_logprobs.is_some(), "top_logprobs"),
        ];
        if let Some((_, option)) = beyond.into_iter().find(|(asked, _)| *asked) {
            let Job { sink, .. } = job;
            return sink.fail(Error::unsupported(option, "the simulator repeats its input"));
        }
        let mut said = prompt(&request.messages);
        let prompt_tokens = count(said.len());
        let max_tokens = if request.prewarm { 0 } else { request.stopping.max_tokens };
        let context_tokens = self.loaded.context_tokens.min(self.constraints.context_tokens);
        if prompt_tokens.saturating_add(max_tokens) > context_tokens {
            let Job { sink, .. } = job;
            return sink.fail(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
        }
        let words = answer(&request.messages, &request.stopping.stop);
        let kept = job.session.and_then(|session| self.kept.get(&session));
        let same = |kept: &Vec<String>| kept.iter().zip(&said).take_while(|(a, b)| a == b).count();
        let cached_tokens = count(kept.map_or(0, same));
        job.sink.size(&self.loaded.size);
        job.sink.prefill(cached_tokens, prompt_tokens, cached_tokens);
        if !job.request.prewarm {
            said.push(begin(Role::Assistant));
        }
        self.running.push(Running {
            job,
            said,
            words,
            left_tokens: max_tokens,
            prompt_tokens,
            cached_tokens,
            prefilled_tokens: cached_tokens,
            due: Instant::now(),
            slowed: false,
        });
    }

    fn step(&mut self) -> Step {
        let now = Instant::now();
        let priority = |running: &Running| running.job.request.priority;
        let urgent = self.running.iter().any(|r| priority(r) == Priority::Interactive);
        let (mut index, mut ended) = (0, false);
        while let Some(running) = self.running.get_mut(index) {
            if running.job.sink.cancelled().is_cancelled() {
                self.running.swap_remove(index);
                ended = true;
                continue;
            }
            running.pace(urgent && priority(running) == Priority::Background, now);
            match running.advance(now, self.prefill, self.decode) {
                None => index += 1,
                Some(reason) => {
                    let Running { job: Job { sink, place, session, .. }, said, .. } =
                        self.running.swap_remove(index);
                    if let Some(session) = session.filter(|_| self.constraints.caches) {
                        self.kept.insert(session, said);
                    }
                    drop(place);
                    sink.finish(reason);
                    ended = true;
                }
            }
        }
        if ended {
            // Who made way may move on.
            return Step::Ready;
        }
        match self.running.iter().map(|running| running.due).min() {
            None => Step::Idle,
            // A cancelled job is noticed within 20 ms even at a token a minute.
            Some(due) => Step::Wait(
                due.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)),
            ),
        }
    }

    fn switch(&mut self, size: &str, reason: &str) -> Option<()> {
        if !self.speeds.elastic {
            return None;
        }
        let (_, cost) = SIZES.iter().find(|(name, _)| *name == size)?;
        for running in &self.running {
            running.job.sink.size_changed(&self.loaded.size, size, reason);
        }
        size.clone_into(&mut self.loaded.size);
        (self.decode, self.prefill) = self.speeds.at(*cost);
        Some(())
    }

    fn constrain(&mut self, constraints: Constraints) {
        self.constraints = constraints;
        if !constraints.caches {
            self.kept.clear();
        }
    }

    fn forget(&mut self, session: u64) {
        self.kept.remove(&session);
    }

    fn counter(&self) -> Counter {
        Counter { estimate: Arc::new(|messages| Ok(count(prompt(messages).len()))), exact: None }
    }
}

impl Running {
    /// Goes on slowed, or no longer.
    fn pace(&mut self, slowed: bool, now: Instant) {
        if self.slowed && !slowed {
            self.due = now + self.due.saturating_duration_since(now) / BACKGROUND;
        }
        self.slowed = slowed;
    }

    /// Does what is due by `now`; tells the reason when that was the last of it.
    fn advance(
        &mut self,
        now: Instant,
        prefill: Duration,
        decode: Duration,
    ) -> Option<FinishReason> {
        let sink = &self.job.sink;
        let times = if self.slowed { BACKGROUND } else { 1 };
        while self.due <= now {
            if self.prefilled_tokens < self.prompt_tokens {
                let chunk = PREFILL_CHUNK.min(self.prompt_tokens - self.prefilled_tokens);
                self.prefilled_tokens += chunk;
                self.due += prefill * chunk * times;
                sink.prefill(self.prefilled_tokens, self.prompt_tokens, self.cached_tokens);
                continue;
            }
            if self.job.request.prewarm {
                return Some(FinishReason::Stop);
            }
            if self.left_tokens == 0 {
                return Some(FinishReason::Length);
            }
            let Some(word) = self.words.next() else { return Some(FinishReason::Stop) };
            self.left_tokens -= 1;
            self.due += decode * times;
            sink.text(&word, 1);
            self.said.push(word);
        }
        None
    }
}

fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(char::is_whitespace)
}

/// One token for each word, and two around each message, as a chat template has.
fn prompt(messages: &[Message]) -> Vec<String> {
    let mut prompt = Vec::new();
    for message in messages {
        let text = message.text();
        prompt.push(begin(message.role));
        prompt.extend(tokens(&text).map(str::to_owned));
        prompt.push("<end>".into());
    }
    prompt
}

/// The token before a message.
fn begin(role: Role) -> String {
    format!("<{}>", role.name())
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// The last user message up to the first stop string, in tokens.
fn answer(messages: &[Message], stop: &[String]) -> std::vec::IntoIter<String> {
    let text = messages
        .iter()
        .rfind(|message| message.role == Role::User)
        .map(Message::text)
        .unwrap_or_default();
    let end = stop.iter().filter_map(|stop| text.find(stop)).min().unwrap_or(text.len());
    let answer = text.get(..end).unwrap_or_default();
    tokens(answer).map(str::to_owned).collect::<Vec<_>>().into_iter()
}
