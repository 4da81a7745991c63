//! The daemon's core, between the APIs and the engine: the state, the queue, loads, and the drain.
//!
//! [`Service`] is the one owner of the daemon's [`Status`]. Every method may be called from any task;
//! each accepted request has a task of its own until the engine thread takes it over.

mod counting;
mod foreground;
mod generate;
mod govern;
mod load;
pub mod memory;
mod queue;
mod quotas;
mod requests;
mod sessions;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::engine::catalog::Catalog;
use crate::engine::{Handle, Plan};
use crate::metrics::Metrics;
use crate::types::{
    Client, EngineKind, Error, Limits, Loaded, Message, Quotas as QuotaSettings, SessionInfo,
    SessionOptions, SessionSettings, State, Status,
};
use counting::Counting;
use queue::{Gate, Queue};
use quotas::Quotas;
use requests::{ActiveMap, lock};

pub use foreground::{App, Foreground, Lease, Leased};
pub use govern::{Allowance, Chooser, Held};
pub use load::{Listed, Then};
pub use quotas::Power;
pub use requests::{ActiveRequest, Activity};
pub use sessions::Sessions;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use sessions::fuzzing;

/// How long requests that are ended may take to end.
const SHUT_DOWN: Duration = Duration::from_secs(2);

/// What the service takes from the configuration; replaced whole on a reload.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where models are, and how they are loaded.
    pub catalog: Catalog,
    /// The model to load when none is named; empty: the only one there is.
    pub model: String,
    /// The size to load when none is named; empty: the largest.
    pub size: String,
    /// At most this much memory for a model; 0: what there is.
    pub memory_mib: u64,
    /// What a request may ask for.
    pub limits: Limits,
    /// What one user may have of it.
    pub quotas: QuotaSettings,
    /// Sessions that may be there.
    pub sessions: SessionSettings,
    /// Unread text that is kept for a slow reader.
    pub buffer_bytes: usize,
    /// How long running requests may take to end.
    pub drain: Duration,
}

/// The daemon's core. One instance, shared by both APIs.
pub struct Service {
    engine: Handle,
    settings: RwLock<Arc<Settings>>,
    status: watch::Sender<Status>,
    queue: Arc<Queue>,
    foreground: Arc<Foreground>,
    quotas: Arc<Quotas>,
    counting: Counting,
    sessions: Arc<Sessions>,
    /// Held while the models are looked at.
    listed: Arc<tokio::sync::Mutex<load::LastListed>>,
    /// Held by the load or unload that is under way.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Every request that was accepted and has not ended.
    active: ActiveMap,
    next_id: AtomicU64,
    /// How the model in memory was loaded.
    held: Mutex<Option<Plan>>,
    /// The model that left memory and comes back when it is asked for.
    parked: Mutex<Option<Plan>>,
    /// What the governor leaves to requests.
    allowance: RwLock<Allowance>,
    /// False while the engine has not heard of it.
    engine_was_told: AtomicBool,
    /// Picks sizes where nobody names one.
    chooser: RwLock<Option<Chooser>>,
    /// Whether there are requests.
    busy: Arc<watch::Sender<bool>>,
    /// When the last request ended.
    idle_since: Arc<Mutex<Instant>>,
    metrics: Arc<Metrics>,
    began: Instant,
}

/// The daemon's state with its load and limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The state.
    pub status: Status,
    /// What a request may ask for.
    pub limits: Limits,
    /// Requests that generate.
    pub running: u32,
    /// Requests that wait.
    pub queued: u32,
}

impl Service {
    /// A service without a model. `engine` is its alone.
    #[must_use]
    pub fn new(engine: Handle, settings: Settings) -> Arc<Self> {
        let problem = "nothing was loaded yet".to_owned();
        let at_once = places(&settings.limits, &settings.quotas, false);
        let closed = Gate::Closed(Error::ModelNotLoaded { problem: problem.clone() });
        let queue = Queue::new(closed, at_once);
        Arc::new(Self {
            foreground: Foreground::new(Arc::clone(&queue)),
            quotas: Arc::new(Quotas::new(settings.quotas)),
            counting: Counting::new(),
            sessions: Sessions::new(engine.clone(), settings.sessions.clone()),
            engine,
            settings: RwLock::new(Arc::new(settings)),
            queue,
            status: watch::Sender::new(Status {
                state: State::NoModel,
                loaded: None,
                loading: String::new(),
                loading_fraction: 0.0,
                problem,
            }),
            listed: Arc::default(),
            changing: Arc::default(),
            active: Arc::default(),
            next_id: AtomicU64::new(1),
            held: Mutex::default(),
            parked: Mutex::default(),
            allowance: RwLock::default(),
            engine_was_told: AtomicBool::new(true),
            chooser: RwLock::default(),
            busy: Arc::new(watch::Sender::new(false)),
            idle_since: Arc::new(Mutex::new(Instant::now())),
            metrics: Arc::default(),
            began: Instant::now(),
        })
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Applies new settings; what concerns loading takes effect with the next load.
    pub fn configure(&self, settings: Settings) {
        self.sessions.configure(settings.sessions.clone());
        self.quotas.configure(settings.quotas);
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.apply_limits();
        // The limits are part of the report.
        self.status.send_modify(|_| {});
    }

    /// What may run at once is configured, and no more than the engine can.
    fn limits(&self) -> Limits {
        let mut limits = self.settings().limits;
        if let Some(loaded) = &self.status.borrow().loaded {
            limits.parallel_requests = limits.parallel_requests.min(loaded.parallel_requests);
        }
        let allowed = self.allowance().max_parallel;
        limits.parallel_requests = limits.parallel_requests.min(allowed.max(1));
        limits
    }

    /// Text that one request may have.
    #[must_use]
    pub fn prompt_bytes(&self) -> u32 {
        self.settings().limits.prompt_bytes
    }

    fn apply_limits(&self) {
        let limits = self.limits();
        let engine = self.status.borrow().loaded.as_ref().map(|loaded| loaded.engine);
        // mistral.rs cannot let a request stand still.
        let overtaking = matches!(engine, Some(EngineKind::Elastic | EngineKind::Sim));
        self.queue.set_limits(places(&limits, &self.settings().quotas, overtaking));
    }

    fn allowance(&self) -> Allowance {
        self.allowance.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state right now.
    #[must_use]
    pub fn report(&self) -> Report {
        let (running, queued) = self.queue.counts();
        let status = self.status.borrow().clone();
        Report { status, limits: self.limits(), running, queued }
    }

    /// Wakes whenever the state or the limits change.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Which app is in the foreground.
    #[must_use]
    pub fn foreground(&self) -> &Arc<Foreground> {
        &self.foreground
    }

    /// Sessions, for all but what needs the limits of requests.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Makes a session that begins with these messages.
    pub async fn create_session(
        &self,
        client: &Client,
        transcript: Vec<Message>,
        options: SessionOptions,
    ) -> Result<SessionInfo, Error> {
        let limits = self.settings().limits;
        self.sessions.create(client, transcript, options, &limits).await
    }

    /// Makes a session that goes on from where another is.
    pub async fn fork_session(
        &self,
        client: &Client,
        id: &str,
        options: SessionOptions,
    ) -> Result<SessionInfo, Error> {
        let limits = self.settings().limits;
        self.sessions.fork(client, id, options, &limits).await
    }

    /// Adds messages to a session that nobody answers.
    pub async fn append_to_session(
        &self,
        client: &Client,
        id: &str,
        messages: Vec<Message>,
    ) -> Result<SessionInfo, Error> {
        let limits = self.settings().limits;
        self.sessions.append(client, id, messages, &limits).await
    }

    /// How long [`Service::drain`] may take.
    #[must_use]
    pub fn drain_time(&self) -> Duration {
        self.settings().drain + SHUT_DOWN
    }

    /// Refuses new requests, lets running ones end for the configured time, then ends them.
    pub async fn drain(&self) {
        self.status.send_modify(|status| status.state = State::Draining);
        self.set_gate();
        let drain = self.settings().drain;
        if tokio::time::timeout(drain, self.queue.idle()).await.is_err() {
            self.shut_down_active();
            // One step of the engine, so that the streams see their end.
            let _ = tokio::time::timeout(SHUT_DOWN, self.queue.idle()).await;
        }
    }

    fn shut_down_active(&self) {
        let active = lock(&self.active);
        tracing::warn!(requests = active.len(), "the drain time is over: requests are ended");
        active.values().for_each(|entry| entry.stopper.shut_down());
    }

    fn loaded(&self) -> Option<Loaded> {
        self.status.borrow().loaded.clone()
    }
}

/// The places of the queue; no quota is as many as there are numbers.
fn places(limits: &Limits, quotas: &QuotaSettings, overtaking: bool) -> queue::Limits {
    let or_all = |quota: u32| if quota == 0 { u32::MAX } else { quota };
    queue::Limits {
        parallel: limits.parallel_requests,
        places: limits.queued_requests,
        overtaking,
        user_parallel: or_all(quotas.parallel_requests),
        user_places: or_all(quotas.queued_requests),
    }
}

fn no_background(why: &str) -> Error {
    let why = format!("background requests are not taken now ({why})");
    Error::Busy { why, retry_after_ms: 30_000 }
}

fn loading(model: &str) -> Error {
    let why = match model {
        "" => "the model is being loaded".into(),
        model => format!("the model {model:?} is being loaded"),
    };
    Error::Busy { why, retry_after_ms: 1000 }
}
