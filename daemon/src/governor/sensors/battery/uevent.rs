//! The kernel's word that a power supply has changed.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;

use super::super::ready::Ready;

/// The kernel's own events; udev's are another group.
const KERNEL: u32 = 1;
/// Events at one go.
const EVENTS: usize = 64;

/// The kernel's events. The power supply sensor owns the socket.
pub struct Uevents(Ready);

impl Uevents {
    /// None: they cannot be had, as in a sandbox without netlink.
    pub fn open() -> Option<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol).ok()?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL)).ok()?;
        Ready::new(fd, Interest::READABLE).map(Self)
    }

    /// Completes with true when a power supply may have changed, with false when there will be no
    /// more events.
    pub async fn changed(&mut self) -> bool {
        let mut buffer = [0; 8192];
        loop {
            let Ok(mut guard) = self.0.wait().await else { return false };
            let mut ours = false;
            for _ in 0..EVENTS {
                match recv(guard.get_inner().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(0) => return false,
                    Ok(length) => ours |= is_power(buffer.get(..length).unwrap_or_default()),
                    Err(Errno::EAGAIN) => {
                        guard.clear_ready();
                        break;
                    }
                    Err(Errno::EINTR) => {}
                    // Some were lost.
                    Err(Errno::ENOBUFS) => ours = true,
                    Err(_) => return false,
                }
            }
            if ours {
                return true;
            }
        }
    }
}

/// `change@/devices/...`, then `KEY=value`, each with a zero after it.
fn is_power(event: &[u8]) -> bool {
    event.split(|byte| *byte == 0).any(|field| field == b"SUBSYSTEM=power_supply")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_power_supplies_count() {
        assert!(is_power(b"change@/devices/x\0ACTION=change\0SUBSYSTEM=power_supply\0SEQNUM=1\0"));
        assert!(!is_power(b"change@/devices/x\0ACTION=change\0SUBSYSTEM=net\0"));
        assert!(!is_power(b""));
        assert!(!is_power(&[0xff; 100]));
    }
}
