//! `org.nestd.Session1`: one session's object. The documentation is in proto/dbus/org.nestd.Session1.xml.
//!
//! An object is there for as long as its session, whoever made that and over which API: [`follow`] is called
//! whenever one comes or goes.

use std::collections::HashSet;

use nestd_proto::dbus::SESSION_PATH;
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath, interface};

use super::Parts;
use super::checked::Checked;
use super::convert::{self, Messages, Options};
use super::error::Failure;
use super::handles::Handle;
use super::request::{self, NewRequest};
use crate::types::{Client, Error};

/// The object.
pub(super) struct Session {
    parts: Parts,
    id: String,
}

// The interface macro wants headers by value.
#[allow(clippy::needless_pass_by_value)]
#[interface(name = "org.nestd.Session1", introspection_docs = false)]
impl Session {
    async fn append(
        &self,
        messages: Messages,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Failure> {
        let messages = convert::messages(messages)?;
        let (_handle, client) = self.caller(None, &header, connection).await?;
        self.parts.core.service.append_to_session(&client, &self.id, messages).await?;
        Ok(())
    }

    #[zbus(out_args("messages"))]
    async fn get_transcript(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Messages, Failure> {
        let (_handle, client) = self.caller(None, &header, connection).await?;
        let said = self.parts.core.service.sessions().transcript(&client, &self.id)?;
        Ok(convert::transcript(&said))
    }

    #[zbus(out_args("session"))]
    async fn fork(
        &self,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Failure> {
        let options = convert::session_options(options)?;
        let (handle, client) = self.caller(None, &header, connection).await?;
        let made = self.parts.core.service.fork_session(&client, &self.id, options).await?;
        announce(&self.parts, &handle, &client, &made.id, connection).await
    }

    #[zbus(out_args("request"))]
    async fn prewarm(
        &self,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<NewRequest, Failure> {
        let (priority, token) = convert::prewarm_options(options)?;
        let (handle, client) = self.caller(token, &header, connection).await?;
        let events = self.parts.core.service.prewarm_session(&client, &self.id, priority).await?;
        request::announce(handle, events, None, client, connection, &self.parts.telling).await
    }

    async fn delete(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Failure> {
        let (_handle, client) = self.caller(None, &header, connection).await?;
        Ok(self.parts.core.service.sessions().delete(&client, &self.id).await?)
    }
}

impl Session {
    async fn caller(
        &self,
        token: Option<String>,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<(Handle, Client), Error> {
        self.parts.callers.caller(token, header, connection).await
    }
}

fn path(id: &str) -> zbus::Result<OwnedObjectPath> {
    OwnedObjectPath::try_from(format!("{SESSION_PATH}/{id}"))
}

async fn put(parts: &Parts, id: &str, connection: &Connection) -> zbus::Result<OwnedObjectPath> {
    let path = path(id)?;
    let inner = Session { parts: parts.clone(), id: id.to_owned() };
    let session = Checked { inner, parts: parts.clone() };
    parts.sessions().insert(id.to_owned());
    // False if it is there already.
    connection.object_server().at(&path, session).await?;
    Ok(path)
}

async fn take_off(parts: &Parts, id: &str, connection: &Connection) -> zbus::Result<()> {
    parts.sessions().remove(id);
    match connection.object_server().remove::<Checked<Session>, _>(&path(id)?).await {
        // Somebody else was faster.
        Ok(_) | Err(zbus::Error::InterfaceNotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts a session's object on the bus that was just made for a caller.
pub(super) async fn announce(
    parts: &Parts,
    handle: &Handle,
    client: &Client,
    id: &str,
    connection: &Connection,
) -> Result<OwnedObjectPath, Failure> {
    let path = put(parts, id, connection).await?;
    let sessions = parts.core.service.sessions();
    if handle.gone.is_cancelled() {
        // It left the bus before its session was there to end.
        sessions.left(&client.name);
    }
    if !sessions.ids().iter().any(|there| there == id) {
        // It ended before its object was there to be taken off.
        take_off(parts, id, connection).await?;
    }
    Ok(path)
}

/// Brings the bus to which sessions there are.
pub(super) async fn follow(parts: &Parts, connection: &Connection) -> zbus::Result<()> {
    // In this order: what is known and is not there now has ended, and was not made in between.
    let known = parts.sessions().clone();
    let now: HashSet<_> = parts.core.service.sessions().ids().into_iter().collect();
    for id in now.difference(&known) {
        put(parts, id, connection).await?;
    }
    for id in known.difference(&now) {
        take_off(parts, id, connection).await?;
    }
    Ok(())
}
