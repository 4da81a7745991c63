//! Which models there are, and loading and unloading them, one at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::govern::held_mib;
use super::queue::Gate;
use super::{Service, Settings, loading, memory};
use crate::engine::catalog::{Catalog, Entry};
use crate::engine::{Keep, Plan};
use crate::stream::{self, Events, Sink};
use crate::types::{Client, Error, FinishReason, ModelInfo, Priority, State, Status};

/// A model in the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Its name.
    pub model: String,
    /// What its headers say, or why it cannot be used.
    pub info: Result<ModelInfo, Error>,
    /// Whether it is in memory.
    pub loaded: bool,
}

/// What runs when a load has succeeded, before its model answers anyone.
pub type Then = Box<dyn FnOnce() + Send>;

/// A load, with all that it needs.
pub(super) struct Loading {
    pub(super) plan: Plan,
    /// Where its progress goes.
    pub(super) sink: Sink,
    pub(super) settings: Arc<Settings>,
    pub(super) then: Option<Then>,
}

/// Progress is told this often at most.
const PROGRESS: Duration = Duration::from_millis(100);

/// What was found when the models were looked at last, and when that began.
pub(super) type LastListed = Option<(Instant, Result<Vec<Entry>, Error>)>;

impl Service {
    /// Every model, by name.
    pub async fn models(&self) -> Result<Vec<Listed>, Error> {
        let loaded = self.loaded().map(|loaded| loaded.model);
        let entries = self.list().await?;
        let listed = entries.into_iter().map(|entry| Listed {
            loaded: loaded.as_ref() == Some(&entry.model),
            model: entry.model,
            info: entry.info,
        });
        Ok(listed.collect())
    }

    /// Looks at all models, for all who ask at once: files are looked at by one at a time, and who waits
    /// for that takes what was begun since it asked.
    async fn list(&self) -> Result<Vec<Entry>, Error> {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.listed).lock_owned().await;
        if let Some((_, entries)) = last.as_ref().filter(|(began, _)| *began >= asked) {
            return entries.clone();
        }
        // Who leaves lets nobody begin before this one has ended.
        self.blocking(move |catalog| {
            let began = Instant::now();
            let entries = catalog.list();
            *last = Some((began, entries.clone()));
            entries
        })
        .await
    }

    /// Looks at files without holding up the tasks.
    async fn blocking<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Catalog) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let catalog = self.settings().catalog.clone();
        tokio::task::spawn_blocking(move || look(&catalog))
            .await
            .map_err(|error| Error::Internal(format!("looking at the models: {error}")))?
    }

    /// Loads the configured model. Without one the daemon goes on, and the status says why.
    pub async fn load_configured(self: &Arc<Self>) {
        if let Err(error) = self.begin_load("", "", None).await {
            tracing::warn!(%error, "no model");
            self.settle(Some(&error));
        }
    }

    /// Loads a model, or the present one at another size. An empty name is the present or configured
    /// model, an empty size the configured one or the largest. What can be refused is refused at
    /// once; the events then tell how it goes. Dropping them does not stop the load, and neither does a
    /// caller that goes away before.
    pub async fn load(
        self: &Arc<Self>,
        client: &Client,
        model: &str,
        size: &str,
        then: Then,
    ) -> Result<Events, Error> {
        tracing::info!(%client, model, size, "asked to load");
        let service = Arc::clone(self);
        let (model, size) = (model.to_owned(), size.to_owned());
        let load = async move { service.begin_load(&model, &size, Some(then)).await };
        tokio::spawn(load)
            .await
            .map_err(|error| Error::Internal(format!("loading a model: {error}")))?
    }

    async fn begin_load(
        self: &Arc<Self>,
        model: &str,
        size: &str,
        then: Option<Then>,
    ) -> Result<Events, Error> {
        let guard = self.change()?;
        let settings = self.settings();
        let entry = self.choose(model, &settings).await?;
        let info = entry.info?;
        let configured = match settings.model.as_str() {
            "" => settings.size.as_str(),
            model if model == entry.model => settings.size.as_str(),
            _ => "",
        };
        let size = match size {
            "" => {
                let configured = resolve_size(&entry.model, &info, "model.size", configured)?;
                self.preferred(&entry.model, &info).unwrap_or(configured)
            }
            size => resolve_size(&entry.model, &info, "size", size)?,
        };
        let (model, path, written) = (entry.model, entry.path, entry.written);
        let engine = settings.catalog.engine.clone();
        let plan = Plan { model, path, written, info, size, settings: engine };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sink, events) = stream::channel(id, settings.buffer_bytes);
        if self.switch(&plan, "asked for by a client").await? {
            if let Some(then) = then {
                then();
            }
            sink.loading(1.0);
            sink.finish(FinishReason::Stop);
            return Ok(events);
        }
        self.fit(&plan, &settings)?;
        // From here on requests wait instead of being refused.
        self.pause(&plan.model);
        let loading = Loading { plan, sink, settings, then };
        tokio::spawn(Arc::clone(self).run_load(loading, guard));
        Ok(events)
    }

    /// Does nothing where the plan is what is loaded, and changes only the size, between two tokens of
    /// the running requests, where that is all and the engine can. False if the plan takes a load.
    pub(super) async fn switch(&self, plan: &Plan, reason: &str) -> Result<bool, Error> {
        let Some(old) = self.held() else { return Ok(false) };
        if old == *plan {
            return Ok(true);
        }
        if old != (Plan { size: old.size.clone(), ..plan.clone() }) {
            return Ok(false);
        }
        // Smaller always fits, and most of all when nothing else does.
        if memory_of(plan) > memory_of(&old) {
            self.fit(plan, &self.settings())?;
        }
        let began = Instant::now();
        let Some(loaded) = self.engine.switch(plan.size.clone(), reason.to_owned()).await? else {
            return Ok(false);
        };
        tracing::info!(
            model = loaded.model,
            from = old.size,
            to = loaded.size,
            reason,
            us = began.elapsed().as_micros(),
            "size changed"
        );
        self.hold(Some(plan.clone()));
        self.status.send_modify(|status| status.loaded = Some(loaded));
        Ok(true)
    }

    /// Gives the model's memory back, after running requests have ended. A caller that goes away
    /// does not stop it half-way.
    pub async fn unload(self: &Arc<Self>, client: &Client) -> Result<(), Error> {
        tracing::info!(%client, "asked to unload");
        let guard = self.change()?;
        self.forget_parked();
        let Some(loaded) = self.loaded() else {
            self.settle(Some(&unloaded()));
            return Ok(());
        };
        self.pause("");
        let service = Arc::clone(self);
        let unload = tokio::spawn(async move {
            let _guard = guard;
            let result = match service.wait_idle(&service.settings()).await {
                Ok(()) => service.engine.unload().await,
                busy => busy,
            };
            if result.is_err() {
                service.settle(None);
                return result;
            }
            tracing::info!(model = loaded.model, "unloaded");
            service.hold(None);
            service.status.send_modify(|status| status.loaded = None);
            service.settle(Some(&unloaded()));
            Ok(())
        });
        unload.await.map_err(|error| Error::Internal(format!("unloading: {error}")))?
    }

    pub(super) fn change(&self) -> Result<OwnedMutexGuard<()>, Error> {
        if self.status.borrow().state == State::Draining {
            return Err(Error::ShuttingDown);
        }
        Arc::clone(&self.changing)
            .try_lock_owned()
            .map_err(|_| loading(&self.status.borrow().loading))
    }

    /// The model of that name; without a name the loaded or parked, the configured, or the only one.
    pub(super) async fn choose(&self, model: &str, settings: &Settings) -> Result<Entry, Error> {
        let present = self.held().or_else(|| self.parked()).map(|plan| plan.model);
        let names = [model, present.as_deref().unwrap_or_default(), &settings.model];
        let name = names.into_iter().find(|name| !name.is_empty()).map(str::to_owned);
        let dir = settings.catalog.dir.display().to_string();
        self.blocking(move |catalog| {
            if let Some(name) = name {
                return catalog.find(&name);
            }
            let problem = match catalog.names()?.as_slice() {
                [only] => return catalog.find(only),
                [] => format!("put a model's folder into {dir}, then `nestctl load`"),
                several => {
                    format!("set model.name to one of those in {dir}: {}", several.join(", "))
                }
            };
            Err(Error::ModelNotLoaded { problem })
        })
        .await
    }

    /// Loads; when that fails, what was loaded before is loaded again if it had to go.
    pub(super) async fn run_load(
        self: Arc<Self>,
        loading: Loading,
        _guard: OwnedMutexGuard<()>,
    ) -> Result<(), Error> {
        let Loading { plan, sink, settings, then } = loading;
        let began = Instant::now();
        sink.loading(0.0);
        let before = self.held();
        match self.try_load(plan.clone(), &sink, &settings).await {
            Ok(()) => {
                self.forget_parked();
                tracing::info!(
                    request = sink.id(),
                    model = plan.model,
                    size = plan.size,
                    ms = began.elapsed().as_millis(),
                    "loaded"
                );
                if let Some(then) = then {
                    then();
                }
                self.settle(None);
                sink.loading(1.0);
                sink.finish(FinishReason::Stop);
                Ok(())
            }
            Err(error) => {
                let request = sink.id();
                tracing::error!(request, model = plan.model, size = plan.size, %error, "not loaded");
                if let Some(before) = before.clone().filter(|_| self.held().is_none()) {
                    let (model, size) = (before.model.clone(), before.size.clone());
                    match self.try_load(before, &sink, &settings).await {
                        Ok(()) => {
                            tracing::info!(
                                request,
                                model,
                                size,
                                "went back to what was loaded before"
                            );
                        }
                        Err(error) => {
                            tracing::error!(request, model, size, %error, "nor what was there before");
                        }
                    }
                }
                // What was in memory, or had left it, may still come back with the next request; who waits
                // for this one is told.
                match before.or_else(|| self.parked()).filter(|_| self.held().is_none()) {
                    Some(away) => {
                        // In this order: who comes in between is refused too, and none is left waiting.
                        self.put_away(away, &error.to_string());
                        self.queue.refuse_waiting(Priority::Interactive, &error);
                    }
                    None => self.settle(Some(&error)),
                }
                sink.fail(error.clone());
                Err(error)
            }
        }
    }

    pub(super) fn parked(&self) -> Option<Plan> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn forget_parked(&self) {
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn try_load(&self, plan: Plan, sink: &Sink, settings: &Settings) -> Result<(), Error> {
        self.wait_idle(settings).await?;
        let keep = self.fit(&plan, settings)?;
        if keep == Keep::Nothing {
            self.hold(None);
            self.status.send_modify(|status| status.loaded = None);
        }
        let status = self.status.clone();
        let told = Mutex::new(Instant::now());
        let progress = move |fraction: f64| {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.elapsed() >= PROGRESS {
                *told = Instant::now();
                status.send_modify(|status| status.loading_fraction = fraction.clamp(0.0, 1.0));
            }
        };
        let load = self.engine.load(plan.clone(), keep, Box::new(progress));
        tokio::pin!(load);
        let mut status = self.status.subscribe();
        let loaded = loop {
            tokio::select! {
                loaded = &mut load => break loaded?,
                Ok(()) = status.changed() => {
                    sink.loading(status.borrow_and_update().loading_fraction);
                }
            }
        };
        self.hold(Some(plan));
        self.status.send_modify(|status| status.loaded = Some(loaded));
        // A new engine knows nothing of what it may use.
        self.set_allowance(self.allowance());
        Ok(())
    }

    /// Whether the plan fits beside the model that is loaded, or in its place, or not at all.
    pub(super) fn fit(&self, plan: &Plan, settings: &Settings) -> Result<Keep, Error> {
        let need_mib = memory_of(plan);
        let held_mib = self.held().as_ref().map_or(0, held_mib);
        let limit_mib = if settings.memory_mib == 0 { u64::MAX } else { settings.memory_mib };
        let free_mib = memory::available_mib();
        if need_mib <= free_mib.min(limit_mib.saturating_sub(held_mib)) {
            return Ok(Keep::Old);
        }
        let available_mib = free_mib.saturating_add(held_mib).min(limit_mib);
        if need_mib <= available_mib {
            return Ok(Keep::Nothing);
        }
        let (model, size) = (plan.model.clone(), plan.size.clone());
        Err(Error::InsufficientMemory { model, size, need_mib, available_mib })
    }

    pub(super) fn held(&self) -> Option<Plan> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn hold(&self, plan: Option<Plan>) {
        if plan.is_some() {
            // What was just loaded has not idled yet.
            *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// Lets running requests end; gives up after the drain time, and leaves them running.
    pub(super) async fn wait_idle(&self, settings: &Settings) -> Result<(), Error> {
        tokio::time::timeout(settings.drain, self.queue.idle()).await.map_err(|_| Error::Busy {
            why: "running requests did not end within limits.drain_ms".into(),
            retry_after_ms: 1000,
        })
    }

    pub(super) fn pause(&self, loading: &str) {
        self.status.send_modify(|status| {
            loading.clone_into(&mut status.loading);
            status.loading_fraction = 0.0;
            status.problem.clear();
            set_state(status, State::Loading);
        });
        self.set_gate();
    }

    /// After a change: the state follows from whether there is a model.
    pub(super) fn settle(&self, problem: Option<&Error>) {
        self.status.send_modify(|status| {
            status.loading.clear();
            status.loading_fraction = 0.0;
            status.problem = match problem {
                None => String::new(),
                Some(Error::ModelNotLoaded { problem }) => problem.clone(),
                Some(error) => error.to_string(),
            };
            let state = if status.loaded.is_some() { State::Ready } else { State::NoModel };
            set_state(status, state);
        });
        self.set_gate();
    }

    /// The gate follows from the state.
    pub(super) fn set_gate(&self) {
        let status = self.status.borrow();
        self.queue.set_gate(match status.state {
            State::Ready => Gate::Open,
            State::Loading | State::Parked => Gate::Paused,
            State::NoModel => {
                Gate::Closed(Error::ModelNotLoaded { problem: status.problem.clone() })
            }
            State::Draining => Gate::Closed(Error::ShuttingDown),
        });
    }
}

fn unloaded() -> Error {
    let problem = "it was unloaded on request; load one with `nestctl load`".into();
    Error::ModelNotLoaded { problem }
}

/// A daemon that drains stays draining.
pub(super) fn set_state(status: &mut Status, state: State) {
    if status.state != State::Draining {
        status.state = state;
    }
}

/// What the plan's size needs, in MiB.
pub(super) fn memory_of(plan: &Plan) -> u64 {
    plan.info.sizes.iter().find(|size| size.name == plan.size).map_or(0, |size| size.memory_mib)
}

/// The size of that name, which `field` holds; the largest, if it is empty.
fn resolve_size(model: &str, info: &ModelInfo, field: &str, name: &str) -> Result<String, Error> {
    let names = || info.sizes.iter().map(|size| size.name.as_str());
    let size = if name.is_empty() { names().next() } else { names().find(|known| *known == name) };
    size.map(str::to_owned).ok_or_else(|| info.no_size(model, field, name))
}
