//! The supplementary groups of who has connected to a Unix socket, as its process had them then: what the
//! bus tells of its callers, too. A unit's `SupplementaryGroups=` are among them; the user database does
//! not know those.

#![allow(unsafe_code, reason = "SO_PEERGROUPS, which no crate in the tree reads")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc::{self, gid_t, socklen_t};

/// More than anybody is in, as a rule; the kernel tells when it is not enough.
const USUAL: usize = 64;
/// `NGROUPS_MAX` of the kernel.
const MOST: usize = 65_536;

/// The groups, without the primary one.
pub(super) fn of(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<gid_t> = vec![0; USUAL];
    loop {
        let bytes = std::mem::size_of_val(groups.as_slice());
        let mut length = socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes, which is what the vector holds, and any bytes
        // are group numbers; the descriptor is open as long as `socket` is borrowed.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).map_err(io::Error::other)? / size_of::<gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MOST {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_are_this_process_own() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        let mut groups = of(&one).unwrap();
        own.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, own);
        assert!(of(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
