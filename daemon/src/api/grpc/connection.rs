//! An accepted connection, with who is at its other end. tonic puts that beside every request. The
//! service is told when it is closed: sessions end with it. There are so many at most, of one user and in
//! all, and one that asks nothing is closed.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use super::seldom::Seldom;
use crate::service::Service;
use crate::types::Client;

/// How long nothing is accepted after an attempt that failed: usually descriptors have run out.
const AFTER_A_FAILURE: Duration = Duration::from_millis(100);
/// A connection whose first request is not there in this time is closed.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Numbers connections.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The connections that are open, to all listeners. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Open>);

struct Open {
    total: usize,
    per_user: usize,
    /// How many each account has.
    by_account: Mutex<HashMap<String, usize>>,
    refusals: Seldom,
}

impl Connections {
    /// None yet, and at most so many.
    #[must_use]
    pub fn new(total: usize, per_user: usize) -> Self {
        let by_account = Mutex::default();
        Self(Arc::new(Open { total, per_user, by_account, refusals: Seldom::default() }))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.by_account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open connection of this client, which gets its name. None: there are too many, and it is closed.
    pub(super) fn admit<S>(
        &self,
        stream: S,
        client: Client,
        service: &Arc<Service>,
    ) -> Option<Connection<S>> {
        let name = format!("connection-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let client = Client { name, ..client };
        let mut open = self.open();
        let all: usize = open.values().sum();
        let own = open.entry(client.account()).or_default();
        if *own >= self.0.per_user || all >= self.0.total {
            let own = *own;
            open.retain(|_, count| *count > 0);
            drop(open);
            if let Some(times) = self.0.refusals.times() {
                tracing::warn!(%client, own, all, times, "there are too many connections: refused");
            }
            return None;
        }
        *own += 1;
        Some(Connection {
            stream,
            peer: Peer { client: Arc::new(client), state: Arc::default() },
            first: Some(Box::pin(sleep(FIRST_REQUEST))),
            connections: self.clone(),
            service: Arc::clone(service),
        })
    }
}

/// Who is at the other end of a connection, and what has become of that. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Peer {
    client: Arc<Client>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    has_asked: AtomicBool,
    is_gone: AtomicBool,
}

impl Peer {
    /// The client, as it was found out when the connection was accepted.
    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    /// A request is there.
    pub(super) fn asks(&self) {
        self.state.has_asked.store(true, Ordering::Relaxed);
    }

    /// Whether the connection is closed: what was made since is nobody's.
    pub(super) fn is_gone(&self) -> bool {
        self.state.is_gone.load(Ordering::SeqCst)
    }
}

/// The stream, and who is at its other end. Its drop closes it.
pub(super) struct Connection<S> {
    stream: S,
    peer: Peer,
    /// Until when there must be a request; None: there was one.
    first: Option<Pin<Box<Sleep>>>,
    connections: Connections,
    service: Arc<Service>,
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        // In this order: who makes a session sees the one, or it is ended by the other.
        self.peer.state.is_gone.store(true, Ordering::SeqCst);
        self.service.sessions().left(&self.peer.client.name);
        let mut open = self.connections.open();
        let account = self.peer.client.account();
        if let Some(count) = open.get_mut(&account) {
            *count -= 1;
            if *count == 0 {
                open.remove(&account);
            }
        }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
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
        if self.peer.state.has_asked.load(Ordering::Relaxed) {
            self.first = None;
        } else if let Some(first) = &mut self.first
            && first.as_mut().poll(context).is_ready()
        {
            tracing::debug!(client = %self.peer.client, "a connection without a request is closed");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
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
