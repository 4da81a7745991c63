//! The gRPC API: nestd.v1 with health and reflection, on a Unix socket and, where that is set, on TCP.
//!
//! `app` binds a [`Socket`] and a [`Tcp`], then spawns their `run`; when one ends before it was asked to,
//! the daemon ends.

mod body;
mod connection;
mod convert;
pub(crate) mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gate;
mod governor;
mod health;
mod peer_groups;
mod seldom;
mod services;
mod sessions;
mod socket;
#[cfg(feature = "tcp")]
mod tcp;

use std::io;
use std::time::Duration;

use futures::{Stream, StreamExt};
use nestd_proto::v1;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::transport;

use crate::api::Core;
use connection::Connection;
pub use connection::Connections;
use gate::Checks;
use health::Health;
use services::Api;
pub use socket::Socket;
#[cfg(all(feature = "tcp", any(test, feature = "fuzzing")))]
pub(crate) use tcp::fuzzing as certificate_fuzzing;
#[cfg(feature = "tcp")]
pub use tcp::{Files, Tcp, Tls};

/// Calls under way on one connection.
const STREAMS_PER_CONNECTION: u32 = 64;
/// How long a client may take to answer whether it is still there.
const KEEPALIVE_ANSWERS: Duration = Duration::from_secs(10);

/// What both listeners are served with.
#[derive(Clone)]
pub struct Settings {
    /// The connections of both.
    pub connections: Connections,
    /// How often a silent client is asked whether it is still there; none: never.
    pub keepalive: Option<Duration>,
}

/// Serves a listener's connections until `stop` is cancelled.
async fn serve<S>(
    connections: impl Stream<Item = Connection<S>>,
    core: Core,
    settings: &Settings,
    stop: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let checks = Checks::new(core.clone());
    let api = Api { core, stop: stop.clone() };
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health::new(reporter, api.core.service.watch()).await;
    tokio::spawn(health.run(stop.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(io::Error::other)?;
    // The gate bounds messages, by the limits that are in force.
    let inference = v1::inference_server::InferenceServer::new(api.clone())
        .max_decoding_message_size(usize::MAX);
    let sessions =
        v1::sessions_server::SessionsServer::new(api.clone()).max_decoding_message_size(usize::MAX);
    transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(settings.keepalive)
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWERS))
        .layer(checks)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(inference)
        .add_service(sessions)
        .add_service(v1::governor_server::GovernorServer::new(api.clone()))
        .add_service(v1::models_server::ModelsServer::new(api.clone()))
        .add_service(v1::status_server::StatusServer::new(api))
        .serve_with_incoming_shutdown(connections.map(io::Result::Ok), stop.cancelled_owned())
        .await
        .map_err(io::Error::other)
}
