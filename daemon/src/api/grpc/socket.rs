//! The Unix socket: bound with its mode and group, and the kernel's word for who connects.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use nix::unistd::{Gid, Group, chown};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, accepted};
use super::{Settings, peer_groups, serve};
use crate::api::Core;
use crate::api::access::unit;
use crate::types::Client;

/// A socket that accepts connections, not served yet.
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds the socket with its mode and group. A socket that nobody serves is replaced; one that
    /// answers is another daemon's, and an error.
    pub async fn bind(path: &Path, mode: u32, group: &str) -> io::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another daemon serves this socket: stop it, or set grpc.socket",
            ));
        }
        let gid = match group {
            "" => None,
            name => Some(group_id(name)?),
        };
        // Made under another name and renamed: nobody can connect before mode and group are set.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let listener = UnixListener::bind(&fresh)?;
        let settle = || {
            std::fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
            chown(&fresh, None, gid)?;
            std::fs::rename(&fresh, path)
        };
        settle().inspect_err(|_| {
            let _ = std::fs::remove_file(&fresh);
        })?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until `stop` is cancelled; then ends the streams that watch, and waits for the rest.
    pub async fn run(
        self,
        core: Core,
        settings: Settings,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let connections = accepted(UnixListenerStream::new(self.listener)).map(|stream| {
            let client = Arc::new(client(&stream));
            Connection { stream, client }
        });
        let served = serve(connections, core, &settings, stop).await;
        let _ = std::fs::remove_file(&self.path);
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

fn group_id(name: &str) -> io::Result<Gid> {
    match Group::from_name(name)? {
        Some(group) => Ok(group.gid),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no group {name:?}: create it, or set grpc.socket_group"),
        )),
    }
}
