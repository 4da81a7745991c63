//! The governor's task: decides, and has the service carry it out. A change of the size or of the model's
//! presence runs in a task of its own, so that readings are seen meanwhile; there is never more than one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use nestd_policy::decide::{Cause, Decision, Inputs, Shed, decide};
use nestd_policy::ladder::Ladder;
use nestd_policy::snapshot::Snapshot;

use super::energy::Energy;
use super::sensors::sleep::Release;
use super::{Change, Governor, ladder};
use crate::service::{Allowance, Power};
use crate::types::{Error, Loaded, State as DaemonState};

/// A change that failed is not tried again sooner.
const RETRY: Duration = Duration::from_secs(10);
/// Nor one that memory is waiting for.
const URGENT_RETRY: Duration = Duration::from_secs(1);
/// Running requests have so long to end before the device sleeps: logind waits for five seconds.
const SLEEP: Duration = Duration::from_secs(4);

/// A change under way: of the size, or the model's leaving.
type Work = JoinHandle<Result<Option<Change>, Error>>;

impl Governor {
    /// Decides for ever. `release` tells that the device may sleep.
    pub async fn run(self: Arc<Self>, mut readings: watch::Receiver<Snapshot>, release: Release) {
        let mut status = self.service.watch();
        let mut busy = self.service.busy();
        let mut work: Option<Work> = None;
        let mut failed_at: Option<Instant> = None;
        let mut sensors_left = true;
        let mut active = self.loaded();
        let mut energy = Energy::default();
        loop {
            let snapshot = readings.borrow_and_update().clone();
            let sleeping = snapshot.sleeping;
            let power_w = snapshot.battery.and_then(|battery| battery.power_w);
            let tokens = crate::stream::tokens_made();
            let per_token = energy.see(Instant::now(), tokens, power_w, *busy.borrow());
            self.state().energy_per_token_j = per_token;
            let on_battery = snapshot.battery.is_some() && snapshot.on_ac != Some(true);
            self.service.set_power(Power { on_battery, per_token_j: per_token });
            self.service.metrics().energy(energy.take_spent_j());
            let slept = std::mem::replace(&mut self.state().snapshot, snapshot).sleeping;
            if sleeping && !slept {
                self.before_sleep(release.clone());
            }
            if work.is_none() {
                self.tell_foreign_change(&mut active);
            }
            let decision = self.decide();
            let mut again = decision.as_ref().and_then(|decision| decision.again_in);
            if work.is_none() {
                let urgent =
                    decision.as_ref().is_some_and(|decision| decision.shed > Shed::Nothing);
                let pause = if urgent { URGENT_RETRY } else { RETRY };
                let wait =
                    failed_at.map_or(Duration::ZERO, |at| pause.saturating_sub(at.elapsed()));
                match decision.and_then(|decision| self.work(&decision, wait.is_zero())) {
                    Some(Ok(begun)) => work = Some(begun),
                    Some(Err(())) => again = Some(again.map_or(wait, |again| again.min(wait))),
                    None => self.state().problem.clear(),
                }
            }
            self.publish();
            let size = self.loaded().map(|loaded| loaded.size);
            self.service.metrics().size_in_use(size.as_deref());
            tokio::select! {
                changed = readings.changed(), if sensors_left => sensors_left = changed.is_ok(),
                _ = status.changed() => {}
                _ = busy.changed() => {}
                () = self.poke.notified() => {}
                () = sleep(again) => {}
                result = finished(&mut work) => {
                    work = None;
                    failed_at = self.record(result, &mut active).then(Instant::now);
                }
            }
        }
    }

    fn loaded(&self) -> Option<Loaded> {
        self.service.report().status.loaded
    }

    /// Decides, and tells the service what requests may use. None without a model, or when turned off.
    fn decide(&self) -> Option<Decision> {
        let model = self.service.held_model();
        let loaded = self.loaded().is_some();
        let parallel = self.service.configured_parallel();
        let mut state = self.state();
        let Some(model) = model.filter(|_| state.settings.enabled) else {
            state.last = None;
            drop(state);
            self.service.allow(Allowance::default());
            return None;
        };
        let ladder = Ladder {
            held_mib: model.held_mib,
            limit_mib: self.service.configured_memory_mib(),
            context_tokens: model.context_tokens,
            parallel_requests: parallel,
            ..ladder(&model.info)
        };
        let holds = state.wishes();
        let idle = self.service.idle().filter(|_| loaded);
        let inputs = Inputs { snapshot: &state.snapshot, holds: &holds, ladder: &ladder, idle };
        let previous = state.last.as_ref().filter(|(name, _)| *name == model.model);
        let previous = previous.map(|(_, decision)| decision);
        let decision = decide(&state.settings.policy, &inputs, previous, self.began.elapsed());
        // A plan that is given up is told too, or what was read for it would stay.
        if previous.and_then(|previous| previous.planned.as_ref()) != decision.planned.as_ref() {
            self.service.prepare(decision.planned.as_ref().unwrap_or(&decision.size));
        }
        let told = previous.map(|previous| (&previous.reason, previous.shed));
        if told != Some((&decision.reason, decision.shed)) {
            tracing::debug!(
                size = decision.size,
                level = decision.level.name(),
                shed = ?decision.shed,
                reason = decision.reason,
                next = decision.next_threshold,
                "decided"
            );
        }
        state.last = Some((model.model, decision.clone()));
        drop(state);
        let why = match holds.no_background() {
            Some(hold) => format!("{}: {}", hold.client, hold.reason),
            // The reason is the size's; where no reading makes that, it is not why there is no background work.
            None => match decision.cause {
                Cause::Plenty | Cause::Memory | Cause::Hold | Cause::Pin | Cause::Idle => {
                    format!("the device is at level {}", decision.level.name())
                }
                Cause::Battery | Cause::Temperature | Cause::Pressure | Cause::PowerProfile => {
                    decision.reason.clone()
                }
            },
        };
        self.service.allow(Allowance {
            max_context: decision.max_context,
            max_parallel: decision.max_parallel,
            no_background: (!decision.background_allowed).then_some(why),
            caches: decision.shed == Shed::Nothing,
        });
        Some(decision)
    }

    /// Begins what the decision wants of the loaded model; None if that is how things are, an error if it
    /// may not begin yet.
    fn work(&self, decision: &Decision, may_begin: bool) -> Option<Result<Work, ()>> {
        let status = self.service.report().status;
        let loaded = status.loaded.filter(|_| status.state == DaemonState::Ready)?;
        if !decision.park && loaded.size == decision.size {
            return None;
        }
        if !may_begin {
            return Some(Err(()));
        }
        let (service, reason) = (Arc::clone(&self.service), decision.reason.clone());
        if decision.park {
            let if_idle = decision.cause == Cause::Idle;
            return Some(Ok(tokio::spawn(async move {
                service.park(&reason, if_idle).await?;
                Ok(None)
            })));
        }
        let (to, cause) = (decision.size.clone(), decision.cause.name());
        Some(Ok(tokio::spawn(async move {
            let took = service.resize(&loaded, &to, &reason).await?;
            Ok(took.map(|took| {
                let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                Change { from: loaded.size, to, reason, cause, duration_us }
            }))
        })))
    }

    /// Tells what came of a change; whether it failed.
    fn record(&self, result: Result<Option<Change>, Error>, active: &mut Option<Loaded>) -> bool {
        match result {
            Ok(change) => {
                self.state().problem.clear();
                if let Some(change) = change {
                    *active = self.loaded();
                    self.tell(change);
                }
                false
            }
            Err(error) => {
                tracing::warn!(%error, "the size stays");
                self.state().problem = error.to_string();
                true
            }
        }
    }

    /// A load changed the size: a client's, or that of a model which had left memory. `active` is what was
    /// in memory last.
    fn tell_foreign_change(&self, active: &mut Option<Loaded>) {
        let Some(now) = self.loaded() else { return };
        if let Some(before) = active
            && before.model == now.model
            && before.size != now.size
        {
            let (from, to) = (before.size.clone(), now.size.clone());
            let reason = "it was loaded anew".into();
            self.tell(Change { from, to, reason, cause: "load", duration_us: 0 });
        }
        *active = Some(now);
    }

    fn tell(&self, change: Change) {
        self.service.metrics().switched(change.cause, &change.from, &change.to);
        self.state().last_change = Some(change.clone());
        // Nobody may be listening.
        let _ = self.changes.send(change);
    }

    /// Lets running requests end, for as long as logind waits. What still runs goes on after the sleep.
    fn before_sleep(&self, release: Release) {
        let service = Arc::clone(&self.service);
        tokio::spawn(async move {
            let quiet = tokio::time::timeout(SLEEP, service.quiet()).await.is_ok();
            tracing::info!(quiet, "the device goes to sleep");
            release.ready();
        });
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

async fn finished(work: &mut Option<Work>) -> Result<Option<Change>, Error> {
    match work {
        Some(work) => work
            .await
            .unwrap_or_else(|error| Err(Error::Internal(format!("changing the size: {error}")))),
        None => std::future::pending().await,
    }
}
