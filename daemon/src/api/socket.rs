//! Unix sockets with a mode and a group.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, chown};
use tokio::net::{UnixListener, UnixStream};

/// Binds a socket. One that nobody serves is replaced; one that answers is another daemon's, and an
/// error. `key` is the setting that named the path.
pub(super) async fn bind(
    path: &Path,
    mode: u32,
    group: &str,
    key: &str,
) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another daemon serves this socket: stop it, or set {key}"),
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
        if gid.is_some() {
            chown(&fresh, None, gid)?;
        }
        std::fs::rename(&fresh, path)
    };
    settle().inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })?;
    Ok(listener)
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
