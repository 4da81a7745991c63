//! `org.nestd.Request1`: one request's object, and the task that turns its events into signals to its
//! caller, or into text in a pipe. The documentation is in proto/dbus/org.nestd.Request1.xml.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use zbus::message::Header;
use zbus::names::{BusName, UniqueName};
use zbus::object_server::{ResponseDispatchNotifier, SignalEmitter};
use zbus::{Connection, OwnedObjectPath, interface};

use super::convert::{self, Dict, Token};
use super::error::{self, Failure};
use super::handles::Handle;
use super::pipe::Pipe;
use crate::api::REQUEST_ID;
use crate::stream::{Events, Stopper};
use crate::types::{Client, Error, Event};

/// Text that comes within this time is one signal: firmware pays for each wake-up.
const COALESCE: Duration = Duration::from_millis(20);
/// How long the object stays after the end.
const LINGER: Duration = Duration::from_secs(30);

/// The object.
pub(super) struct Request {
    id: u64,
    caller: String,
    stopper: Stopper,
    outcome: Outcome,
}

#[derive(Clone, Default)]
struct Outcome(Arc<Mutex<Dict>>);

impl Outcome {
    fn lock(&self) -> MutexGuard<'_, Dict> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// The interface macro wants headers by value.
#[allow(clippy::needless_pass_by_value)]
#[interface(name = "org.nestd.Request1", introspection_docs = false)]
impl Request {
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self, #[zbus(header)] header: Option<Header<'_>>) -> Result<u64, Failure> {
        self.check(header.as_ref())?;
        Ok(self.id)
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn outcome(&self, #[zbus(header)] header: Option<Header<'_>>) -> Result<Dict, Failure> {
        self.check(header.as_ref())?;
        Ok(self.outcome.lock().clone())
    }

    fn cancel(&self, #[zbus(header)] header: Header<'_>) -> Result<(), Failure> {
        self.check(Some(&header))?;
        self.stopper.cancel();
        Ok(())
    }

    #[zbus(signal)]
    async fn queued(emitter: &SignalEmitter<'_>, position: u32) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn loading(emitter: &SignalEmitter<'_>, fraction: f64) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn prefill(
        emitter: &SignalEmitter<'_>,
        done_tokens: u32,
        total_tokens: u32,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn text(emitter: &SignalEmitter<'_>, delta: &str) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn text_logprobs(
        emitter: &SignalEmitter<'_>,
        delta: &str,
        logprobs: Vec<(Token, Vec<Token>)>,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn size_changed(
        emitter: &SignalEmitter<'_>,
        from: &str,
        to: &str,
        reason: &str,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn finished(emitter: &SignalEmitter<'_>, result: &Dict) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn failed(
        emitter: &SignalEmitter<'_>,
        error: &str,
        message: &str,
        details: &Dict,
    ) -> zbus::Result<()>;
}

impl Request {
    /// Only the caller may know or do anything.
    fn check(&self, header: Option<&Header<'_>>) -> Result<(), Failure> {
        match header.and_then(Header::sender) {
            Some(sender) if sender.as_str() == self.caller => Ok(()),
            _ => {
                Err(Error::NotAllowed { what: "the request belongs to another caller".into() }
                    .into())
            }
        }
    }
}

/// The path goes out first, then the request's first signal.
pub(super) type NewRequest = ResponseDispatchNotifier<OwnedObjectPath>;

/// Puts the request's object on the bus; its signals begin when the reply with its path is out.
pub(super) async fn announce(
    handle: Handle,
    events: Events,
    pipe: Option<Pipe>,
    client: Client,
    connection: &Connection,
    telling: &TaskTracker,
) -> Result<NewRequest, Failure> {
    let path = handle.path.clone();
    let telling = telling.token();
    let request = register(connection, handle, events, client.name).await?;
    let (reply, sent) = ResponseDispatchNotifier::new(path);
    tokio::spawn(async move {
        sent.await;
        request.run(pipe, telling).await;
    });
    Ok(reply)
}

/// A request whose object is on the bus, and whose signals have not begun.
struct Registered {
    connection: Connection,
    emitter: SignalEmitter<'static>,
    handle: Handle,
    events: Events,
    outcome: Outcome,
}

/// Puts the object on the bus.
async fn register(
    connection: &Connection,
    handle: Handle,
    events: Events,
    caller: String,
) -> zbus::Result<Registered> {
    let destination = BusName::Unique(UniqueName::try_from(caller.clone())?);
    let emitter = SignalEmitter::new(connection, handle.path.clone().into_inner())?
        .set_destination(destination);
    let outcome = Outcome::default();
    let request =
        Request { id: events.id(), caller, stopper: events.stopper(), outcome: outcome.clone() };
    connection.object_server().at(&handle.path, request).await?;
    Ok(Registered { connection: connection.clone(), emitter, handle, events, outcome })
}

impl Registered {
    /// Tells the caller what happens until the end, and takes the object off the bus a while later.
    /// A caller that leaves ends it all: the events are dropped, which cancels the request.
    /// `telling` is dropped when the caller knows the end.
    async fn run(self, pipe: Option<Pipe>, telling: TaskTrackerToken) {
        let Self { connection, emitter, handle, events, outcome } = self;
        let request = events.id();
        let tell = async {
            if let Err(error) = forward(events, pipe, &emitter, &outcome).await {
                tracing::debug!(request, path = %handle.path, %error, "the caller cannot be told");
            }
            drop(telling);
            sleep(LINGER).await;
        };
        tokio::select! {
            () = handle.gone.cancelled() => {}
            () = tell => {}
        }
        if let Err(error) = connection.object_server().remove::<Request, _>(&handle.path).await {
            tracing::debug!(request, path = %handle.path, %error, "the object was gone");
        }
    }
}

async fn forward(
    mut events: Events,
    mut pipe: Option<Pipe>,
    emitter: &SignalEmitter<'_>,
    outcome: &Outcome,
) -> zbus::Result<()> {
    let (mut cut, mut unread) = (false, false);
    let over = events.ended();
    while let Some(event) = events.next().await {
        // The text that its reader left is not in the answer.
        let event = match event {
            Event::Finished(_) if unread => Event::Failed(events.lagged()),
            event => event,
        };
        match event {
            Event::Queued { position } => Request::queued(emitter, position).await?,
            Event::Loading { fraction } => Request::loading(emitter, fraction).await?,
            Event::Prefill { done_tokens, total_tokens } => {
                Request::prefill(emitter, done_tokens, total_tokens).await?;
            }
            Event::SizeChanged { from, to, reason } => {
                Request::size_changed(emitter, &from, &to, &reason).await?;
            }
            Event::Text(text) => match &mut pipe {
                None => {
                    // What comes meanwhile is joined in the buffer.
                    let next = Instant::now() + COALESCE;
                    let delta = convert::clean(&text.delta);
                    if text.logprobs.is_empty() {
                        Request::text(emitter, &delta).await?;
                    } else {
                        let logprobs = convert::logprobs(&text.logprobs);
                        Request::text_logprobs(emitter, &delta, logprobs).await?;
                    }
                    sleep_until(next).await;
                }
                Some(_) if cut => {}
                Some(open) => tokio::select! {
                    biased;
                    written = open.write(&text.delta, &over) => match written {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::TimedOut => {
                            tracing::debug!(request = events.id(), "the pipe's reader does not read");
                            (cut, unread) = (true, true);
                        }
                        Err(error) => {
                            tracing::debug!(request = events.id(), %error, "the pipe's reader is gone");
                            events.stopper().cancel();
                        }
                    },
                    // It is full, and the end is not to wait for who may never read. Nothing may follow
                    // what was cut.
                    () = events.stopper().stopped() => cut = true,
                },
            },
            Event::Finished(end) => {
                let mut result = convert::finished(&end);
                result.insert(REQUEST_ID, events.id().into());
                outcome.lock().clone_from(&result);
                // Whoever sees the pipe's end can read the outcome.
                drop(pipe.take());
                Request::finished(emitter, &result).await?;
            }
            Event::Failed(problem) => {
                let (name, message) = (error::name(&problem), problem.told());
                let mut details = error::details(&problem);
                details.insert(REQUEST_ID, events.id().into());
                *outcome.lock() = convert::failed(&name, &message, &details);
                drop(pipe.take());
                Request::failed(emitter, &name, &convert::clean(&message), &details).await?;
            }
        }
    }
    Ok(())
}
