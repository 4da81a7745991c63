//! The caller's end of text without signals: a pipe or a stream socket that is written as the reader
//! reads.
//!
//! The caller shares the open file, and so its flag `O_NONBLOCK`: writes here do not wait whatever it says.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt,
    send, sockopt,
};
use nix::sys::stat::{SFlag, fstat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::descriptors::{awaited, write_now};
use crate::types::Error;

/// Text that is spliced at once: what a pipe of the usual size holds whole.
const PIECE: usize = 4096;
/// How long a reader may take nothing of an answer that is whole.
const UNREAD: Duration = Duration::from_secs(30);

/// A descriptor that can be waited for.
pub(super) struct Pipe {
    fd: AsyncFd<OwnedFd>,
    way: Way,
}

/// How to write without waiting.
enum Way {
    /// A socket: each write can say it.
    Send,
    /// A pipe: each write can say it, from Linux 6.4 on.
    WriteNow,
    /// An older kernel's pipe, or one with a name: through a pipe of our own, since moving what is in
    /// there can be told not to wait.
    Splice(PipeReader, PipeWriter),
}

impl Pipe {
    /// Takes a descriptor from a caller.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        let wrong = |what: String| Error::invalid("fd", what);
        let kind = fstat(&fd).map_err(|error| wrong(error.to_string()))?.st_mode;
        let kind = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT;
        let flags =
            fcntl(fd.as_fd(), FcntlArg::F_GETFL).map_err(|error| wrong(error.to_string()))?;
        if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            return Err(wrong("is not open for writing".into()));
        }
        let way = if kind == SFlag::S_IFIFO {
            Way::WriteNow
        } else if kind == SFlag::S_IFSOCK && is_local_stream(&fd) {
            Way::Send
        } else {
            return Err(wrong("is neither a pipe nor a Unix stream socket".into()));
        };
        let fd = awaited(fd, Interest::WRITABLE).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { fd, way })
    }

    /// Writes all of it, as fast as it is read. When the answer is `over`, nobody waits any more for a reader that
    /// takes nothing: [`io::ErrorKind::TimedOut`].
    pub(super) async fn write(&mut self, text: &str, over: &CancellationToken) -> io::Result<()> {
        let Self { fd, way } = self;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = match way {
                Way::Send => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    let sent = |fd: &OwnedFd| Ok(send(fd.as_raw_fd(), rest, flags)?);
                    within(over, fd.async_io(Interest::WRITABLE, sent)).await?
                }
                Way::WriteNow => {
                    let write = |fd: &OwnedFd| write_now(fd.as_fd(), rest);
                    let write = within(over, fd.async_io(Interest::WRITABLE, write));
                    if let Some(written) = write.await? {
                        written
                    } else {
                        let (reader, writer) = io::pipe()?;
                        *way = Way::Splice(reader, writer);
                        0
                    }
                }
                Way::Splice(reader, writer) => {
                    // It is empty, so there is room.
                    let written = writer.write(rest.get(..PIECE).unwrap_or(rest))?;
                    let mut left = written;
                    while left > 0 {
                        let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
                        let pass =
                            |fd: &OwnedFd| Ok(splice(&*reader, None, fd, None, left, flags)?);
                        let pass = within(over, fd.async_io(Interest::WRITABLE, pass));
                        left = left.saturating_sub(pass.await?);
                    }
                    written
                }
            };
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Waits for room, and once the answer is over no longer than [`UNREAD`].
async fn within<T>(
    over: &CancellationToken,
    room: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = async {
        over.cancelled().await;
        sleep(UNREAD).await;
    };
    tokio::select! {
        biased;
        done = room => done,
        () = late => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Of other families, `close` may wait, too (`SO_LINGER`).
fn is_local_stream(fd: &OwnedFd) -> bool {
    let name = getsockname::<SockaddrStorage>(fd.as_raw_fd());
    name.is_ok_and(|name| name.family() == Some(AddressFamily::Unix))
        && getsockopt(fd, sockopt::SockType) == Ok(SockType::Stream)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, Read};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use futures::poll;
    use nix::sys::stat::Mode;

    use super::*;

    /// The caller has `O_NONBLOCK` off, and reads late: nothing waits but the future.
    async fn is_written_late(fd: OwnedFd, mut reader: impl Read + Send + 'static) {
        let sent = "ä7".repeat(300_000);
        let mut pipe = Pipe::new(fd).unwrap();
        let mut write = Box::pin(async {
            pipe.write(&sent, &CancellationToken::new()).await.unwrap();
            drop(pipe);
        });
        assert!(poll!(&mut write).is_pending());
        let reading = tokio::task::spawn_blocking(move || {
            let mut read = String::new();
            reader.read_to_string(&mut read).unwrap();
            read
        });
        write.await;
        assert!(reading.await.unwrap() == sent);
    }

    #[tokio::test]
    async fn a_pipe_that_may_block_is_not_waited_for() {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe().unwrap();
        is_written_late(writer.into(), reader).await;
    }

    #[tokio::test]
    async fn nor_is_one_with_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let opened = File::options().read(true).write(true).open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        drop(opened);
        is_written_late(writer.into(), reader).await;
    }

    #[tokio::test]
    async fn nor_is_a_socket() {
        let (reader, writer) = UnixStream::pair().unwrap();
        is_written_late(writer.into(), reader).await;
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        let (other, socket) = UnixStream::pair().unwrap();
        drop((reader, other));
        for fd in [OwnedFd::from(writer), socket.into()] {
            let written = Pipe::new(fd).unwrap().write("text", &CancellationToken::new()).await;
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_reads_nothing_is_waited_for_until_the_answer_is_over_and_a_while() {
        let (reader, writer) = io::pipe().unwrap();
        let mut pipe = Pipe::new(writer.into()).unwrap();
        let (over, text) = (CancellationToken::new(), "text".repeat(300_000));
        let mut write = Box::pin(pipe.write(&text, &over));
        assert!(poll!(&mut write).is_pending());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!(poll!(&mut write).is_pending());
        over.cancel();
        let began = tokio::time::Instant::now();
        assert_eq!(write.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), UNREAD.as_secs());
        drop(reader);
    }

    #[tokio::test]
    async fn what_is_no_stream_is_refused() {
        let (_reader, writer) = io::pipe().unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert!(Pipe::new(writer.into()).is_ok());
        let refused: [OwnedFd; 4] = [
            reader.into(),
            UnixDatagram::unbound().unwrap().into(),
            stream.into(),
            File::options().write(true).open("/dev/null").unwrap().into(),
        ];
        for fd in refused {
            assert!(Pipe::new(fd).is_err());
        }
    }
}
