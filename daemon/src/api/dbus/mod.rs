//! The D-Bus API: `org.nestd.Manager1`, and an `org.nestd.Request1` for each request.
//!
//! `app` connects, then spawns [`Server::run`]; when that ends, the bus is gone, and so is the
//! daemon. Every method call runs in a task of its own (zbus's), and so does every request.

mod convert;
mod error;
mod handles;
mod manager;
mod pipe;
mod request;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nestd_proto::dbus::{NAME, PATH};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use zbus::connection::Builder;
use zbus::fdo::{self, RequestNameFlags, RequestNameReply};
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, Variant};

use crate::service::Service;
use crate::types::Status;
use handles::Handles;
use manager::Manager;

/// The bus answers within this time, or a call to it fails.
const BUS_ANSWERS: Duration = Duration::from_secs(10);

/// A connection that owns the name and answers calls.
pub struct Server {
    connection: Connection,
    handles: Handles,
    telling: TaskTracker,
    names: fdo::NameOwnerChangedStream,
    status: watch::Receiver<Status>,
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
    pub async fn connect(bus: Bus<'_>, service: Arc<Service>) -> zbus::Result<Self> {
        let handles = Handles::default();
        let status = service.watch();
        let telling = TaskTracker::new();
        let manager = Manager { service, handles: handles.clone(), telling: telling.clone() };
        let builder = match bus {
            Bus::System => Builder::system(),
            Bus::Session => Builder::session(),
            Bus::Address(address) => Builder::address(address),
        };
        let connection =
            builder.method_timeout(BUS_ANSWERS).serve_at(PATH, manager).build().await?;
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
        Ok(Self { connection, handles, telling, names, status })
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
        let mut told: HashMap<_, _> =
            convert::properties(&self.status.borrow_and_update()).into_iter().collect();
        loop {
            tokio::select! {
                left = self.names.next() => {
                    let Some(left) = left else {
                        return Err(zbus::Error::Failure("the bus has closed the connection".into()));
                    };
                    self.handles.left(left.args()?.name());
                }
                Ok(()) = self.status.changed() => {
                    let now = convert::properties(&self.status.borrow_and_update());
                    let mut changed: HashMap<&str, Variant<'_>> = HashMap::new();
                    for (name, value) in now {
                        if told.get(name) != Some(&value) {
                            changed.insert(name, Variant::try_from(&value)?.try_to_owned()?.into());
                            told.insert(name, value);
                        }
                    }
                    if !changed.is_empty() {
                        let interface = InterfaceName::try_from("org.nestd.Manager1")?;
                        let none = Cow::Borrowed(&[][..]);
                        fdo::Properties::properties_changed(&emitter, interface, changed, none).await?;
                    }
                }
            }
        }
    }
}
