//! Who calls, as the bus says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use zbus::message::Header;
use zbus::{Connection, fdo};

use super::handles::{Handle, Handles};
use crate::api::access::unit;
use crate::types::{Client, Error};

/// How long the bus may take to tell who has sent a message.
const BUS_ANSWERS: Duration = Duration::from_secs(2);
/// Callers that are remembered.
const KNOWN: usize = 1024;

/// Everybody on the bus who has called. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Callers {
    handles: Handles,
    known: Arc<Mutex<Known>>,
}

/// What the bus has told: the credentials of a connection are what they were when it was made.
#[derive(Default)]
struct Known {
    clients: HashMap<String, Client>,
    /// How many have left, so that nobody is remembered who left while the bus was asked.
    left: u64,
}

impl Callers {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a path for the caller, and asks the bus who that is. In this order: a caller that leaves before
    /// the bus answers is refused, one that leaves later finds its path in the list.
    pub(super) async fn caller(
        &self,
        token: Option<String>,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<(Handle, Client), Error> {
        let handle = self.handles.take(header.sender().ok_or_else(nobody)?, token)?;
        Ok((handle, self.client(header, connection).await?))
    }

    /// Who has sent a message. The bus is asked once for each sender.
    pub(super) async fn client(
        &self,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<Client, Error> {
        let sender = header.sender().ok_or_else(nobody)?;
        let before = {
            let known = self.known();
            if let Some(client) = known.clients.get(sender.as_str()) {
                return Ok(client.clone());
            }
            known.left
        };
        let asked = async {
            let bus = fdo::DBusProxy::new(connection).await?;
            Ok::<_, zbus::Error>(bus.get_connection_credentials(sender.into()).await?)
        };
        let unknown = |why: String| Error::NotAllowed {
            what: format!("the bus does not know the caller: {why}"),
        };
        let credentials = timeout(BUS_ANSWERS, asked)
            .await
            .map_err(|_| unknown(format!("no answer in {} s", BUS_ANSWERS.as_secs())))?
            .map_err(|error| unknown(error.to_string()))?;
        let pid = credentials.process_id();
        let client = Client {
            uid: credentials.unix_user_id(),
            gids: credentials.unix_group_ids().cloned().unwrap_or_default(),
            pid,
            name: sender.to_string(),
            certificate: None,
            unit: unit(pid),
        };
        let mut known = self.known();
        if known.left == before {
            if known.clients.len() >= KNOWN {
                known.clients.clear();
            }
            known.clients.insert(client.name.clone(), client.clone());
        }
        Ok(client)
    }

    /// The caller has left the bus: it is forgotten, and what is below its name is cancelled.
    pub(super) fn left(&self, sender: &str) {
        let mut known = self.known();
        known.left += 1;
        known.clients.remove(sender);
        drop(known);
        self.handles.left(sender);
    }
}

fn nobody() -> Error {
    Error::NotAllowed { what: "a call without a sender".into() }
}
