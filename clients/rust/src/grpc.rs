//! The gRPC half: thin calls of the generated clients over a Unix socket or TCP. `Client` calls it.

pub(crate) mod channel;

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, future::ready, stream};
use hyper_util::rt::TokioIo;
use nestd_proto::v1::{
    AppendRequest, CountTokensRequest, CreateSessionRequest, DeleteSessionRequest,
    ForkSessionRequest, GenerateEvent, GenerateRequest, GetGovernorRequest, GetStatusRequest,
    GetTranscriptRequest, GovernorReport, HoldForegroundRequest, HoldRequest, ListModelsRequest,
    ListRequestsRequest, ListRequestsResponse, ListSessionsRequest, LoadModelEvent,
    LoadModelRequest, Message, Model, PinRequest, PrewarmRequest, Priority, Session,
    SessionOptions, StatusReport, UnloadModelRequest, WatchGovernorRequest, WatchStatusRequest,
    generate_event::Event, governor_client::GovernorClient, inference_client::InferenceClient,
    models_client::ModelsClient, sessions_client::SessionsClient, status_client::StatusClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use self::channel::{Channel, checked};
use crate::{Error, Events, Fractions, GovernorReports, Holding, Leased, Reports};

/// How often a silent daemon on TCP is asked whether it is still there, and how long it may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Where the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At a Unix socket.
    Socket(PathBuf),
    /// At `https://HOST:PORT`.
    Tcp(String),
}

/// The files that a connection over TCP needs, in PEM: the daemon and its client show each other
/// certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// The authorities that the daemon's certificate may come from.
    pub ca: PathBuf,
    /// The client's certificate, with its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// The daemon over gRPC. Connects again by itself when the daemon has been restarted.
#[derive(Clone, Debug)]
pub struct Grpc {
    channel: Channel,
    place: Arc<Place>,
}

impl Grpc {
    /// Connects to the socket.
    pub async fn connect(socket: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = socket.into();
        let place = Arc::new(Place::Socket(path.clone()));
        // The address is asked for by HTTP and used by nobody.
        let channel = Endpoint::from_static("http://nestd.invalid")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|error| connect_error(&error, &place))?;
        Ok(Self { channel: checked(channel), place })
    }

    /// Connects to `https://HOST:PORT`, with a certificate and to one.
    pub async fn connect_tcp(url: &str, files: &Certificates) -> Result<Self, Error> {
        let wrong =
            |why: String| Error::Unreachable(format!("{url} cannot be connected to: {why}"));
        if !url.starts_with("https://") {
            return Err(wrong("nestd speaks TLS only, so it must be https://HOST:PORT".into()));
        }
        let read = |file: &PathBuf| {
            fs::read(file).map_err(|error| wrong(format!("{}: {error}", file.display())))
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&files.ca)?))
            .identity(Identity::from_pem(read(&files.certificate)?, read(&files.key)?));
        let (interval, answers) = KEEPALIVE;
        let place = Arc::new(Place::Tcp(url.into()));
        let channel = Endpoint::from_shared(url.to_owned())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| wrong(whole(&error)))?
            .connect_timeout(answers)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(answers)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|error| connect_error(&error, &place))?;
        Ok(Self { channel: checked(channel), place })
    }

    fn error(&self) -> impl Fn(tonic::Status) -> Error + Send + 'static {
        let place = self.place.clone();
        move |status| Error::from_status(&status, &place)
    }

    /// See [`crate::Client::status`].
    pub async fn status(&self) -> Result<StatusReport, Error> {
        let reply = StatusClient::new(self.channel.clone()).get(GetStatusRequest {}).await;
        Ok(reply.map_err(self.error())?.into_inner())
    }

    /// See [`crate::Client::watch_status`].
    pub async fn watch_status(&self) -> Result<Reports, Error> {
        let reply = StatusClient::new(self.channel.clone()).watch(WatchStatusRequest {}).await;
        Ok(until(self.streamed(reply)?, |_| false, lost).boxed())
    }

    /// See [`crate::Client::requests`].
    pub async fn requests(&self) -> Result<ListRequestsResponse, Error> {
        let mut client = StatusClient::new(self.channel.clone());
        let reply = client.list_requests(ListRequestsRequest {}).await;
        Ok(reply.map_err(self.error())?.into_inner())
    }

    /// See [`crate::Client::hold_foreground`].
    pub async fn hold_foreground(&self, request: HoldForegroundRequest) -> Result<Leased, Error> {
        let mut client = StatusClient::new(self.channel.clone());
        let reply = client.hold_foreground(request).await;
        Ok(until(self.streamed(reply)?, |_| false, lost).boxed())
    }

    /// See [`crate::Client::governor`].
    pub async fn governor(&self) -> Result<GovernorReport, Error> {
        let reply = GovernorClient::new(self.channel.clone()).get(GetGovernorRequest {}).await;
        Ok(reply.map_err(self.error())?.into_inner())
    }

    /// See [`crate::Client::watch_governor`].
    pub async fn watch_governor(&self) -> Result<GovernorReports, Error> {
        let reply = GovernorClient::new(self.channel.clone()).watch(WatchGovernorRequest {}).await;
        Ok(until(self.streamed(reply)?, |_| false, lost).boxed())
    }

    /// See [`crate::Client::hold`].
    pub async fn hold(&self, request: HoldRequest) -> Result<Holding, Error> {
        let reply = GovernorClient::new(self.channel.clone()).hold(request).await;
        Ok(until(self.streamed(reply)?, |_| false, lost).boxed())
    }

    /// See [`crate::Client::pin`].
    pub async fn pin(&self, size: &str) -> Result<(), Error> {
        let request = PinRequest { size: size.into() };
        let reply = GovernorClient::new(self.channel.clone()).pin(request).await;
        reply.map_err(self.error()).map(drop)
    }

    /// See [`crate::Client::generate`].
    pub async fn generate(&self, request: GenerateRequest) -> Result<Events, Error> {
        let reply = InferenceClient::new(self.channel.clone()).generate(request).await;
        Ok(until(self.streamed(reply)?, is_finished, lost).boxed())
    }

    /// See [`crate::Client::count_tokens`].
    pub async fn count_tokens(&self, messages: Vec<Message>) -> Result<u32, Error> {
        let mut client = InferenceClient::new(self.channel.clone());
        let reply = client.count_tokens(CountTokensRequest { messages }).await;
        Ok(reply.map_err(self.error())?.into_inner().tokens)
    }

    /// See [`crate::Client::models`].
    pub async fn models(&self) -> Result<Vec<Model>, Error> {
        let reply = ModelsClient::new(self.channel.clone()).list(ListModelsRequest {}).await;
        Ok(reply.map_err(self.error())?.into_inner().models)
    }

    /// See [`crate::Client::load`].
    pub async fn load(&self, model: &str, size: &str) -> Result<Fractions, Error> {
        let request = LoadModelRequest { model: model.into(), size: size.into() };
        let reply = ModelsClient::new(self.channel.clone()).load(request).await;
        // The estimate may reach 1 before the model answers; the end of the stream says that it does.
        let fractions = self
            .streamed(reply)?
            .map(|event| event.map(|LoadModelEvent { fraction }| fraction))
            .filter(|fraction| ready(!matches!(fraction, Ok(1.0..))));
        Ok(until(fractions, |fraction| *fraction >= 1.0, || Ok(1.0)).boxed())
    }

    /// See [`crate::Client::unload`].
    pub async fn unload(&self) -> Result<(), Error> {
        let reply = ModelsClient::new(self.channel.clone()).unload(UnloadModelRequest {}).await;
        reply.map_err(self.error()).map(drop)
    }

    /// See [`crate::Client::create_session`].
    pub async fn create_session(
        &self,
        messages: Vec<Message>,
        options: SessionOptions,
    ) -> Result<String, Error> {
        let request = CreateSessionRequest { messages, options: Some(options) };
        let reply = SessionsClient::new(self.channel.clone()).create(request).await;
        Ok(reply.map_err(self.error())?.into_inner().id)
    }

    /// See [`crate::Client::sessions`].
    pub async fn sessions(&self) -> Result<Vec<Session>, Error> {
        let reply = SessionsClient::new(self.channel.clone()).list(ListSessionsRequest {}).await;
        Ok(reply.map_err(self.error())?.into_inner().sessions)
    }

    /// See [`crate::Client::transcript`].
    pub async fn transcript(&self, session: &str) -> Result<Vec<Message>, Error> {
        let request = GetTranscriptRequest { session: session.into() };
        let reply = SessionsClient::new(self.channel.clone()).get_transcript(request).await;
        Ok(reply.map_err(self.error())?.into_inner().messages)
    }

    /// See [`crate::Client::append`].
    pub async fn append(&self, session: &str, messages: Vec<Message>) -> Result<(), Error> {
        let request = AppendRequest { session: session.into(), messages };
        let reply = SessionsClient::new(self.channel.clone()).append(request).await;
        reply.map_err(self.error()).map(drop)
    }

    /// See [`crate::Client::fork`].
    pub async fn fork(&self, session: &str, options: SessionOptions) -> Result<String, Error> {
        let request = ForkSessionRequest { session: session.into(), options: Some(options) };
        let reply = SessionsClient::new(self.channel.clone()).fork(request).await;
        Ok(reply.map_err(self.error())?.into_inner().id)
    }

    /// See [`crate::Client::prewarm`].
    pub async fn prewarm(&self, session: &str, priority: Priority) -> Result<Events, Error> {
        let request = PrewarmRequest { session: session.into(), priority: priority.into() };
        let reply = SessionsClient::new(self.channel.clone()).prewarm(request).await;
        Ok(until(self.streamed(reply)?, is_finished, lost).boxed())
    }

    /// See [`crate::Client::delete_session`].
    pub async fn delete_session(&self, session: &str) -> Result<(), Error> {
        let request = DeleteSessionRequest { session: session.into() };
        let reply = SessionsClient::new(self.channel.clone()).delete(request).await;
        reply.map_err(self.error()).map(drop)
    }

    fn streamed<T>(
        &self,
        reply: Result<tonic::Response<tonic::Streaming<T>>, tonic::Status>,
    ) -> Result<impl Stream<Item = Result<T, Error>> + Send + 'static, Error>
    where
        T: Send + 'static,
    {
        let error = self.error();
        let items = reply.map_err(&error)?.into_inner();
        Ok(items.map(move |item| item.map_err(&error)))
    }
}

/// Ends a stream with its last item or with its first error, and one that stops before either with
/// `at_end`.
fn until<T: Send + 'static>(
    items: impl Stream<Item = Result<T, Error>> + Send + 'static,
    is_last: impl Fn(&T) -> bool + Send + 'static,
    at_end: impl Fn() -> Result<T, Error> + Send + 'static,
) -> impl Stream<Item = Result<T, Error>> + Send + 'static {
    stream::unfold((Some(items.boxed()), is_last, at_end), |(items, is_last, at_end)| async move {
        let mut items = items?;
        let item = items.next().await.unwrap_or_else(&at_end);
        let goes_on = item.as_ref().is_ok_and(|item| !is_last(item));
        Some((item, (goes_on.then_some(items), is_last, at_end)))
    })
}

fn is_finished(event: &GenerateEvent) -> bool {
    matches!(event.event, Some(Event::Finished(_)))
}

/// What the end of a stream means that has a last item of its own.
fn lost<T>() -> Result<T, Error> {
    Err(Error::disconnected())
}

/// What a failed connection means: the I/O error is somewhere below tonic's.
fn connect_error(error: &tonic::transport::Error, place: &Place) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return Error::from_connect(inner, place);
        }
        source = inner.source();
    }
    let why = whole(error);
    Error::Unreachable(match place {
        Place::Socket(socket) => {
            let socket = socket.display();
            format!("{socket} does not answer ({why}): see that it is nestd's socket")
        }
        Place::Tcp(url) => {
            format!("{url} does not answer ({why}): see that tcp.listen in nestd's settings is it")
        }
    })
}

/// An error with what it comes from.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(items: Vec<Result<u8, Error>>) -> Vec<Result<u8, Error>> {
        until(stream::iter(items), |item| *item == 9, lost).collect().await
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_last_item() {
        assert_eq!(collect(vec![Ok(1), Ok(9), Ok(2)]).await, vec![Ok(1), Ok(9)]);
    }

    #[tokio::test]
    async fn a_stream_that_stops_early_says_so() {
        assert_eq!(collect(vec![Ok(1)]).await, vec![Ok(1), Err(Error::disconnected())]);
    }

    #[tokio::test]
    async fn nothing_follows_an_error() {
        let error = Error::Unexpected("x".into());
        assert_eq!(collect(vec![Err(error.clone()), Ok(1)]).await, vec![Err(error)]);
    }

    #[tokio::test]
    async fn a_missing_socket_is_an_unreachable_daemon() {
        let error = Grpc::connect("/nonexistent/nestd.sock").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(text)
            if text.starts_with("nestd is not running at /nonexistent/nestd.sock")));
    }

    #[tokio::test]
    async fn tcp_is_tls_or_nothing() {
        let files = Certificates { ca: "/c".into(), certificate: "/c".into(), key: "/k".into() };
        for (url, why) in
            [("http://127.0.0.1:1", "https://HOST:PORT"), ("https://127.0.0.1:1", "/c: No such")]
        {
            let error = Grpc::connect_tcp(url, &files).await.unwrap_err();
            assert!(matches!(&error, Error::Unreachable(text) if text.contains(why)), "{error}");
        }
    }
}
