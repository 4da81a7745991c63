//! What takes a promise about descriptors: to wait for one, to write to a pipe without waiting, and to take those
//! that a message brings.

#![allow(
    unsafe_code,
    reason = "tokio and the standard library want to be promised what they cannot see"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Descriptors that the kernel passes at once.
const PASSED: usize = 253;

/// A descriptor that can be waited for, and is lent by shared reference only.
pub(super) fn awaited(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, and the same, for as long as it is there.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Writes to a pipe what there is room for, whatever the flags of the open file say;
/// [`io::ErrorKind::WouldBlock`] if that is nothing. None: this kernel, or this pipe, cannot be asked.
pub(super) fn write_now(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
    let slices = [IoSlice::new(bytes)];
    // SAFETY: an `IoSlice` is an `iovec`, of bytes that are borrowed until the call is over, as the
    // descriptor is. An offset of -1 is that of a write without one.
    let result =
        unsafe { libc::pwritev2(fd.as_raw_fd(), slices.as_ptr().cast(), 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(result).map(Some).or_else(|_| {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(None),
            _ => Err(error),
        }
    })
}

/// Reads from a socket: bytes, and the descriptors that came with them.
pub(super) fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut space = nix::cmsg_space!([RawFd; PASSED]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let passed = |message| match message {
        ControlMessageOwned::ScmRights(fds) => fds,
        _ => Vec::new(),
    };
    let fds = got.cmsgs()?.flat_map(passed);
    // SAFETY: the kernel has just opened them for this process, and nobody else knows of them.
    let fds = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    Ok((got.bytes, fds))
}
