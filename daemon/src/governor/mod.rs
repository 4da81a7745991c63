//! What the device can afford right now, and the model's size that follows from it.
//!
//! [`Governor`] is the one owner of the size in use. It has one task ([`Governor::run`]), which decides
//! (`nestd_policy`) whenever a reading, a wish, the model or the time asks for it, and has the service carry
//! the decision out, one change at a time. The APIs read its [`Report`] and bring wishes. It fails with
//! nothing: without sensors nothing is short, and a change that fails is tried again later.
//!
//! | module | what |
//! | --- | --- |
//! | [`sensors`] | what the device says |
//! | `energy` | joules per token |
//! | `pin` | the pinned size on disk |
//! | `task` | deciding and carrying out |

mod energy;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod pin;
pub mod sensors;
mod task;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;

use nestd_policy::decide::{Decision, Inputs, decide};
use nestd_policy::holds::{Hold, Holds};
use nestd_policy::ladder::{Ladder, Rung};
use nestd_policy::settings::Settings as Policy;
use nestd_policy::snapshot::Snapshot;

use crate::service::Service;
use crate::stream::Events;
use crate::types::{Client, Error, ModelInfo};

/// Wishes of all users together, and of one.
const HOLDS: usize = 64;
const HOLDS_OF_ONE: usize = 16;
/// Bytes of a hold's reason.
const REASON: usize = 256;
/// Changes that a slow listener may be behind.
const CHANGES: usize = 16;

/// What the governor takes from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whether it decides at all.
    pub enabled: bool,
    /// The profile's name, for people.
    pub profile: String,
    /// The thresholds.
    pub policy: Policy,
    /// Where the pin is kept.
    pub state_file: PathBuf,
    /// The size that the configuration fixes; empty: none.
    pub size: String,
}

/// What a client wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// No smaller than this; empty: any.
    pub min_size: String,
    /// No larger than this; empty: any.
    pub max_size: String,
    /// No new background requests are taken.
    pub no_background: bool,
    /// Why, for people.
    pub reason: String,
}

/// A size that was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The size before.
    pub from: String,
    /// The size now.
    pub to: String,
    /// Why.
    pub reason: String,
    /// Why, in one word: the decision's cause, or "load" where a load made it.
    pub cause: &'static str,
    /// How long the change took; 0 where a client's load made it.
    pub duration_us: u64,
}

/// Everything that the governor knows, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Whether it decides.
    pub enabled: bool,
    /// The profile of thresholds.
    pub profile: String,
    /// The readings.
    pub snapshot: Snapshot,
    /// The size in use; empty without a model.
    pub active_size: String,
    /// The last decision; None while there is no model to decide on.
    pub decision: Option<Decision>,
    /// What is wished.
    pub holds: Holds,
    /// What keeps the size from being the one that was decided on; empty if nothing does.
    pub problem: String,
    /// The last change.
    pub last_change: Option<Change>,
    /// What a token costs the batteries, in joules; None until that is known.
    pub energy_per_token_j: Option<f64>,
}

/// The governor. One instance, shared by both APIs.
pub struct Governor {
    service: Arc<Service>,
    state: Mutex<State>,
    report: watch::Sender<Report>,
    changes: broadcast::Sender<Change>,
    /// Something but a reading calls for a decision.
    poke: Notify,
    /// Held while the pin is written.
    writing: Mutex<()>,
    began: Instant,
}

struct State {
    settings: Settings,
    snapshot: Snapshot,
    /// With whose it is.
    holds: Vec<(String, Hold)>,
    /// What a person pinned, as on disk.
    pin: Option<String>,
    next_hold: u64,
    /// The last decision, with the model that it was for.
    last: Option<(String, Decision)>,
    problem: String,
    last_change: Option<Change>,
    energy_per_token_j: Option<f64>,
}

impl State {
    fn wishes(&self) -> Holds {
        let configured = Some(&self.settings.size).filter(|size| !size.is_empty());
        let holds = self.holds.iter().map(|(_, hold)| hold.clone()).collect();
        Holds { holds, pin: self.pin.as_ref().or(configured).cloned() }
    }
}

impl Governor {
    /// A governor that has seen no reading. `service` asks it for the size of a load that names none.
    #[must_use]
    pub fn new(service: Arc<Service>, settings: Settings) -> Arc<Self> {
        let pin = settings.enabled.then(|| pin::read(&settings.state_file)).flatten();
        let governor = Arc::new(Self {
            service,
            state: Mutex::new(State {
                settings,
                snapshot: Snapshot::default(),
                holds: Vec::new(),
                pin,
                next_hold: 1,
                last: None,
                problem: String::new(),
                last_change: None,
                energy_per_token_j: None,
            }),
            report: watch::Sender::default(),
            changes: broadcast::Sender::new(CHANGES),
            poke: Notify::new(),
            writing: Mutex::default(),
            began: Instant::now(),
        });
        let chooser = Arc::downgrade(&governor);
        governor
            .service
            .set_chooser(Arc::new(move |model, info| chooser.upgrade()?.choose(model, info)));
        governor.publish();
        governor
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the first readings, for loads before [`Governor::run`] has begun.
    pub fn see(&self, snapshot: Snapshot) {
        self.state().snapshot = snapshot;
    }

    /// Applies new settings. The pin stays where it is.
    pub fn configure(&self, settings: Settings) {
        let mut state = self.state();
        let state_file = std::mem::take(&mut state.settings.state_file);
        state.settings = Settings { state_file, ..settings };
        drop(state);
        self.poke.notify_one();
    }

    /// Everything that it knows.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Wakes whenever something of the report changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    /// Every change of the size from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Takes a wish, for as long as the hold is kept.
    pub fn hold(self: &Arc<Self>, client: &Client, wish: Wish) -> Result<Held, Error> {
        let Wish { min_size, max_size, no_background, reason } = wish;
        self.check_size("min_size", &min_size)?;
        self.check_size("max_size", &max_size)?;
        if reason.len() > REASON || reason.chars().any(char::is_control) {
            let problem = format!("a reason is one line of at most {REASON} bytes");
            return Err(Error::invalid("reason", problem));
        }
        if min_size.is_empty() && max_size.is_empty() && !no_background {
            let problem = "a hold asks for min_size, max_size or no_background";
            return Err(Error::invalid("min_size", problem));
        }
        let (account, client) = (client.account(), client.to_string());
        let mut state = self.state();
        if !state.settings.enabled {
            return Err(off());
        }
        let own = state.holds.iter().filter(|(other, _)| *other == account).count();
        if own >= HOLDS_OF_ONE || state.holds.len() >= HOLDS {
            let why =
                format!("{own} holds of this user and {} in all are in force", state.holds.len());
            return Err(Error::Busy { why, retry_after_ms: 1000 });
        }
        let id = state.next_hold;
        state.next_hold += 1;
        tracing::info!(hold = id, client, min_size, max_size, no_background, reason, "held");
        let some = |size: String| Some(size).filter(|size| !size.is_empty());
        let hold = Hold {
            id,
            client,
            min_size: some(min_size),
            max_size: some(max_size),
            no_background,
            reason,
        };
        state.holds.push((account, hold));
        drop(state);
        self.poke.notify_one();
        Ok(Held { governor: Arc::clone(self), id })
    }

    /// Fixes the size, across restarts; an empty one lets go.
    pub async fn pin(self: &Arc<Self>, client: &Client, size: &str) -> Result<(), Error> {
        self.check_size("size", size)?;
        if !self.state().settings.enabled {
            return Err(off());
        }
        let size = Some(size.to_owned()).filter(|size| !size.is_empty());
        let written = self.set_pin(client, size);
        written.await.map_err(|error| Error::Internal(format!("keeping the pin: {error}")))?
    }

    /// Loads a model. A size that is named is pinned when it is there, or the governor would change it at
    /// once.
    pub async fn load(
        self: &Arc<Self>,
        client: &Client,
        model: &str,
        size: &str,
    ) -> Result<Events, Error> {
        let pin = Some(size.to_owned()).filter(|size| !size.is_empty());
        let (governor, caller) = (Arc::clone(self), client.clone());
        let then = move || {
            if pin.is_some() && governor.state().settings.enabled {
                governor.set_pin(&caller, pin);
            }
        };
        self.service.load(client, model, size, Box::new(then)).await
    }

    /// Pins a size, or lets go. The task writes it to disk, and its result is what came of that.
    fn set_pin(
        self: &Arc<Self>,
        client: &Client,
        size: Option<String>,
    ) -> JoinHandle<Result<(), Error>> {
        tracing::info!(%client, size, "pinned");
        self.state().pin = size;
        self.poke.notify_one();
        let governor = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            // One after the other, each with what is pinned by then: the last one is right.
            let _writing = governor.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let state = governor.state();
            let (path, pin) = (state.settings.state_file.clone(), state.pin.clone());
            drop(state);
            pin::write(&path, pin.as_deref()).map_err(|error| {
                let path = path.display();
                tracing::error!(%path, %error, "the pin holds until the daemon ends");
                Error::Internal(format!(
                    "it holds until the daemon ends, but {path} was not written: {error}"
                ))
            })
        })
    }

    /// A size that the loaded model has; without a model any name will do.
    fn check_size(&self, field: &str, size: &str) -> Result<(), Error> {
        if size.is_empty() {
            return Ok(());
        }
        if !pin::is_size(size) {
            return Err(Error::invalid(field, "is not the name of a size"));
        }
        let Some(held) = self.service.held_model() else { return Ok(()) };
        if held.info.sizes.iter().any(|known| known.name == size) {
            return Ok(());
        }
        Err(held.info.no_size(&held.model, field, size))
    }

    /// The size for a load that names none.
    fn choose(&self, model: &str, info: &ModelInfo) -> Option<String> {
        let present = self.service.held_model();
        let state = self.state();
        if !state.settings.enabled {
            return None;
        }
        let held_mib = present.as_ref().map_or(0, |held| held.held_mib);
        let limit_mib = self.service.configured_memory_mib();
        let ladder = Ladder { held_mib, limit_mib, ..ladder(info) };
        let holds = state.wishes();
        let inputs =
            Inputs { snapshot: &state.snapshot, holds: &holds, ladder: &ladder, idle: None };
        let previous = state.last.as_ref().filter(|(name, _)| name == model);
        let previous = previous.map(|(_, decision)| decision);
        Some(decide(&state.settings.policy, &inputs, previous, self.began.elapsed()).size)
    }

    fn publish(&self) {
        let loaded = self.service.report().status.loaded;
        let active_size = loaded.map_or_else(String::new, |loaded| loaded.size);
        let state = self.state();
        let report = Report {
            enabled: state.settings.enabled,
            profile: state.settings.profile.clone(),
            snapshot: state.snapshot.clone(),
            active_size,
            decision: state.last.as_ref().map(|(_, decision)| decision.clone()),
            holds: state.wishes(),
            problem: state.problem.clone(),
            last_change: state.last_change.clone(),
            energy_per_token_j: state.energy_per_token_j,
        };
        drop(state);
        self.report.send_if_modified(|old| {
            let changed = *old != report;
            *old = report;
            changed
        });
    }

    fn release(&self, id: u64) {
        self.state().holds.retain(|(_, hold)| hold.id != id);
        tracing::info!(hold = id, "released");
        self.poke.notify_one();
    }
}

fn off() -> Error {
    Error::unsupported("the governor", "it is turned off (governor.enabled)")
}

/// A model's sizes as the policy sees them.
fn ladder(info: &ModelInfo) -> Ladder {
    let full = info.sizes.first().map_or(1.0, |size| size.effective_params_b);
    let rungs = info.sizes.iter().map(|size| Rung {
        name: size.name.clone(),
        need_mib: size.memory_mib,
        cost_percent: size.effective_params_b / full.max(f64::MIN_POSITIVE) * 100.0,
    });
    Ladder {
        rungs: rungs.collect(),
        held_mib: 0,
        limit_mib: None,
        context_tokens: info.context_tokens,
        parallel_requests: 1,
    }
}

/// A wish in force; dropping it ends it.
pub struct Held {
    governor: Arc<Governor>,
    id: u64,
}

impl Held {
    /// Unique while the daemon runs.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.governor.release(self.id);
    }
}
