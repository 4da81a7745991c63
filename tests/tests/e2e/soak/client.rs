//! One client of the soak: does one thing after another, well or badly, and accounts for what it saw.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::v1::{
    ErrorReason, GenerateRequest, HoldRequest, Priority, SessionOptions, Stopping,
    generate_event::Event,
};
use nestd_client::{Client, Error, Events, ask};
use nestd_tests::Daemon;
use rand::rngs::StdRng;
use rand::{Rng, seq::IndexedRandom};

use super::account::Account;

/// What a client may do.
pub const DEEDS: [&str; 14] = [
    "read to the end",
    "read from a pipe",
    "drop the stream",
    "disconnect in the middle",
    "leave the bus without a word",
    "read slowly",
    "read too late",
    "never read the pipe",
    "close the pipe",
    "set a deadline",
    "ask for nonsense",
    "write garbage",
    "make sessions",
    "hold",
];
/// A request of these that has no end by then is lost.
const LOST: Duration = Duration::from_secs(20);

pub struct Badly {
    daemon: Arc<Daemon>,
    account: Arc<Account>,
    random: StdRng,
    /// Odd ones talk D-Bus.
    number: u64,
    client: Option<Client>,
}

impl Badly {
    pub fn new(daemon: Arc<Daemon>, account: Arc<Account>, random: StdRng, number: u64) -> Self {
        Self { daemon, account, random, number, client: None }
    }

    /// Does one thing after another.
    pub async fn until(mut self, until: Instant) {
        while Instant::now() < until {
            let deed = *DEEDS.choose(&mut self.random).unwrap();
            if tokio::time::timeout(LOST, self.perform(deed)).await.is_err() {
                self.account.wrong(format!("{deed:?} has no end after {LOST:?}"));
            }
            self.account.did(deed);
        }
    }

    async fn perform(&mut self, deed: &'static str) {
        match deed {
            "read to the end" => self.read(Duration::ZERO).await,
            "read slowly" => self.read(Duration::from_millis(20)).await,
            "read too late" => self.read_too_late().await,
            "read from a pipe" => self.pipe(Pipe::Read).await,
            "never read the pipe" => self.pipe(Pipe::Ignored).await,
            "close the pipe" => self.pipe(Pipe::Closed).await,
            "drop the stream" => self.drop_stream().await,
            "disconnect in the middle" => {
                self.drop_stream().await;
                self.client = None;
            }
            "leave the bus without a word" => self.leave_the_bus().await,
            "set a deadline" => self.deadline().await,
            "ask for nonsense" => self.nonsense().await,
            "write garbage" => self.garbage(),
            "make sessions" => self.sessions().await,
            "hold" => self.hold().await,
            other => unreachable!("{other}"),
        }
    }

    /// The connection, a new one after a while.
    async fn client(&mut self) -> Client {
        if self.random.random_ratio(1, 20) {
            self.client = None;
        }
        if self.client.is_none() {
            self.client = Some(match self.number % 2 {
                0 => self.daemon.grpc().await,
                _ => self.daemon.dbus().await,
            });
        }
        self.client.clone().unwrap()
    }

    fn request(&mut self) -> GenerateRequest {
        let words = self.random.random_range(1..120);
        let priorities = [Priority::Interactive, Priority::Normal, Priority::Background];
        GenerateRequest {
            priority: (*priorities.choose(&mut self.random).unwrap()).into(),
            stopping: Some(Stopping {
                max_tokens: self.random.random_range(1..100),
                ..Stopping::default()
            }),
            ..ask("word ".repeat(words))
        }
    }

    /// Starts a request. One that is refused waits as it is told.
    async fn start(&mut self, request: GenerateRequest) -> Option<Events> {
        let client = self.client().await;
        match client.generate(request).await {
            Ok(events) => Some(events),
            Err(error) => {
                self.refused(&error).await;
                None
            }
        }
    }

    async fn refused(&mut self, error: &Error) {
        self.account.refused(error);
        let wait = match error {
            Error::Failed(failure) => failure.retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
    }

    /// Reads to the end, with a pause after each event, and checks that there is exactly one.
    async fn end(&self, mut events: Events, pause: Duration) {
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    if let Some(Event::Finished(finished)) = event.event {
                        self.account.finished(finished.reason());
                        break;
                    }
                }
                Some(Err(error)) => {
                    self.account.failed(&error);
                    break;
                }
                None => return self.account.wrong("a stream that just stops".into()),
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        if let Some(event) = events.next().await {
            self.account.wrong(format!("an event after the last: {event:?}"));
        }
    }

    async fn read(&mut self, pause: Duration) {
        let request = self.request();
        if let Some(events) = self.start(request).await {
            self.end(events, pause).await;
        }
    }

    /// More text than windows, buffers and the daemon hold, which nobody reads for a while.
    fn long() -> GenerateRequest {
        let word = "x".repeat(4000) + " ";
        GenerateRequest {
            stopping: Some(Stopping { max_tokens: 300, ..Stopping::default() }),
            ..ask(word.repeat(300))
        }
    }

    async fn read_too_late(&mut self) {
        let request = Self::long();
        // A connection of its own: a deaf reader holds up all that comes through the same one.
        self.client = None;
        if let Some(events) = self.start(request).await {
            tokio::time::sleep(Duration::from_secs(2)).await;
            self.end(events, Duration::ZERO).await;
        }
        self.client = None;
    }

    async fn drop_stream(&mut self) {
        let request = self.request();
        if let Some(mut events) = self.start(request).await {
            for _ in 0..self.random.random_range(0..20) {
                match events.next().await {
                    Some(Ok(event)) if matches!(event.event, Some(Event::Finished(_))) => break,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return self.account.failed(&error),
                    None => return self.account.wrong("a stream that just stops".into()),
                }
            }
        }
    }

    /// The text through a pipe, which only D-Bus has.
    async fn pipe(&mut self, pipe: Pipe) {
        let client = self.daemon.dbus().await;
        let Client::Dbus(dbus) = &client else { unreachable!() };
        let request = match pipe {
            Pipe::Ignored => Self::long(),
            _ => self.request(),
        };
        let (reader, writer) = std::io::pipe().unwrap();
        let events = dbus.generate_to_fd(writer.as_fd(), request).await;
        drop(writer);
        let events = match events {
            Ok(events) => events,
            Err(error) => return self.refused(&error).await,
        };
        match pipe {
            Pipe::Read => {
                let mut reader =
                    tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into()).unwrap();
                let reading = tokio::spawn(async move {
                    let mut text = Vec::new();
                    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut text).await.map(|_| text)
                });
                self.end(events, Duration::ZERO).await;
                // The daemon closes its end, however the request ended.
                if reading.await.unwrap().is_err() {
                    self.account.wrong("the pipe cannot be read to its end".into());
                }
            }
            Pipe::Ignored => {
                self.end(events, Duration::ZERO).await;
                drop(reader);
            }
            Pipe::Closed => {
                drop(reader);
                self.end(events, Duration::ZERO).await;
            }
        }
    }

    /// A caller that is gone in the middle, and cancelled nothing.
    async fn leave_the_bus(&mut self) {
        let address = self.daemon.bus_address();
        let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
        let text = "word ".repeat(100);
        let messages = [("user", vec![("text", zbus::Variant::from(text.as_str()))])];
        let options = std::collections::HashMap::<&str, zbus::Variant<'_>>::new();
        let reply = bus
            .call_method(
                Some(nestd_proto::dbus::NAME),
                nestd_proto::dbus::PATH,
                Some("org.nestd.Manager1"),
                "Generate",
                &(&messages[..], options),
            )
            .await;
        match reply {
            Ok(_) | Err(zbus::Error::MethodError(..)) => {}
            Err(error) => self.account.wrong(format!("a reply that is not typed: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..200))).await;
        let _ = bus.close().await;
    }

    async fn deadline(&mut self) {
        let mut request = self.request();
        let deadline_ms = self.random.random_range(1..200);
        request.stopping = Some(Stopping { deadline_ms, ..Stopping::default() });
        if let Some(events) = self.start(request).await {
            self.end(events, Duration::ZERO).await;
        }
    }

    async fn nonsense(&mut self) {
        let mut request = self.request();
        match self.random.random_range(0..5) {
            0 => request.messages.clear(),
            1 => request.messages[0].role = 77,
            2 => request.stopping = Some(Stopping { max_tokens: 1 << 30, ..Stopping::default() }),
            3 => request.session = "nobody".into(),
            _ => request.top_logprobs = Some(1000),
        }
        let client = self.client().await;
        let taken = client.generate(request).await;
        match taken {
            Err(error) => {
                let expected = [
                    ErrorReason::InvalidArgument,
                    ErrorReason::SessionNotFound,
                    ErrorReason::Unsupported,
                ];
                // A client that holds may have background requests refused before they are looked at.
                let busy = error.reason() == Some(ErrorReason::Busy);
                if !busy && !error.reason().is_some_and(|reason| expected.contains(&reason)) {
                    self.account.wrong(format!("nonsense is refused as {error:?}"));
                }
                self.account.refused(&error);
            }
            Ok(_) => self.account.wrong("nonsense is taken".into()),
        }
    }

    fn garbage(&mut self) {
        let Ok(mut socket) = std::os::unix::net::UnixStream::connect(self.daemon.socket()) else {
            return self.account.wrong("the socket does not accept".into());
        };
        if self.random.random() {
            let _ = socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
        let mut bytes = vec![0; self.random.random_range(0..2048)];
        self.random.fill(&mut bytes[..]);
        let _ = socket.write_all(&bytes);
    }

    async fn sessions(&mut self) {
        let client = self.client().await;
        let session = match client.create_session(Vec::new(), SessionOptions::default()).await {
            Ok(session) => session,
            Err(error) => return self.refused(&error).await,
        };
        for _ in 0..self.random.random_range(1..3) {
            let mut request = self.request();
            request.session.clone_from(&session);
            match client.generate(request).await {
                Ok(events) if self.random.random() => self.end(events, Duration::ZERO).await,
                Ok(events) => drop(events),
                Err(error) => self.refused(&error).await,
            }
        }
        match self.random.random_range(0..3) {
            // While it may still answer.
            0 => match client.delete_session(&session).await {
                Ok(()) => {}
                Err(error) => self.refused(&error).await,
            },
            1 => self.client = None,
            // It ends with its connection, some day.
            _ => {}
        }
    }

    async fn hold(&mut self) {
        let client = self.client().await;
        let request = HoldRequest {
            max_size: if self.random.random() { "small".into() } else { String::new() },
            no_background: self.random.random_ratio(1, 4),
            reason: "soak".into(),
            ..HoldRequest::default()
        };
        match client.hold(request).await {
            Ok(mut held) => {
                if let Some(Err(error)) = held.next().await {
                    self.account.refused(&error);
                }
                tokio::time::sleep(Duration::from_millis(self.random.random_range(0..100))).await;
            }
            Err(error) => self.refused(&error).await,
        }
    }
}

/// What becomes of the reading end.
#[derive(Clone, Copy)]
enum Pipe {
    Read,
    Ignored,
    Closed,
}
