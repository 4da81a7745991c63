//! The gRPC API: nestd.v1 with health and reflection, on a Unix socket.
//!
//! `app` binds the socket, then spawns [`Server::run`]; when that ends before it was asked to, the
//! daemon ends.

mod connection;
mod convert;
pub(crate) mod error;
mod governor;
mod health;
mod services;
mod sessions;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nestd_proto::v1;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport;

use crate::api::{Core, socket};
use connection::Connection;
use futures::TryStreamExt;
use health::Health;
use services::Api;

/// A request is its text, at most this much over it.
const OVERHEAD_BYTES: usize = 1 << 20;
/// Calls under way on one connection.
const STREAMS_PER_CONNECTION: u32 = 256;

/// A socket that accepts connections, not served yet.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds the socket with its mode and group. A socket that nobody serves is replaced; one that
    /// answers is another daemon's, and an error.
    pub async fn bind(path: &Path, mode: u32, group: &str) -> io::Result<Self> {
        let listener = socket::bind(path, mode, group, "grpc.socket").await?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until `stop` is cancelled; then ends the streams that watch, and waits for the rest.
    pub async fn run(
        self,
        core: Core,
        prompt_bytes: u32,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let api = Api { core, stop: stop.clone() };
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let health = Health::new(reporter, api.core.service.watch()).await;
        tokio::spawn(health.run(stop.clone()));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(io::Error::other)?;
        let prompt_bytes = prompt_bytes as usize + OVERHEAD_BYTES;
        let inference = v1::inference_server::InferenceServer::new(api.clone())
            .max_decoding_message_size(prompt_bytes);
        let sessions = v1::sessions_server::SessionsServer::new(api.clone())
            .max_decoding_message_size(prompt_bytes);
        let service = Arc::clone(&api.core.service);
        let connections = UnixListenerStream::new(self.listener)
            .map_ok(move |stream| Connection::new(stream, Arc::clone(&service)));
        let served = transport::Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(health_service)
            .add_service(reflection)
            .add_service(inference)
            .add_service(sessions)
            .add_service(v1::governor_server::GovernorServer::new(api.clone()))
            .add_service(v1::models_server::ModelsServer::new(api.clone()))
            .add_service(v1::status_server::StatusServer::new(api))
            .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
            .await;
        let _ = std::fs::remove_file(&self.path);
        served.map_err(io::Error::other)
    }
}
