//! The client of nestd, over either of its transports. `nestctl` is built on it, and so are the
//! tests that compare the two.
//!
//! [`Client`] has the same methods and gives the same values over gRPC ([`Grpc`]) and over D-Bus
//! ([`Dbus`]). The vocabulary is that of the package `nestd.v1` ([`v1`]) on both: on D-Bus, signals
//! and dictionaries are turned into the same messages.
//!
//! ```no_run
//! use futures::StreamExt;
//! use nestd_client::{ask, v1::generate_event::Event, Client};
//!
//! # async fn example() -> Result<(), nestd_client::Error> {
//! let client = Client::grpc("/run/nestd/nestd.sock").await?;
//! let mut events = client.generate(ask("What can you do?")).await?;
//! while let Some(event) = events.next().await {
//!     match event?.event {
//!         Some(Event::Text(text)) => print!("{}", text.delta),
//!         Some(Event::Finished(end)) => println!("\n{:?}", end.usage),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Dropping a stream of events cancels the request. A daemon that goes away ends every stream with
//! [`Error::Disconnected`].

mod dbus;
mod error;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod grpc;
mod sessions;

use std::path::PathBuf;

use futures::stream::BoxStream;
pub use nestd_proto::v1;
use v1::{
    ForegroundEvent, GenerateEvent, GenerateRequest, GovernorReport, HoldEvent,
    HoldForegroundRequest, HoldRequest, ListRequestsResponse, Message, Model, Part, Role,
    StatusReport,
};

pub use crate::{
    dbus::{Bus, Dbus},
    error::{Error, Failure},
    grpc::{Certificates, Grpc},
};

/// Where the daemon's socket is, unless its configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/nestd/nestd.sock";

/// The events of a request, `finished` last. Dropping it cancels the request.
pub type Events = BoxStream<'static, Result<GenerateEvent, Error>>;
/// The state now, and again whenever it changes.
pub type Reports = BoxStream<'static, Result<StatusReport, Error>>;
/// What the governor knows and decided now, and again whenever it changes.
pub type GovernorReports = BoxStream<'static, Result<GovernorReport, Error>>;
/// A hold in force: the size in use, and again when it changes. Dropping it ends the hold.
pub type Holding = BoxStream<'static, Result<HoldEvent, Error>>;
/// A lease of the foreground: whether it is in force, and again when that changes. Dropping it ends the lease.
pub type Leased = BoxStream<'static, Result<ForegroundEvent, Error>>;
/// How far a load is, from 0 to 1. Dropping it does not stop the load.
pub type Fractions = BoxStream<'static, Result<f64, Error>>;

/// A connection to the daemon. Clones share it.
#[derive(Clone, Debug)]
pub enum Client {
    /// Over the daemon's socket, or over TCP.
    Grpc(Grpc),
    /// Over a message bus.
    Dbus(Dbus),
}

impl Client {
    /// Connects to the daemon's gRPC socket.
    pub async fn grpc(socket: impl Into<PathBuf>) -> Result<Self, Error> {
        Grpc::connect(socket.into()).await.map(Self::Grpc)
    }

    /// Connects to the daemon's gRPC over TCP, `https://HOST:PORT`.
    pub async fn tcp(url: &str, files: &Certificates) -> Result<Self, Error> {
        Grpc::connect_tcp(url, files).await.map(Self::Grpc)
    }

    /// Connects to the daemon on a message bus.
    pub async fn dbus(bus: &Bus) -> Result<Self, Error> {
        Dbus::connect(bus).await.map(Self::Dbus)
    }

    /// What the daemon is and does right now.
    pub async fn status(&self) -> Result<StatusReport, Error> {
        match self {
            Self::Grpc(grpc) => grpc.status().await,
            Self::Dbus(dbus) => dbus.status().await,
        }
    }

    /// The status now, and again whenever it changes. Over D-Bus, what is not a property (how far a
    /// load is, how many requests there are) is asked for at intervals while the stream lives.
    pub async fn watch_status(&self) -> Result<Reports, Error> {
        match self {
            Self::Grpc(grpc) => grpc.watch_status().await,
            Self::Dbus(dbus) => dbus.watch_status().await,
        }
    }

    /// The requests of all clients, and what was done since the daemon's start.
    pub async fn requests(&self) -> Result<ListRequestsResponse, Error> {
        match self {
            Self::Grpc(grpc) => grpc.requests().await,
            Self::Dbus(dbus) => dbus.requests().await,
        }
    }

    /// Says which app is in the foreground, for as long as the stream is kept: meanwhile others' interactive
    /// requests are served as normal ones.
    pub async fn hold_foreground(&self, request: HoldForegroundRequest) -> Result<Leased, Error> {
        match self {
            Self::Grpc(grpc) => grpc.hold_foreground(request).await,
            Self::Dbus(dbus) => dbus.hold_foreground(request).await,
        }
    }

    /// What the device can afford, and the size that follows from it.
    pub async fn governor(&self) -> Result<GovernorReport, Error> {
        match self {
            Self::Grpc(grpc) => grpc.governor().await,
            Self::Dbus(dbus) => dbus.governor().await,
        }
    }

    /// The same now, and again whenever it changes.
    pub async fn watch_governor(&self) -> Result<GovernorReports, Error> {
        match self {
            Self::Grpc(grpc) => grpc.watch_governor().await,
            Self::Dbus(dbus) => dbus.watch_governor().await,
        }
    }

    /// Asks for limits of the size, or for no background work, for as long as the stream is kept.
    pub async fn hold(&self, request: HoldRequest) -> Result<Holding, Error> {
        match self {
            Self::Grpc(grpc) => grpc.hold(request).await,
            Self::Dbus(dbus) => dbus.hold(request).await,
        }
    }

    /// Fixes the size, across restarts; an empty one lets go.
    pub async fn pin(&self, size: &str) -> Result<(), Error> {
        match self {
            Self::Grpc(grpc) => grpc.pin(size).await,
            Self::Dbus(dbus) => dbus.pin(size).await,
        }
    }

    /// Answers a conversation. A request that is refused fails the call; one that fails later ends
    /// its stream with the error.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Events, Error> {
        match self {
            Self::Grpc(grpc) => grpc.generate(request).await,
            Self::Dbus(dbus) => dbus.generate(request).await,
        }
    }

    /// How many tokens a conversation takes in the loaded model, template included.
    pub async fn count_tokens(&self, messages: Vec<Message>) -> Result<u32, Error> {
        match self {
            Self::Grpc(grpc) => grpc.count_tokens(messages).await,
            Self::Dbus(dbus) => dbus.count_tokens(&messages).await,
        }
    }

    /// The models in the daemon's folder.
    pub async fn models(&self) -> Result<Vec<Model>, Error> {
        match self {
            Self::Grpc(grpc) => grpc.models().await,
            Self::Dbus(dbus) => dbus.models().await,
        }
    }

    /// Loads a model (empty: the loaded or configured one) at a size (empty: the configured one, or
    /// the largest). The stream's last item, 1, says that it answers.
    pub async fn load(&self, model: &str, size: &str) -> Result<Fractions, Error> {
        match self {
            Self::Grpc(grpc) => grpc.load(model, size).await,
            Self::Dbus(dbus) => dbus.load(model, size).await,
        }
    }

    /// Gives the model's memory back, after running requests have ended.
    pub async fn unload(&self) -> Result<(), Error> {
        match self {
            Self::Grpc(grpc) => grpc.unload().await,
            Self::Dbus(dbus) => dbus.unload().await,
        }
    }
}

/// A turn of a conversation that is one piece of text.
#[must_use]
pub fn message(role: Role, text: impl Into<String>) -> Message {
    let part = Part { kind: Some(v1::part::Kind::Text(text.into())) };
    Message { role: role.into(), parts: vec![part] }
}

/// A request with one question, and everything else left to the daemon and the model.
#[must_use]
pub fn ask(question: impl Into<String>) -> GenerateRequest {
    GenerateRequest { messages: vec![message(Role::User, question)], ..GenerateRequest::default() }
}
