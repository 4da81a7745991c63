//! The Unix socket, and the kernel's word for who connects.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::ready;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use super::connection::accepted;
use super::{Settings, peer_groups, serve};
use crate::api::access::unit;
use crate::api::{Core, socket};
use crate::types::{Client, State};

/// A socket that accepts connections, not served yet.
pub struct Socket {
    listener: UnixListener,
    /// Where it was made, to be removed at the end.
    path: Option<PathBuf>,
}

impl Socket {
    /// Binds the socket with its mode and group. A socket that nobody serves is replaced; one that
    /// answers is another daemon's, and an error.
    pub async fn bind(path: &Path, mode: u32, group: &str) -> io::Result<Self> {
        let listener = socket::bind(path, mode, group, "grpc.socket").await?;
        Ok(Self { listener, path: Some(path.to_owned()) })
    }

    /// One that the service manager made, and keeps: who connects while this daemon drains waits for the next.
    pub fn given(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self { listener: UnixListener::from_std(listener)?, path: None })
    }

    /// Serves until `stop` is cancelled; then ends the streams that watch, and waits for the rest.
    pub async fn run(
        self,
        core: Core,
        settings: Settings,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let service = Arc::clone(&core.service);
        let open = settings.connections.clone();
        let (mut status, kept) = (service.watch(), self.path.is_none());
        let passed_on = async move {
            let drains = status.wait_for(|status| status.state == State::Draining);
            if !kept || drains.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let connections = accepted(UnixListenerStream::new(self.listener))
            .take_until(Box::pin(passed_on))
            .chain(futures::stream::pending())
            .filter_map(move |stream| {
                let client = client(&stream);
                ready(open.admit(stream, client, &service))
            });
        let served = serve(connections, core, &settings, stop).await;
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
        served
    }
}

/// Who connected, as the kernel says.
fn client(stream: &UnixStream) -> Client {
    let peer = match stream.peer_cred() {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell who has connected");
            return Client::default();
        }
    };
    let mut gids = peer_groups::of(stream).unwrap_or_else(|error| {
        tracing::warn!(%error, "the kernel does not tell the groups of who has connected");
        Vec::new()
    });
    gids.push(peer.gid());
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
    Client { uid: Some(peer.uid()), gids, pid, unit: unit(pid), ..Client::default() }
}
