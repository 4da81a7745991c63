//! The D-Bus API: `org.nestd.Manager1` and `org.nestd.Governor1`, an `org.nestd.Request1` for each request, and an
//! `org.nestd.Session1` for each session.
//!
//! `app` connects, then spawns [`Server::run`]; when that ends, the bus is gone, and so is the
//! daemon. Every method call runs in a task of its own (zbus's), and so does every request.

mod caller;
mod checked;
mod convert;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod governor;
mod handles;
mod manager;
mod pipe;
mod polkit;
mod request;
mod session;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nestd_proto::dbus::{NAME, PATH};
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;
use zbus::connection::Builder;
use zbus::fdo::{self, RequestNameFlags, RequestNameReply};
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedVariant, Variant};

use crate::api::Core;
use crate::governor::{Change, Report};
use crate::service::Service;
use crate::types::Status;
use checked::Checked;
use governor::Governor;
use handles::Handles;
use manager::Manager;
use session::Objects;

/// The bus answers within this time, or a call to it fails.
const BUS_ANSWERS: Duration = Duration::from_secs(10);

/// A connection that owns the name and answers calls.
pub struct Server {
    connection: Connection,
    handles: Handles,
    telling: TaskTracker,
    names: fdo::NameOwnerChangedStream,
    status: watch::Receiver<Status>,
    governor: watch::Receiver<Report>,
    changes: broadcast::Receiver<Change>,
    sessions: watch::Receiver<()>,
    objects: Objects,
    service: Arc<Service>,
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
        let handles = Handles::default();
        let status = core.service.watch();
        let service = Arc::clone(&core.service);
        let sessions = service.sessions().watch();
        let (report, changes) = (core.governor.watch(), core.governor.changes());
        let governor = Governor::new(core.governor.clone(), handles.clone());
        let telling = TaskTracker::new();
        let gate = core.gate.clone();
        let manager = Manager { core, handles: handles.clone(), telling: telling.clone() };
        let objects = Objects::new(manager.session());
        let builder = match bus {
            Bus::System => Builder::system(),
            Bus::Session => Builder::session(),
            Bus::Address(address) => Builder::address(address),
        };
        let manager = Checked { inner: manager, gate: Arc::clone(&gate) };
        let connection =
            builder.method_timeout(BUS_ANSWERS).serve_at(PATH, manager).build().await?;
        // Before the name is taken: nobody can call yet.
        connection.object_server().at(PATH, Checked { inner: governor, gate }).await?;
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
        let governor = report;
        Ok(Self {
            connection,
            handles,
            telling,
            names,
            status,
            governor,
            changes,
            sessions,
            objects,
            service,
        })
    }

    /// Completes when every caller has been told the end of its requests; for the daemon's stop.
    pub fn told(&self) -> impl Future<Output = ()> + use<> {
        let telling = self.telling.clone();
        async move {
            telling.close();
            telling.wait().await;
        }
    }

    /// Tells the bus what changes, and forgets callers that leave it. Returns when the bus is gone.
    pub async fn run(mut self) -> zbus::Result<()> {
        let emitter = SignalEmitter::new(&self.connection, PATH)?;
        let now = convert::properties(&self.status.borrow_and_update()).to_vec();
        let mut manager = Told::new("org.nestd.Manager1", now);
        let now = governor::properties(&self.governor.borrow_and_update())?;
        let mut governor = Told::new("org.nestd.Governor1", now);
        self.objects.follow(&self.connection).await?;
        loop {
            tokio::select! {
                left = self.names.next() => {
                    let Some(left) = left else {
                        return Err(zbus::Error::Failure("the bus has closed the connection".into()));
                    };
                    let left = left.args()?;
                    self.handles.left(left.name());
                    self.service.sessions().left(left.name());
                }
                Ok(()) = self.sessions.changed() => {
                    self.objects.follow(&self.connection).await?;
                }
                Ok(()) = self.status.changed() => {
                    let now = convert::properties(&self.status.borrow_and_update()).to_vec();
                    manager.tell(&emitter, now).await?;
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
