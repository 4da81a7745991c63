//! Conversations that the daemon keeps. Ask in one with [`Client::generate`] and
//! [`GenerateRequest::session`](crate::v1::GenerateRequest::session).

use nestd_proto::v1::{Message, Priority, Session, SessionOptions};

use crate::{Client, Error, Events};

impl Client {
    /// Makes a session, empty or with a transcript, and gives its id. It ends with this connection,
    /// unless it is persistent.
    pub async fn create_session(
        &self,
        messages: Vec<Message>,
        options: SessionOptions,
    ) -> Result<String, Error> {
        match self {
            Self::Grpc(grpc) => grpc.create_session(messages, options).await,
            Self::Dbus(dbus) => dbus.create_session(&messages, options).await,
        }
    }

    /// The sessions of this connection, and the persistent ones of its user.
    pub async fn sessions(&self) -> Result<Vec<Session>, Error> {
        match self {
            Self::Grpc(grpc) => grpc.sessions().await,
            Self::Dbus(dbus) => dbus.sessions().await,
        }
    }

    /// What was said in a session so far.
    pub async fn transcript(&self, session: &str) -> Result<Vec<Message>, Error> {
        match self {
            Self::Grpc(grpc) => grpc.transcript(session).await,
            Self::Dbus(dbus) => dbus.transcript(session).await,
        }
    }

    /// Adds messages to a session that nobody answers.
    pub async fn append(&self, session: &str, messages: Vec<Message>) -> Result<(), Error> {
        match self {
            Self::Grpc(grpc) => grpc.append(session, messages).await,
            Self::Dbus(dbus) => dbus.append(session, &messages).await,
        }
    }

    /// Makes a session that goes on from where another is, and gives its id.
    pub async fn fork(&self, session: &str, options: SessionOptions) -> Result<String, Error> {
        match self {
            Self::Grpc(grpc) => grpc.fork(session, options).await,
            Self::Dbus(dbus) => dbus.fork(session, options).await,
        }
    }

    /// Has the engine read a session now, so that its next answer comes sooner.
    pub async fn prewarm(&self, session: &str, priority: Priority) -> Result<Events, Error> {
        match self {
            Self::Grpc(grpc) => grpc.prewarm(session, priority).await,
            Self::Dbus(dbus) => dbus.prewarm(session, priority).await,
        }
    }

    /// Ends a session, and has removed what is kept of it.
    pub async fn delete_session(&self, session: &str) -> Result<(), Error> {
        match self {
            Self::Grpc(grpc) => grpc.delete_session(session).await,
            Self::Dbus(dbus) => dbus.delete_session(session).await,
        }
    }
}
