//! The caller's end of text without signals: a pipe or a stream socket that is written as the reader
//! reads.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixStream, unix::pipe};

use crate::types::Error;

/// A descriptor that can be waited for.
pub(super) enum Pipe {
    Pipe(pipe::Sender),
    Socket(UnixStream),
}

impl Pipe {
    /// Takes a descriptor from a caller. It is made non-blocking, as its writer must never wait.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        let wrong = |what: String| Error::invalid("fd", what);
        let kind = fstat(&fd).map_err(|error| wrong(error.to_string()))?.st_mode;
        let kind = SFlag::from_bits_truncate(kind) & SFlag::S_IFMT;
        let flags =
            fcntl(fd.as_fd(), FcntlArg::F_GETFL).map_err(|error| wrong(error.to_string()))?;
        if OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            return Err(wrong("is not open for writing".into()));
        }
        let pipe = if kind == SFlag::S_IFIFO {
            pipe::Sender::from_owned_fd(fd).map(Self::Pipe)
        } else if kind == SFlag::S_IFSOCK {
            let socket = std::os::unix::net::UnixStream::from(fd);
            socket
                .set_nonblocking(true)
                .and_then(|()| UnixStream::from_std(socket))
                .map(Self::Socket)
        } else {
            return Err(wrong("is neither a pipe nor a stream socket".into()));
        };
        pipe.map_err(|error| wrong(error.to_string()))
    }

    /// Writes all of it, as fast as it is read.
    pub(super) async fn write(&mut self, text: &str) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(text.as_bytes()).await,
            Self::Socket(socket) => socket.write_all(text.as_bytes()).await,
        }
    }
}
