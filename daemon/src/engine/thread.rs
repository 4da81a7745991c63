//! The engine thread: owns the engine, takes commands from a bounded channel, and steps the engine
//! between them. It ends when the last [`Handle`] is dropped; if it ends before, the daemon does too.

use std::convert::Infallible;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::pulse::Pulse;
use super::{Constraints, Counter, Engine, Job, Plan, Probe, Step};
use crate::types::{Error, Loaded};

/// Commands that may wait while the engine is in a step. A load takes its time, but the service
/// submits nothing while one is under way.
const COMMANDS: usize = 64;
/// How long a load or an unload may go without a sign of life: mistral.rs quantizes for minutes in silence.
const LOAD: Duration = Duration::from_secs(900);

type Progress = Box<dyn Fn(f64) + Send>;
/// What the engine that is there gave to look at it from elsewhere.
#[derive(Clone, Default)]
struct Views {
    probe: Option<Probe>,
    counter: Option<Counter>,
}

type Viewing = Arc<Mutex<Views>>;
/// Sessions that ended since the last step. Clients make and end them as they like, so all of them together
/// have one command that wakes the thread.
#[derive(Default)]
struct Forgotten {
    sessions: Vec<u64>,
    /// That command is under way.
    told: bool,
}

type Forgetting = Arc<Mutex<Forgotten>>;
type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the engine thread can be told. Each says when it is legal; else it is answered with an error.
enum Command {
    /// Any time no job runs. Takes the place of the engine that is there, which is dropped before
    /// (`Keep::Nothing`) or after the new one stands (`Keep::Old`); in the second case a failure
    /// leaves the old one in place.
    Load { plan: Box<Plan>, keep: Keep, progress: Progress, reply: Reply<Loaded> },
    /// Any time. Answered with None where that takes a load.
    Switch { size: String, reason: String, reply: Reply<Option<Loaded>> },
    /// Any time; without an engine it does nothing.
    Constrain(Constraints),
    /// Likewise.
    Prepare(String),
    /// Any time: there are sessions to forget.
    Forget,
    /// Any time; jobs that still run are dropped with their engine.
    Unload { reply: Reply<()> },
    /// With an engine loaded.
    Generate(Box<Job>),
}

impl Command {
    /// How long it may take without a sign of life.
    fn patience(&self) -> Duration {
        match self {
            Self::Load { .. } | Self::Unload { .. } => LOAD,
            _ => Duration::ZERO,
        }
    }
}

/// What stays in memory while a new engine is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Both fit.
    Old,
    /// They do not.
    Nothing,
}

/// The rest of the daemon's end of the command channel.
#[derive(Clone)]
pub struct Handle {
    commands: SyncSender<Command>,
    viewing: Viewing,
    forgotten: Forgetting,
    pulse: Pulse,
}

/// Starts the engine thread. The receiver completes, with an error, when the thread has ended.
pub fn spawn() -> std::io::Result<(Handle, oneshot::Receiver<Infallible>)> {
    let (commands, receiver) = sync_channel(COMMANDS);
    let (alive, ended) = oneshot::channel();
    let (viewing, forgotten) = (Viewing::default(), Forgetting::default());
    let (viewed, forgets) = (Arc::clone(&viewing), Arc::clone(&forgotten));
    let pulse = Pulse::default();
    let shown = pulse.clone();
    std::thread::Builder::new().name("nestd-engine".into()).spawn(move || {
        // Dropped when the thread returns or panics.
        let _alive = alive;
        run(&receiver, &viewed, &forgets, &shown);
    })?;
    Ok((Handle { commands, viewing, forgotten, pulse }, ended))
}

impl Handle {
    /// Loads a model in place of the one that is there. Takes as long as it takes.
    pub async fn load(&self, plan: Plan, keep: Keep, progress: Progress) -> Result<Loaded, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Load { plan: Box::new(plan), keep, progress, reply })?;
        answer.await.map_err(|_| gone())?
    }

    /// Goes on at another size between two tokens. None where that takes a load. Takes as long as the
    /// step that is under way: a timeout would leave the caller with a size that is about to change.
    pub async fn switch(&self, size: String, reason: String) -> Result<Option<Loaded>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Switch { size, reason, reply })?;
        answer.await.map_err(|_| gone())?
    }

    /// Narrows what the engine may use.
    pub fn constrain(&self, constraints: Constraints) -> Result<(), Error> {
        self.send(Command::Constrain(constraints))
    }

    /// Readies what a size needs that may come soon.
    pub fn prepare(&self, size: String) -> Result<(), Error> {
        self.send(Command::Prepare(size))
    }

    /// Has what was kept of a session forgotten.
    pub fn forget(&self, session: u64) {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        forgotten.sessions.push(session);
        // With no room for it there are commands, and the thread looks before each.
        forgotten.told = forgotten.told || self.commands.try_send(Command::Forget).is_ok();
    }

    /// Gives the model's memory back. Takes as long as it takes: a timeout would leave the caller with
    /// a model that is about to go.
    pub async fn unload(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Unload { reply })?;
        answer.await.map_err(|_| gone())?
    }

    /// The signs of life of the thread, and of what works for it.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Bytes of the model that are in memory, by part; nothing where the engine cannot tell. Does not
    /// wait for the engine, but may take tens of milliseconds.
    #[must_use]
    pub fn resident(&self) -> Vec<(&'static str, u64)> {
        self.views().probe.map_or_else(Vec::new, |probe| probe())
    }

    /// What counts tokens; None without a model.
    #[must_use]
    pub fn counter(&self) -> Option<Counter> {
        self.views().counter
    }

    fn views(&self) -> Views {
        self.viewing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hands a job over. Its sink is told what becomes of it, a refusal included.
    pub fn generate(&self, job: Job) {
        self.pulse.thread.expect();
        if let Err(error) = self.commands.try_send(Command::Generate(Box::new(job))) {
            let (command, error) = match error {
                TrySendError::Full(command) => (command, busy()),
                TrySendError::Disconnected(command) => (command, gone()),
            };
            if let Command::Generate(job) = command {
                job.sink.fail(error);
            }
        }
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        self.pulse.thread.expect();
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => busy(),
            TrySendError::Disconnected(_) => gone(),
        })
    }
}

fn busy() -> Error {
    Error::Busy { why: "the engine is in the middle of a step".into(), retry_after_ms: 1000 }
}

fn gone() -> Error {
    Error::Internal("the engine thread has ended".into())
}

pub(super) fn not_loaded() -> Error {
    Error::ModelNotLoaded { problem: "it was unloaded just now".into() }
}

fn run(commands: &Receiver<Command>, viewing: &Viewing, forgotten: &Forgetting, pulse: &Pulse) {
    let forgotten = || forgotten.lock().unwrap_or_else(PoisonError::into_inner);
    let mut engine: Option<Box<dyn Engine>> = None;
    loop {
        pulse.thread.begin(Duration::ZERO);
        let ended = std::mem::take(&mut forgotten().sessions);
        if let Some(engine) = &mut engine {
            for session in ended {
                engine.forget(session);
            }
        }
        let step = engine.as_mut().map_or(Step::Idle, |engine| engine.step());
        let command = match step {
            Step::Ready => commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
            Step::Wait(time) => {
                pulse.thread.begin(time);
                commands.recv_timeout(time)
            }
            Step::Idle => {
                pulse.thread.end();
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            }
        };
        match command {
            Ok(Command::Forget) => forgotten().told = false,
            Ok(command) => {
                pulse.thread.begin(command.patience());
                obey(command, &mut engine, viewing, pulse);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn obey(command: Command, engine: &mut Option<Box<dyn Engine>>, viewing: &Viewing, pulse: &Pulse) {
    let view = |views| *viewing.lock().unwrap_or_else(PoisonError::into_inner) = views;
    // A caller that no longer waits for its reply has lost interest; that is not an error.
    match command {
        Command::Load { plan, keep, progress, reply } => {
            if keep == Keep::Nothing {
                *engine = None;
                view(Views::default());
            }
            let result = super::load(&plan, &*progress, pulse).map(|new| {
                let loaded = new.loaded().clone();
                view(Views { probe: new.probe(), counter: Some(new.counter()) });
                *engine = Some(new);
                loaded
            });
            let _ = reply.send(result);
        }
        Command::Switch { size, reason, reply } => {
            let switched = engine.as_mut().and_then(|engine| {
                engine.switch(&size, &reason)?;
                Some(engine.loaded().clone())
            });
            let _ = reply.send(Ok(switched));
        }
        Command::Constrain(constraints) => {
            if let Some(engine) = engine {
                engine.constrain(constraints);
            }
        }
        Command::Prepare(size) => {
            if let Some(engine) = engine {
                engine.prepare(&size);
            }
        }
        // The loop looks for them.
        Command::Forget => {}
        Command::Unload { reply } => {
            *engine = None;
            view(Views::default());
            let _ = reply.send(Ok(()));
        }
        Command::Generate(job) => match engine {
            Some(engine) => engine.start(*job),
            None => job.sink.fail(not_loaded()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_end_take_no_room_from_commands() {
        let (commands, receiver) = sync_channel(COMMANDS);
        let (viewing, forgotten) = (Viewing::default(), Forgetting::default());
        let pulse = Pulse::default();
        let handle = Handle {
            commands,
            viewing: Arc::clone(&viewing),
            forgotten: Arc::clone(&forgotten),
            pulse: pulse.clone(),
        };
        // The thread is in a step.
        (0..1000).for_each(|session| handle.forget(session));
        (1..COMMANDS).for_each(|_| handle.prepare("E2B".into()).unwrap());
        assert!(handle.prepare("E2B".into()).is_err(), "the channel is full");

        let thread = std::thread::spawn({
            let (forgotten, pulse) = (Arc::clone(&forgotten), pulse.clone());
            move || run(&receiver, &viewing, &forgotten, &pulse)
        });
        // What ends later wakes it again.
        while forgotten.lock().unwrap().told {
            std::thread::yield_now();
        }
        handle.forget(1000);
        while !forgotten.lock().unwrap().sessions.is_empty() {
            std::thread::yield_now();
        }
        drop(handle);
        thread.join().unwrap();
    }
}
