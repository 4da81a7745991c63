//! An accepted connection, with who is at its other end. tonic puts the client beside every request. The
//! service is told when it is closed: sessions end with it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;
use tonic::transport::server::Connected;

use crate::service::Service;
use crate::types::Client;

/// How long nothing is accepted after an attempt that failed: usually descriptors have run out.
const AFTER_A_FAILURE: Duration = Duration::from_millis(100);

/// Numbers connections.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The stream, and the client that was found out when it was accepted. Its drop closes it.
pub(super) struct Connection<S> {
    stream: S,
    client: Arc<Client>,
    service: Arc<Service>,
}

impl<S> Connection<S> {
    /// An open connection of this client, which gets its name.
    pub(super) fn new(stream: S, client: Client, service: Arc<Service>) -> Self {
        let name = format!("connection-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { stream, client: Arc::new(Client { name, ..client }), service }
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.service.sessions().left(&self.client.name);
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Arc<Client>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.client)
    }
}

/// Everything that a listener accepts. A failure is told, and is not the end.
pub(super) fn accepted<S>(
    streams: impl Stream<Item = io::Result<S>> + Send,
) -> impl Stream<Item = S> + Send
where
    S: Send,
{
    streams.filter_map(|stream| async {
        if let Err(error) = &stream {
            tracing::warn!(%error, "a connection cannot be accepted");
            sleep(AFTER_A_FAILURE).await;
        }
        stream.ok()
    })
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
