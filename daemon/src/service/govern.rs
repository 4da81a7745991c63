//! What the governor may do with the service: see what is loaded, change its size, let it leave memory,
//! and narrow what requests may ask for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedMutexGuard, watch};

use super::load::Loading;
use super::requests::lock;
use super::{Power, Service, Settings, memory, no_background};
use crate::engine::catalog::Entry;
use crate::engine::{Constraints, Plan};
use crate::stream;
use crate::types::{EngineKind, Error, Loaded, ModelInfo, Priority, State};

/// Picks the size for a load that names none: the model's name and what its headers say.
pub type Chooser = Arc<dyn Fn(&str, &ModelInfo) -> Option<String> + Send + Sync>;

/// What requests may ask for right now, within the configured limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The longest context of a new request.
    pub max_context: u32,
    /// Requests that run at once.
    pub max_parallel: u32,
    /// Why no new background requests are taken; None: they are.
    pub no_background: Option<String>,
    /// Whether caches are kept that no running request uses.
    pub caches: bool,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { max_context: u32::MAX, max_parallel: u32::MAX, no_background: None, caches: true }
    }
}

/// The model that is in memory, or that comes back when it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Its name.
    pub model: String,
    /// What its headers say.
    pub info: ModelInfo,
    /// The size it runs at, or ran at.
    pub size: String,
    /// What would be available, and is not now, if it went; MiB.
    pub held_mib: u64,
    /// Prompt and answer together.
    pub context_tokens: u32,
}

impl Service {
    /// From now on this picks the size where nobody names one.
    pub fn set_chooser(&self, chooser: Chooser) {
        *self.chooser.write().unwrap_or_else(PoisonError::into_inner) = Some(chooser);
    }

    /// The model that there is to decide on.
    #[must_use]
    pub fn held_model(&self) -> Option<Held> {
        let (plan, held_mib) = match (self.held(), self.parked()) {
            (Some(plan), _) => (plan.clone(), held_mib(&plan)),
            (None, Some(plan)) => (plan, 0),
            (None, None) => return None,
        };
        let own = plan.info.context_tokens;
        let context_tokens = match plan.settings.context_tokens {
            0 => own,
            configured => configured.min(own),
        };
        let Plan { model, info, size, .. } = plan;
        Some(Held { model, info, size, held_mib, context_tokens })
    }

    /// How long no request has been there; None while there is one.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        lock(&self.active).is_empty().then(|| since.elapsed())
    }

    /// Changes when the first request comes, and when the last one has ended.
    #[must_use]
    pub fn busy(&self) -> watch::Receiver<bool> {
        self.busy.subscribe()
    }

    /// Requests that run at once, as configured.
    #[must_use]
    pub fn configured_parallel(&self) -> u32 {
        self.settings().limits.parallel_requests
    }

    /// At most this much for a model, as configured; None: what there is.
    #[must_use]
    pub fn configured_memory_mib(&self) -> Option<u64> {
        Some(self.settings().memory_mib).filter(|limit| *limit > 0)
    }

    /// Waits until no request runs.
    pub async fn quiet(&self) {
        self.queue.idle().await;
    }

    /// Narrows what requests may ask for. Does nothing where nothing changes.
    pub fn allow(&self, allowance: Allowance) {
        let told = self.engine_was_told.load(Ordering::Relaxed);
        if !told || self.allowance() != allowance {
            self.set_allowance(allowance);
        }
    }

    pub(super) fn set_allowance(&self, allowance: Allowance) {
        let constraints =
            Constraints { context_tokens: allowance.max_context, caches: allowance.caches };
        if let Some(why) = &allowance.no_background {
            let error = no_background(why);
            self.queue.refuse_waiting(Priority::Background, &error);
        }
        *self.allowance.write().unwrap_or_else(PoisonError::into_inner) = allowance;
        let told = self.engine.constrain(constraints);
        if let Err(error) = &told {
            tracing::warn!(%error, "the engine is told later what it may use");
        }
        self.engine_was_told.store(told.is_ok(), Ordering::Relaxed);
        self.apply_limits();
    }

    /// What tokens cost from now on, for the quotas.
    pub fn set_power(&self, power: Power) {
        self.quotas.set_power(power);
    }

    /// Bytes of the model that are in memory, by part; nothing where the engine cannot tell. Takes a while.
    #[must_use]
    pub fn resident(&self) -> Vec<(&'static str, u64)> {
        self.engine.resident()
    }

    /// Readies what a size needs that may come soon, where the engine can, and nothing else any more.
    pub fn prepare(&self, size: &str) {
        if let Err(error) = self.engine.prepare(size.to_owned()) {
            tracing::debug!(%error, "nothing was read ahead");
        }
    }

    /// Takes the loaded model from one size to another: between two tokens where the engine can, else by
    /// a load. A load that fails goes back to the size before. Tells how long it took; None if the model
    /// was no longer at the first size when the change's turn came. To be awaited to its end.
    pub async fn resize(
        self: &Arc<Self>,
        from: &Loaded,
        size: &str,
        reason: &str,
    ) -> Result<Option<Duration>, Error> {
        let guard = self.change_next().await?;
        let began = Instant::now();
        let same = |held: &Plan| held.model == from.model && held.size == from.size;
        let Some(old) = self.held().filter(same) else { return Ok(None) };
        let plan = Plan { size: size.to_owned(), ..old };
        if self.switch(&plan, reason).await? {
            return Ok(Some(began.elapsed()));
        }
        let settings = self.settings();
        self.fit(&plan, &settings)?;
        self.pause(&plan.model);
        Arc::clone(self).run_load(self.silent(plan, settings), guard).await?;
        Ok(Some(began.elapsed()))
    }

    /// Lets the model leave memory, after running requests have ended. It comes back with the next one.
    /// With `if_idle` it stays if a request has come meanwhile. To be awaited to its end.
    pub async fn park(self: &Arc<Self>, why: &str, if_idle: bool) -> Result<(), Error> {
        let guard = self.change_next().await?;
        let Some(plan) = self.held() else { return Ok(()) };
        if if_idle && self.idle().is_none() {
            return Ok(());
        }
        self.pause("");
        let unloaded = match self.wait_idle(&self.settings()).await {
            Ok(()) => self.engine.unload().await,
            busy => busy,
        };
        if let Err(error) = unloaded {
            self.settle(None);
            return Err(error);
        }
        tracing::info!(model = plan.model, why, "left memory; it comes back when it is asked for");
        self.hold(None);
        self.put_away(plan, why);
        drop(guard);
        // Whoever came while it left waits for it.
        if self.queue.counts().1 > 0 {
            self.wake();
        }
        Ok(())
    }

    /// Waits for the change that is under way, if one is.
    async fn change_next(&self) -> Result<OwnedMutexGuard<()>, Error> {
        let guard = Arc::clone(&self.changing).lock_owned().await;
        if self.status.borrow().state == State::Draining {
            return Err(Error::ShuttingDown);
        }
        Ok(guard)
    }

    /// A load that no client listens to.
    fn silent(&self, plan: Plan, settings: Arc<Settings>) -> Loading {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sink, _) = stream::channel(id, settings.buffer_bytes);
        Loading { plan, sink, settings, then: None }
    }

    /// The state of a model that left memory and comes back.
    pub(super) fn put_away(&self, plan: Plan, why: &str) {
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
        self.status.send_modify(|status| {
            status.loaded = None;
            status.loading.clear();
            status.problem = format!("it left memory ({why}) and comes back with the next request");
            super::load::set_state(status, State::Parked);
        });
        self.set_gate();
    }

    /// Brings back the model that left memory, if that is how things stand.
    pub(super) fn wake(self: &Arc<Self>) {
        if self.status.borrow().state != State::Parked {
            return;
        }
        let Some(plan) = self.parked() else { return };
        let service = Arc::clone(self);
        tokio::spawn(async move {
            // It may still be leaving; and somebody else may bring it back first.
            let guard = Arc::clone(&service.changing).lock_owned().await;
            if service.status.borrow().state != State::Parked {
                return;
            }
            let settings = service.settings();
            match service.again(&plan, &settings).await {
                Ok(plan) => {
                    service.pause(&plan.model);
                    // It tells the log and those who wait.
                    let loading = service.silent(plan, settings);
                    let _ = Arc::clone(&service).run_load(loading, guard).await;
                }
                Err(error) => {
                    tracing::error!(model = plan.model, %error, "it does not come back");
                    service.put_away(plan, &error.to_string());
                    service.queue.refuse_waiting(Priority::Interactive, &error);
                }
            }
        });
    }

    /// What left memory, as its file and the settings are now.
    async fn again(&self, parked: &Plan, settings: &Settings) -> Result<Plan, Error> {
        let Entry { model, path, written, info } = self.choose(&parked.model, settings).await?;
        let info = info?;
        let names = || info.sizes.iter().map(|size| &size.name);
        let same = names().find(|name| **name == parked.size).or_else(|| names().next()).cloned();
        let size = self.preferred(&model, &info).or(same).unwrap_or_default();
        Ok(Plan { model, path, written, info, size, settings: settings.catalog.engine.clone() })
    }

    /// The size that the chooser wants for a model.
    pub(super) fn preferred(&self, model: &str, info: &ModelInfo) -> Option<String> {
        let chooser = self.chooser.read().unwrap_or_else(PoisonError::into_inner).clone();
        chooser.and_then(|choose| choose(model, info))
    }
}

/// What a loaded model takes away from what is available. Mapped weights count as available; caches and
/// work space do not, and they are nearly all else that the daemon has.
pub(super) fn held_mib(plan: &Plan) -> u64 {
    match plan.info.engine {
        EngineKind::Elastic => memory::anonymous_mib().min(super::load::memory_of(plan)),
        EngineKind::Mistralrs | EngineKind::Sim => super::load::memory_of(plan),
    }
}
