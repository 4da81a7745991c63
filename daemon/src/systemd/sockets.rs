//! Sockets that the service manager made and gave to the daemon (`sd_listen_fds(3)`), by the names of their
//! units' `FileDescriptorName=`.

#![allow(unsafe_code, reason = "a descriptor's number becomes its owner")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::sockopt::{AcceptConn, SockType};
use nix::sys::socket::{
    self, AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt,
};

/// Those that nobody has taken yet.
#[derive(Default)]
pub struct Sockets(Vec<(String, OwnedFd)>);

impl Sockets {
    /// What the manager gave to this process. Called once: the second caller would own the same ones.
    pub fn given() -> io::Result<Self> {
        let own = |(fd, name)| {
            // SAFETY: the manager opened it for this process, as LISTEN_PID says, the library has found it
            // open, and nothing else takes descriptors by their numbers.
            (name, unsafe { OwnedFd::from_raw_fd(fd) })
        };
        Ok(Self(sd_notify::listen_fds_with_names()?.map(own).collect()))
    }

    /// The listening Unix socket of that name, if one was given.
    pub fn take(&mut self, name: &str) -> io::Result<Option<UnixListener>> {
        let Some(index) = self.0.iter().position(|(given, _)| given == name) else {
            return Ok(None);
        };
        let (_, fd) = self.0.swap_remove(index);
        let family = getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family();
        let stream = getsockopt(&fd, SockType)? == socket::SockType::Stream;
        if family != Some(AddressFamily::Unix) || !stream || !getsockopt(&fd, AcceptConn)? {
            let why = format!("systemd's socket {name:?} is no listening Unix stream socket");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }

    /// Closes those that nobody took, and tells which.
    pub fn close_rest(self) {
        for (name, _) in self.0 {
            tracing::warn!(name, "nestd has no use for this socket from systemd");
        }
    }
}
