//! The daemon's core, between the APIs and the engine: the state, the queue, loads, and the drain.
//!
//! [`Service`] is the one owner of the daemon's [`Status`]. Every method may be called from any task;
//! each accepted request has a task of its own until the engine thread takes it over.

mod govern;
mod load;
pub mod memory;
mod queue;
mod quotas;
mod requests;
mod sessions;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::engine::catalog::Catalog;
use crate::engine::{Handle, Job, Plan};
use crate::metrics::Metrics;
use crate::stream::{self, Events, Sink};
use crate::types::{
    Client, EngineKind, Error, GenerateRequest, Limits, Loaded, Message, Priority,
    Quotas as QuotaSettings, SessionInfo, SessionOptions, SessionSettings, State, Status,
    check_messages,
};
use queue::{Gate, Queue, Running, Ticket};
use quotas::{Quotas, Taken};

pub use govern::{Allowance, Chooser, Held};
pub use load::{Listed, Then};
pub use quotas::Power;
use requests::Entry;
pub use requests::{ActiveRequest, Activity};
pub use sessions::Sessions;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use sessions::fuzzing;

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
    quotas: Arc<Quotas>,
    sessions: Arc<Sessions>,
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
        Arc::new(Self {
            quotas: Arc::new(Quotas::new(settings.quotas)),
            sessions: Sessions::new(engine.clone(), settings.sessions.clone()),
            engine,
            settings: RwLock::new(Arc::new(settings)),
            queue: Queue::new(
                Gate::Closed(Error::ModelNotLoaded { problem: problem.clone() }),
                at_once,
            ),
            status: watch::Sender::new(Status {
                state: State::NoModel,
                loaded: None,
                loading: String::new(),
                loading_fraction: 0.0,
                problem,
            }),
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

    /// Accepts a request, or refuses it at once. Dropping the events cancels it.
    pub fn generate(
        self: &Arc<Self>,
        client: &Client,
        request: GenerateRequest,
    ) -> Result<Events, Error> {
        let priority = request.priority;
        self.accept(client, request)
            .inspect_err(|error| self.metrics.refused(Some(priority), error))
    }

    fn accept(
        self: &Arc<Self>,
        client: &Client,
        mut request: GenerateRequest,
    ) -> Result<Events, Error> {
        let settings = self.settings();
        if request.priority == Priority::Background
            && let Some(why) = self.allowance().no_background
        {
            let why = format!("background requests are not taken now ({why})");
            return Err(Error::Busy { why, retry_after_ms: 30_000 });
        }
        let account = client.account();
        self.quotas.check(&account, Instant::now())?;
        let (turn, before) = if request.session.is_empty() {
            (None, Vec::new())
        } else {
            let question = request.messages.clone();
            let (turn, before) = self.sessions.turn(client, &request.session, question)?;
            (Some(turn), before)
        };
        request.check(&before, &settings.limits)?;
        request.messages.splice(0..0, before);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let ticket = self.queue.enter(id, &account, request.priority)?;
        let recorder = self.metrics.recorder(request.priority);
        let (sink, events) = stream::recorded(id, settings.buffer_bytes, recorder);
        let entry = Entry::new(sink.stopper(), client.clone(), request.priority);
        let active = Active::enter(self, id, entry);
        let session = turn.as_ref().map(|turn| turn.key);
        tracing::info!(request = id, %client, messages = request.messages.len(), "accepted");
        if let Some(turn) = turn {
            let answers = !request.prewarm;
            sink.record(Box::new(move |end, answer| {
                if answers {
                    turn.end(end, answer);
                }
            }));
        }
        if self.status.borrow().state == State::Parked {
            // It waits for the model, however soon that is there.
            sink.loading(0.0);
        }
        let quotas = Arc::clone(&self.quotas);
        sink.charge(Box::new(move |prompt_tokens, completion_tokens| {
            let taken = Taken { prompt_tokens, completion_tokens };
            quotas.charge(&account, taken, Instant::now());
        }));
        tokio::spawn(Arc::clone(self).run(request, session, sink, ticket, active));
        self.wake();
        Ok(events)
    }

    /// Waits for the request's turn, and hands it to the engine.
    async fn run(
        self: Arc<Self>,
        request: GenerateRequest,
        session: Option<u64>,
        sink: Sink,
        ticket: Ticket,
        active: Active,
    ) {
        let cancelled = sink.cancelled();
        if request.stopping.deadline_ms > 0 {
            let stopper = sink.stopper();
            let ended = active.ended();
            let deadline = Duration::from_millis(request.stopping.deadline_ms);
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(deadline) => stopper.deadline(),
                    () = ended => {}
                }
            });
        }
        let running = tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            running = self.turn(ticket, &sink) => running,
        };
        match running {
            Ok(running) => {
                let place: (Running, Active) = (running, active);
                self.engine.generate(Job { request, session, sink, place: Box::new(place) });
            }
            Err(error) => sink.fail(error),
        }
    }

    /// Waits for the ticket's turn; meanwhile tells the position, and how a load goes.
    async fn turn(&self, ticket: Ticket, sink: &Sink) -> Result<Running, Error> {
        let mut status = self.status.subscribe();
        status.mark_changed();
        let turn = ticket.turn(|position| sink.queued(position));
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                running = &mut turn => return running,
                Ok(()) = status.changed() => {
                    let status = status.borrow_and_update();
                    if status.state == State::Loading {
                        sink.loading(status.loading_fraction);
                    }
                }
            }
        }
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
    pub fn append_to_session(
        &self,
        client: &Client,
        id: &str,
        messages: Vec<Message>,
    ) -> Result<SessionInfo, Error> {
        self.sessions.append(client, id, messages, &self.settings().limits)
    }

    /// Reads what a session holds, so that its next answer comes sooner.
    pub fn prewarm_session(
        self: &Arc<Self>,
        client: &Client,
        id: &str,
        priority: Priority,
    ) -> Result<Events, Error> {
        let session = id.to_owned();
        let request =
            GenerateRequest { session, priority, prewarm: true, ..GenerateRequest::default() };
        self.generate(client, request)
    }

    /// Counts the tokens of a conversation, template included.
    pub async fn count_tokens(self: &Arc<Self>, messages: Vec<Message>) -> Result<u32, Error> {
        check_messages(&messages, &self.settings().limits)?;
        {
            let status = self.status.borrow();
            match status.state {
                State::Ready => {}
                State::Parked => {
                    drop(status);
                    self.wake();
                    return Err(loading(""));
                }
                State::NoModel => {
                    return Err(Error::ModelNotLoaded { problem: status.problem.clone() });
                }
                State::Loading => return Err(loading(&status.loading)),
                State::Draining => return Err(Error::ShuttingDown),
            }
        }
        self.engine.count_tokens(messages).await
    }

    /// Refuses new requests, lets running ones end for the configured time, then ends them.
    pub async fn drain(&self) {
        self.status.send_modify(|status| status.state = State::Draining);
        self.set_gate();
        let drain = self.settings().drain;
        if tokio::time::timeout(drain, self.queue.idle()).await.is_err() {
            self.shut_down_active();
            // One step of the engine, so that the streams see their end.
            let _ = tokio::time::timeout(Duration::from_secs(2), self.queue.idle()).await;
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

fn loading(model: &str) -> Error {
    let why = match model {
        "" => "the model is being loaded".into(),
        model => format!("the model {model:?} is being loaded"),
    };
    Error::Busy { why, retry_after_ms: 1000 }
}

type ActiveMap = Arc<Mutex<HashMap<u64, Entry>>>;

fn lock(active: &ActiveMap) -> MutexGuard<'_, HashMap<u64, Entry>> {
    active.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's entry in the list of active ones, from its acceptance to its end.
struct Active {
    map: ActiveMap,
    id: u64,
    ended: watch::Sender<()>,
    busy: Arc<watch::Sender<bool>>,
    idle_since: Arc<Mutex<Instant>>,
}

impl Active {
    fn enter(service: &Service, id: u64, entry: Entry) -> Self {
        lock(&service.active).insert(id, entry);
        service.busy.send_if_modified(|busy| !std::mem::replace(busy, true));
        Self {
            map: Arc::clone(&service.active),
            id,
            ended: watch::Sender::new(()),
            busy: Arc::clone(&service.busy),
            idle_since: Arc::clone(&service.idle_since),
        }
    }

    /// Completes when the request has ended.
    fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.ended.subscribe();
        async move { while ended.changed().await.is_ok() {} }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut map = lock(&self.map);
        map.remove(&self.id);
        if map.is_empty() {
            *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.busy.send_replace(false);
        }
    }
}
