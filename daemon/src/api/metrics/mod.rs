//! The metrics over HTTP: `GET /metrics` in the `OpenMetrics` text format, on a Unix socket or on a
//! loopback port. docs/metrics.md is the table.
//!
//! `app` binds, then spawns [`Server::run`]. Nobody who connects is trusted: few connections at once, each
//! with one request and with limits of its time.

mod state;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Core, socket};
use state::Exporter;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 8;
/// A request's head is there in this time, or its connection is closed.
const HEAD: Duration = Duration::from_secs(2);
/// And everything is over in this time, the reading of the answer included.
const WHOLE: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 8192;
/// When accepting fails, it is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// What an answer holds, as Prometheus asks for it.
const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// On a Unix socket with this group.
    Unix(&'a Path, &'a str),
    /// On a loopback port.
    Tcp(SocketAddr),
}

/// A listener that accepts connections, not served yet.
pub struct Server(Listener);

enum Listener {
    /// With where it was made, to be removed at the end.
    Unix(UnixListener, Option<PathBuf>),
    Tcp(TcpListener),
}

impl Server {
    /// Binds.
    pub async fn bind(place: Place<'_>) -> io::Result<Self> {
        Ok(Self(match place {
            Place::Unix(path, group) => {
                let listener = socket::bind(path, 0o660, group, "metrics.listen").await?;
                Listener::Unix(listener, Some(path.to_owned()))
            }
            Place::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
        }))
    }

    /// On a socket that the service manager made, and keeps.
    pub fn given(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self(Listener::Unix(UnixListener::from_std(listener)?, None)))
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, core: Core, stop: CancellationToken) {
        let exporter = Arc::new(Exporter::new(core));
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let serve = async {
            // The semaphore is never closed.
            while let Ok(place) = Arc::clone(&places).acquire_owned().await {
                if let Err(error) = self.accept(&exporter, place).await {
                    tracing::warn!(%error, "a connection for metrics was not accepted");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        tokio::select! {
            () = serve => {}
            () = stop.cancelled() => {}
        }
        if let Listener::Unix(_, Some(path)) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }

    async fn accept(
        &self,
        exporter: &Arc<Exporter>,
        place: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let exporter = Arc::clone(exporter);
        match &self.0 {
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(serve(stream, exporter, place));
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(serve(stream, exporter, place));
            }
        }
        Ok(())
    }
}

/// One connection with its one request. `_place` is given back at its end.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    exporter: Arc<Exporter>,
    _place: OwnedSemaphorePermit,
) {
    let answer = service_fn(move |request| {
        let exporter = Arc::clone(&exporter);
        async move { Ok::<_, Infallible>(answer(&request, exporter).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(WHOLE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics"),
        Err(_) => tracing::debug!("a connection for metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, exporter: Arc<Exporter>) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    if request.method() != Method::GET {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can be read with GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refused;
    }
    match exporter.text().await {
        Ok(text) => response(StatusCode::OK, OPENMETRICS, text),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written; see the log\n")
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, TEXT, text)
}

fn response(
    status: StatusCode,
    kind: HeaderValue,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
