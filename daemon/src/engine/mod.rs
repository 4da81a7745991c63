//! Engines: what holds a model and makes tokens, behind one trait, on a thread of its own.
//!
//! [`Engine`] is a model in memory; [`load`] makes one from a [`Plan`]. [`Handle`] is the only way
//! in for the rest of the daemon: a bounded command channel to the engine thread (`thread`), which
//! owns the engine and calls it. [`catalog`] says which models there are, from their files' headers.

pub mod catalog;
#[cfg_attr(not(feature = "mistralrs"), allow(dead_code, reason = "the list of models needs less"))]
mod checkpoint;
pub mod elastic;
#[cfg(feature = "mistralrs")]
mod mistralrs;
mod pulse;
mod sim;
mod thread;
#[cfg(feature = "mistralrs")]
mod towers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use checkpoint::fuzzing;
pub use pulse::Pulse;
pub use thread::{Handle, Keep, spawn};

use futures::future::BoxFuture;

use crate::stream::Sink;
use crate::types::{EngineKind, Error, GenerateRequest, Loaded, Message, ModelInfo};

/// A model in memory. Lives on the engine thread; no method may block for longer than one step.
pub trait Engine {
    /// What is loaded.
    fn loaded(&self) -> &Loaded;

    /// Takes a job. Whatever becomes of it, its sink is told: an engine that cannot do what the
    /// request asks fails the sink with a typed error.
    fn start(&mut self, job: Job);

    /// Advances the running jobs by one unit of work, and says when to be called again.
    fn step(&mut self) -> Step;

    /// Goes on at another size with the next step, running requests included, and tells them why.
    /// None if the engine, or this one of its models, has to be loaded anew for that.
    fn switch(&mut self, _size: &str, _reason: &str) -> Option<()> {
        None
    }

    /// Readies what a size needs that may come soon, without waiting for it. What was readied before is
    /// no longer wanted; the size in use says that no other will come.
    fn prepare(&mut self, _size: &str) {}

    /// Narrows what it may use; what runs already goes on.
    fn constrain(&mut self, _constraints: Constraints) {}

    /// Forgets what it kept of a session, which has ended.
    fn forget(&mut self, _session: u64) {}

    /// Tells what of the model is in memory. None if the engine cannot.
    fn probe(&self) -> Option<Probe> {
        None
    }

    /// Gives what counts tokens.
    fn counter(&self) -> Counter;
}

/// Counts the tokens of conversations, template included, without the engine's thread. Must not keep the
/// model in memory.
#[derive(Clone)]
pub struct Counter {
    /// Counts on the calling thread, for as long as the text is long. All tokens, or, where there is
    /// `exact`, no more than there are.
    pub estimate: Estimate,
    /// Counts all, where that takes waiting for somebody else.
    pub exact: Option<Exact>,
}

/// See [`Counter::estimate`].
pub type Estimate = Arc<dyn Fn(&[Message]) -> Result<u32, Error> + Send + Sync>;
/// See [`Counter::exact`].
pub type Exact = Arc<dyn Fn(Vec<Message>) -> BoxFuture<'static, Result<u32, Error>> + Send + Sync>;

/// Bytes of a model that are in memory, by part. Called from other threads than the engine's, and takes
/// as long as looking at every page of a file; must not keep the model in memory.
pub type Probe = Arc<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// What an engine may use for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// The longest context of a new request.
    pub context_tokens: u32,
    /// Whether caches are kept that no running request uses.
    pub caches: bool,
}

impl Default for Constraints {
    fn default() -> Self {
        Self { context_tokens: u32::MAX, caches: true }
    }
}

/// A request that the service let through, with its checks done.
pub struct Job {
    /// What to do.
    pub request: GenerateRequest,
    /// Whose it is: nobody else may learn from a cache what was said.
    pub account: String,
    /// The session that it belongs to: its KV cache is worth keeping for the next request.
    pub session: Option<u64>,
    /// Where the events go. Its `cancelled` token ends the job: drop the sink then.
    pub sink: Sink,
    /// The job's place among the running ones; dropped with the job.
    pub place: Place,
}

/// Something whose drop gives a running request's place back.
pub type Place = Box<dyn Send>;

/// When the engine thread shall call [`Engine::step`] again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// At once: there is work.
    Ready,
    /// After this time, or after the next command.
    Wait(Duration),
    /// After the next command: nothing runs, or the engine works on threads of its own.
    Idle,
}

/// What to load, all of it checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// Its folder or its file; empty for the simulator.
    pub path: PathBuf,
    /// When its files were written last.
    pub written: Option<SystemTime>,
    /// What its headers say.
    pub info: ModelInfo,
    /// One of `info.sizes`.
    pub size: String,
    /// From the configuration.
    pub settings: Settings,
}

/// How to load, from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// In-situ quantization of a Hugging Face checkpoint.
    pub isq: Isq,
    /// At most this much context; 0 is the model's own.
    pub context_tokens: u32,
    /// Requests that generate at once.
    pub parallel_requests: u32,
    /// How the elastic engine runs.
    pub elastic: elastic::Settings,
    /// Where files that are made from a model are kept, and may be lost.
    pub cache_dir: PathBuf,
    /// The simulator's speeds.
    pub sim: SimSettings,
}

/// In-situ quantization: what the weights are turned into while they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isq {
    /// Keep them as they are.
    #[default]
    None,
    /// 4.5 bits a weight.
    Q4k,
    /// 5.5 bits a weight.
    Q5k,
    /// 6.6 bits a weight.
    Q6k,
    /// 8.5 bits a weight.
    Q8_0,
}

/// The simulator's speeds.
#[derive(Clone, Debug, PartialEq)]
pub struct SimSettings {
    /// How long a load takes.
    pub load_ms: u64,
    /// Decode speed of one request.
    pub tokens_per_s: f64,
    /// Prefill speed.
    pub prefill_tokens_per_s: f64,
    /// Whether the size changes between two tokens; else that takes a load.
    pub elastic: bool,
}

/// Loads a model, on the calling thread. `progress` is told 0 to 1, as well as it can be known; the engine
/// gives signs of life to `pulse`.
pub fn load(plan: &Plan, progress: &dyn Fn(f64), pulse: &Pulse) -> Result<Box<dyn Engine>, Error> {
    match plan.info.engine {
        EngineKind::Elastic => Ok(Box::new(elastic::Elastic::load(plan, progress, pulse)?)),
        EngineKind::Sim => Ok(Box::new(sim::Sim::load(plan, progress))),
        #[cfg(feature = "mistralrs")]
        EngineKind::Mistralrs => Ok(Box::new(mistralrs::Mistralrs::load(plan, progress, pulse)?)),
        #[cfg(not(feature = "mistralrs"))]
        EngineKind::Mistralrs => Err(Error::unsupported(
            "the engine mistralrs",
            "this build of the daemon was made without it",
        )),
    }
}
