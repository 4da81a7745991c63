//! The socket to the bus. Nothing leaves it that is longer than a bus takes: it would cut the daemon off, and
//! callers have part in how long a reply is (errors of zbus's quote the object's path).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;

use async_trait::async_trait;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zbus::address::transport::{Transport, UnixSocket};
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::message::Type;
use zbus::{Address, Message, names::UniqueName};

use super::descriptors::{awaited, receive};

/// Bytes of a message: the system bus takes 32 MiB, with what it adds.
const LONGEST: usize = (32 << 20) - 4096;

/// Begins a connection to a bus. One that is not at a Unix socket is zbus's to connect to.
pub(super) fn builder(address: Address) -> zbus::Result<Builder<'static>> {
    let name = match address.transport() {
        Transport::Unix(unix) => match unix.path() {
            UnixSocket::File(path) => SocketAddr::from_pathname(path)?,
            UnixSocket::Abstract(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
            _ => return Ok(Builder::address(address)),
        },
        _ => return Ok(Builder::address(address)),
    };
    let stream = UnixStream::connect_addr(&name)?;
    stream.set_nonblocking(true)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    Ok(Builder::socket(Bus(Arc::new(awaited(stream.into(), both)?))))
}

#[derive(Debug)]
struct Bus(Arc<AsyncFd<OwnedFd>>);

impl Socket for Bus {
    type ReadHalf = Reader;
    type WriteHalf = Bounded;

    fn split(self) -> Split<Reader, Bounded> {
        Split::new(Reader(Arc::clone(&self.0)), Bounded(Writer(self.0)))
    }
}

#[derive(Debug)]
struct Reader(Arc<AsyncFd<OwnedFd>>);

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        self.0.async_io(Interest::READABLE, |fd| receive(fd, buffer)).await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Writer(Arc<AsyncFd<OwnedFd>>);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let passed = [ControlMessage::ScmRights(&fds)];
        let passed = if fds.is_empty() { &[][..] } else { &passed };
        let send = |fd: &OwnedFd| {
            let slices = [IoSlice::new(buffer)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sendmsg::<()>(fd.as_raw_fd(), &slices, passed, flags, None)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Both)?)
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// In place of a reply that is too long, an error goes out, and no signal that is.
#[derive(Debug)]
struct Bounded(Writer);

#[async_trait]
impl WriteHalf for Bounded {
    async fn send_message(&mut self, message: &Message) -> zbus::Result<()> {
        let bytes = message.data().len();
        if bytes <= LONGEST {
            return self.0.send_message(message).await;
        }
        // Without the spans that it is in: they quote the call.
        tracing::error!(parent: None, bytes, kind = ?message.message_type(), "longer than a bus takes, and not sent");
        match too_long(message)? {
            Some(error) => self.0.send_message(&error).await,
            None => Ok(()),
        }
    }

    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.sendmsg(buffer, fds).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.close().await
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

/// What is said to who waits for the reply.
fn too_long(reply: &Message) -> zbus::Result<Option<Message>> {
    let header = reply.header();
    let (Type::MethodReturn | Type::Error, Some(serial), Some(caller)) =
        (reply.message_type(), header.reply_serial(), header.destination())
    else {
        return Ok(None);
    };
    // The call, as far as a reply looks at it.
    let call = Message::method_call("/", "Call")
        .sender(UniqueName::try_from(caller.as_str())?)
        .serial(serial)
        .build(&())?;
    let name = "org.freedesktop.DBus.Error.LimitsExceeded";
    let error = Message::error(&call.header(), name);
    Ok(Some(error.build(&"the reply is longer than a bus takes")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_reply_is_told() {
        let call = Message::method_call("/a", "A").sender(":1.7");
        let call = call.build(&()).unwrap();
        let error = too_long(&Message::method_return(&call.header()).build(&1_u8).unwrap());
        let error = error.unwrap().unwrap();
        assert_eq!(error.header().reply_serial(), Some(call.primary_header().serial_num()));
        assert_eq!(error.header().destination().unwrap().as_str(), ":1.7");
        assert!(too_long(&call).unwrap().is_none());
    }
}
