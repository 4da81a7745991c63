//! Waiting for a descriptor of the kernel's that tokio has no type for: PSI files, netlink.

#![allow(unsafe_code, reason = "tokio wants to be promised that the descriptor stays open")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A descriptor to wait for. It is only ever lent out by shared reference.
pub struct Ready {
    fd: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl Ready {
    /// None: it cannot be waited for, as a file on disk cannot. Called inside a tokio runtime.
    pub fn new(fd: OwnedFd, interest: Interest) -> Option<Self> {
        // SAFETY: an `OwnedFd` is open and stays the same descriptor for as long as it exists; the
        // `AsyncFd` owns it, and nobody outside gets a mutable reference to put another in its place.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }.ok()?;
        Some(Self { fd, interest })
    }

    /// Completes when it is ready. The guard says how, and lends the descriptor.
    pub async fn wait(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.fd.ready(self.interest).await
    }
}
