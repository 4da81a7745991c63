//! Sessions on the bus: `CreateSession` and `ListSessions` of `org.nestd.Manager1`, and
//! `org.nestd.Session1`.

use nestd_proto::{
    dbus::SESSION_PATH,
    v1::{Message, Priority, Session, SessionOptions},
};
use serde::de::DeserializeOwned;
use zbus::{OwnedObjectPath, Type, fdo, wire::DynamicType};

use super::{Dbus, convert, request};
use crate::{Error, Events};

const SESSION: &str = "org.nestd.Session1";

impl Dbus {
    /// See [`crate::Client::create_session`].
    pub async fn create_session(
        &self,
        messages: &[Message],
        options: SessionOptions,
    ) -> Result<String, Error> {
        let body = (convert::messages(messages)?, convert::SessionOptions::from(options));
        id(&self.call("CreateSession", &body).await?)
    }

    /// See [`crate::Client::sessions`].
    pub async fn sessions(&self) -> Result<Vec<Session>, Error> {
        let sessions: Vec<convert::SessionEntry> = self.call("ListSessions", &()).await?;
        Ok(sessions.into_iter().map(Session::from).collect())
    }

    /// See [`crate::Client::transcript`].
    pub async fn transcript(&self, session: &str) -> Result<Vec<Message>, Error> {
        let turns: Vec<convert::Turn> = self.call_session(session, "GetTranscript", &()).await?;
        convert::transcript(turns)
    }

    /// See [`crate::Client::append`].
    pub async fn append(&self, session: &str, messages: &[Message]) -> Result<(), Error> {
        let messages = convert::messages(messages)?;
        self.call_session(session, "Append", &messages).await
    }

    /// See [`crate::Client::fork`].
    pub async fn fork(&self, session: &str, options: SessionOptions) -> Result<String, Error> {
        let options = convert::SessionOptions::from(options);
        id(&self.call_session(session, "Fork", &options).await?)
    }

    /// See [`crate::Client::prewarm`].
    pub async fn prewarm(&self, session: &str, priority: Priority) -> Result<Events, Error> {
        let token = self.token();
        let options = convert::PrewarmOptions::new(priority, &token);
        let session = session.to_owned();
        let call =
            move |dbus: Self| async move { dbus.call_session(&session, "Prewarm", &options).await };
        request::start(self.clone(), &token, true, call).await
    }

    /// See [`crate::Client::delete_session`].
    pub async fn delete_session(&self, session: &str) -> Result<(), Error> {
        self.call_session(session, "Delete", &()).await
    }

    /// Calls a session's object. One that is gone, or whose name cannot be one, is a session that is not
    /// there.
    async fn call_session<B, R>(&self, session: &str, method: &str, body: &B) -> Result<R, Error>
    where
        B: serde::Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        if session.is_empty() || !session.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(convert::no_session(session));
        }
        let path = format!("{SESSION_PATH}/{session}");
        match self.reply(&path, SESSION, method, body).await {
            Err(zbus::Error::FDO(error)) if is_gone(&error) => Err(convert::no_session(session)),
            reply => Ok(reply?.body().deserialize()?),
        }
    }
}

/// What is said of an object that is not there; this daemon has others of its interface.
fn is_gone(error: &fdo::Error) -> bool {
    use fdo::Error::{UnknownInterface, UnknownMethod, UnknownObject};
    matches!(error, UnknownObject(_) | UnknownInterface(_) | UnknownMethod(_))
}

pub(super) fn id(path: &OwnedObjectPath) -> Result<String, Error> {
    let id = path.as_str().strip_prefix(SESSION_PATH).and_then(|id| id.strip_prefix('/'));
    id.map(str::to_owned).ok_or_else(|| {
        Error::Unexpected(format!("the session is at {path}, not below {SESSION_PATH}"))
    })
}
