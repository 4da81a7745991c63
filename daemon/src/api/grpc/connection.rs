//! A connection to the socket, which tells the service when it is closed: sessions end with it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::{Connected, UdsConnectInfo};

use crate::service::Service;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// An open connection; its drop closes it.
pub(super) struct Connection {
    stream: UnixStream,
    name: String,
    service: Arc<Service>,
}

/// What a request knows of its connection.
#[derive(Clone)]
pub(super) struct Info {
    /// Unique while the daemon runs.
    pub(super) name: String,
    /// Who is at the other end, as the kernel says.
    pub(super) peer: UdsConnectInfo,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, service: Arc<Service>) -> Self {
        let name = format!("socket-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { stream, name, service }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.service.sessions().left(&self.name);
    }
}

impl Connected for Connection {
    type ConnectInfo = Info;

    fn connect_info(&self) -> Info {
        Info { name: self.name.clone(), peer: self.stream.connect_info() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
