//! The D-Bus API: `org.nestd.Manager1` and `org.nestd.Governor1`, an `org.nestd.Request1` for each request, and an
//! `org.nestd.Session1` for each session.
//!
//! `app` connects, then spawns [`Server::run`]; when that ends, the bus is gone, and so is the
//! daemon. Every method call runs in a task of its own (zbus's), and so does every request.

mod caller;
mod checked;
mod convert;
mod descriptors;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod governor;
mod handles;
mod held;
mod manager;
mod pipe;
mod polkit;
mod request;
mod session;
mod socket;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use nestd_proto::dbus::{NAME, PATH};
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;
use zbus::fdo::{self, RequestNameFlags, RequestNameReply};
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Address, Connection, OwnedVariant, Variant};

use crate::api::Core;
use crate::governor::{Change, Report};
use crate::service::Lease;
use crate::types::Status;
use caller::Callers;
use checked::Checked;
use governor::Governor;
use held::Held;
use manager::Manager;
use polkit::Polkit;

/// The bus answers within this time, or a call to it fails.
const BUS_ANSWERS: Duration = Duration::from_secs(10);

/// What every object stands on. Cheap to clone.
#[derive(Clone)]
struct Parts {
    core: Core,
    callers: Callers,
    polkit: Polkit,
    /// The requests whose callers have not been told their end.
    telling: TaskTracker,
    /// The sessions whose objects are on the bus, or about to be.
    sessions: Arc<Mutex<HashSet<String>>>,
}

impl Parts {
    fn sessions(&self) -> MutexGuard<'_, HashSet<String>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that owns the name and answers calls.
pub struct Server {
    connection: Connection,
    parts: Parts,
    names: fdo::NameOwnerChangedStream,
    status: watch::Receiver<Status>,
    foreground: watch::Receiver<Option<Lease>>,
    governor: watch::Receiver<Report>,
    changes: broadcast::Receiver<Change>,
    sessions: watch::Receiver<()>,
}

/// Which bus to be on.
pub enum Bus<'a> {
    /// The system bus.
    System,
    /// The session bus.
    Session,
    /// The bus at this address.
    Address(&'a str),
}

impl Server {
    /// Connects, puts the object in place, and then takes the name.
    pub async fn connect(bus: Bus<'_>, core: Core) -> zbus::Result<Self> {
        let status = core.service.watch();
        let sessions = core.service.sessions().watch();
        let foreground = core.service.foreground().watch();
        let (governor, changes) = (core.governor.watch(), core.governor.changes());
        let parts = Parts {
            core,
            callers: Callers::default(),
            polkit: Polkit::new(matches!(bus, Bus::System)),
            telling: TaskTracker::new(),
            sessions: Arc::default(),
        };
        let address = match bus {
            Bus::System => Address::system()?,
            Bus::Session => Address::session()?,
            Bus::Address(address) => Address::try_from(address)?,
        };
        let manager = Checked {
            inner: Manager { parts: parts.clone(), leases: Held::default() },
            parts: parts.clone(),
        };
        let connection = socket::builder(address)?
            .method_timeout(BUS_ANSWERS)
            .serve_at(PATH, manager)
            .build()
            .await?;
        // Before the name is taken: nobody can call yet.
        let object = Checked { inner: Governor::new(parts.clone()), parts: parts.clone() };
        connection.object_server().at(PATH, object).await?;
        let names = fdo::DBusProxy::new(&connection)
            .await?
            .receive_name_owner_changed_with_args(&[(2, "")])
            .await?;
        let flags = RequestNameFlags::DO_NOT_QUEUE;
        match connection.request_name_with_flags(NAME, flags).await? {
            RequestNameReply::PrimaryOwner => {}
            reply => {
                return Err(zbus::Error::Failure(format!(
                    "the bus does not give the name {NAME} ({reply:?}): is another nestd running?"
                )));
            }
        }
        Ok(Self { connection, parts, names, status, foreground, governor, changes, sessions })
    }

    /// Completes when every caller has been told the end of its requests; for the daemon's stop.
    pub fn told(&self) -> impl Future<Output = ()> + use<> {
        let telling = self.parts.telling.clone();
        async move {
            telling.close();
            telling.wait().await;
        }
    }

    /// Tells the bus what changes, and forgets callers that leave it. Returns when the bus is gone.
    pub async fn run(mut self) -> zbus::Result<()> {
        let emitter = SignalEmitter::new(&self.connection, PATH)?;
        let now = self.manager_properties();
        let mut manager = Told::new("org.nestd.Manager1", now);
        let now = governor::properties(&self.governor.borrow_and_update())?;
        let mut governor = Told::new("org.nestd.Governor1", now);
        session::follow(&self.parts, &self.connection).await?;
        loop {
            tokio::select! {
                left = self.names.next() => {
                    let Some(left) = left else {
                        return Err(zbus::Error::Failure("the bus has closed the connection".into()));
                    };
                    let left = left.args()?;
                    self.parts.callers.left(left.name());
                    self.parts.core.service.sessions().left(left.name());
                }
                Ok(()) = self.sessions.changed() => {
                    session::follow(&self.parts, &self.connection).await?;
                }
                Ok(()) = self.status.changed() => {
                    manager.tell(&emitter, self.manager_properties()).await?;
                }
                Ok(()) = self.foreground.changed() => {
                    manager.tell(&emitter, self.manager_properties()).await?;
                }
                Ok(()) = self.governor.changed() => {
                    let now = governor::properties(&self.governor.borrow_and_update())?;
                    governor.tell(&emitter, now).await?;
                }
                // One that was missed while there were too many is no loss: LastChange has the newest.
                Ok(Change { from, to, reason, duration_us, .. }) = self.changes.recv() => {
                    let reason = convert::clean(&reason);
                    Governor::size_changed(&emitter, &from, &to, &reason, duration_us).await?;
                }
            }
        }
    }
}

impl Server {
    fn manager_properties(&mut self) -> Vec<(&'static str, OwnedVariant)> {
        let foreground = self.foreground.borrow_and_update();
        convert::properties(&self.status.borrow_and_update(), foreground.as_ref()).into()
    }
}

/// The properties of an interface, as the bus was told them.
struct Told {
    interface: &'static str,
    values: HashMap<&'static str, OwnedVariant>,
}

impl Told {
    fn new(interface: &'static str, now: Vec<(&'static str, OwnedVariant)>) -> Self {
        Self { interface, values: now.into_iter().collect() }
    }

    /// Tells the bus what has changed, and what is gone.
    async fn tell(
        &mut self,
        emitter: &SignalEmitter<'_>,
        now: Vec<(&'static str, OwnedVariant)>,
    ) -> zbus::Result<()> {
        let mut changed: HashMap<&str, Variant<'_>> = HashMap::new();
        let mut gone: Vec<_> = self.values.keys().copied().collect();
        gone.retain(|name| !now.iter().any(|(known, _)| known == name));
        self.values.retain(|name, _| !gone.contains(name));
        for (name, value) in now {
            if self.values.get(name) != Some(&value) {
                changed.insert(name, Variant::try_from(&value)?.try_to_owned()?.into());
                self.values.insert(name, value);
            }
        }
        if changed.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let interface = InterfaceName::try_from(self.interface)?;
        fdo::Properties::properties_changed(emitter, interface, changed, Cow::Owned(gone)).await
    }
}
