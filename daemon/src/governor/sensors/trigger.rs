//! Files that become ready when memory runs short: the kernel's and systemd's.
//!
//! The pressure sensor owns them and waits for them in its own task. One that cannot be had is left
//! out; one that breaks says so once.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, fstatfs};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::pressure::Watch;
use super::ready::Ready;

/// 150 ms of stall within a second, or within two: without privileges the kernel takes multiples of
/// two seconds only. The kernel wants the final zero.
const KERNEL: [&[u8]; 2] = [b"some 150000 1000000\0", b"some 150000 2000000\0"];
/// Reads at one go from a stream that has more and more.
const READS: usize = 16;

/// Something to wait for.
pub enum Trigger {
    /// A PSI file, which becomes ready for urgent data.
    Psi(Ready),
    /// A FIFO or a socket, which has something to read.
    Stream(Ready),
}

impl Trigger {
    /// The kernel's own, on a PSI file.
    pub fn kernel(path: &Path) -> Option<Self> {
        KERNEL.into_iter().find_map(|threshold| Self::psi(path, threshold))
    }

    /// What systemd gave: a PSI file, a FIFO or a socket.
    pub async fn systemd(watch: &Watch) -> Option<Self> {
        let kind = std::fs::metadata(&watch.path).ok()?.file_type();
        if kind.is_socket() {
            let stream = UnixStream::connect(&watch.path).await.ok()?.into_std().ok()?;
            let mut file = File::from(OwnedFd::from(stream));
            file.write_all(&watch.write).ok()?;
            return Self::stream(file);
        }
        if kind.is_fifo() {
            // Opened for writing too, so that it never looks closed. Nothing is written: it would be
            // ourselves who read it.
            return Self::stream(open(&watch.path).ok()?);
        }
        if kind.is_file() { Self::psi(&watch.path, &watch.write) } else { None }
    }

    fn stream(file: File) -> Option<Self> {
        Ready::new(file.into(), Interest::READABLE).map(Self::Stream)
    }

    fn psi(path: &Path, threshold: &[u8]) -> Option<Self> {
        let mut file = open(path).ok()?;
        // Nothing is written into a file that only looks like one.
        let system = fstatfs(&file).ok()?.filesystem_type();
        if system != PROC_SUPER_MAGIC && system != CGROUP2_SUPER_MAGIC {
            return None;
        }
        if !threshold.is_empty() {
            file.write_all(threshold).ok()?;
        }
        Ready::new(file.into(), Interest::PRIORITY).map(Self::Psi)
    }

    /// Completes with true when it fires, with false when it never will again.
    pub async fn wait(&self) -> bool {
        match self {
            Self::Psi(file) => {
                let Ok(mut guard) = file.wait().await else { return false };
                let open = !guard.ready().is_read_closed();
                guard.clear_ready();
                open
            }
            Self::Stream(file) => {
                let Ok(mut guard) = file.wait().await else { return false };
                let mut buffer = [0; 4096];
                for _ in 0..READS {
                    match nix::unistd::read(guard.get_inner(), &mut buffer) {
                        Ok(0) => return false,
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(Errno::EAGAIN) => {
                            guard.clear_ready();
                            break;
                        }
                        Err(_) => return false,
                    }
                }
                true
            }
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{MsgFlags, send};

    use super::super::testing::said;
    use super::*;

    #[tokio::test]
    async fn urgent_data_fires_and_ordinary_data_does_not() {
        // Out-of-band data makes a socket ready in the way of a PSI file.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = listener.accept().unwrap().0;
        theirs.set_nonblocking(true).unwrap();
        let trigger = Trigger::Psi(Ready::new(theirs.into(), Interest::PRIORITY).unwrap());
        ours.write_all(b"ordinary").unwrap();
        {
            let mut waiting = std::pin::pin!(trigger.wait());
            for _ in 0..100 {
                assert!(futures::poll!(&mut waiting).is_pending());
                tokio::task::yield_now().await;
            }
        }
        send(ours.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
        assert!(said(trigger.wait()).await);
    }

    #[tokio::test]
    async fn a_file_on_disk_is_neither_written_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        std::fs::write(&path, "untouched").unwrap();
        assert!(Trigger::kernel(&path).is_none());
        for path in [path.clone(), folder.path().to_owned(), folder.path().join("none")] {
            let watch = Watch { path, write: b"x".to_vec() };
            assert!(Trigger::systemd(&watch).await.is_none());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "untouched");
        let file = File::open(&path).unwrap();
        assert!(Ready::new(file.into(), Interest::READABLE).is_none());
    }
}
