//! What a hostile client of the gRPC socket may try beside malformed requests: the daemon goes on serving the
//! others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nestd_client::v1::{self, ErrorReason};
use nestd_client::{Client, Error, ask};
use nestd_tests::{Builder, Daemon, collect, text};

use crate::contract::channel;

fn connect(daemon: &Daemon) -> UnixStream {
    let socket = UnixStream::connect(daemon.socket()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// Whether the daemon has closed it, at the latest when it is tired of waiting.
fn is_closed(mut socket: UnixStream) -> bool {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).is_ok()
}

async fn still_well(daemon: &Daemon) {
    let client = daemon.grpc().await;
    let events = collect(client.generate(ask("all is well")).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "all is well");
}

#[tokio::test]
async fn connections_of_one_user_are_bounded() {
    let daemon = Builder::sim().set("grpc.connections_per_user", "3").start();
    let client = daemon.grpc().await;
    client.status().await.unwrap();
    let held = [connect(&daemon), connect(&daemon)];
    for _ in 0..100 {
        assert!(is_closed(connect(&daemon)));
    }
    client.status().await.unwrap();
    let told = daemon.log().matches("there are too many connections").count();
    assert!((1..10).contains(&told), "{told} lines for a hundred connections");
    drop(held);
    let began = Instant::now();
    while daemon.grpc().await.status().await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the places are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let daemon = Builder::sim().without_bus().start();
    let silent = connect(&daemon);
    let mut greeting = connect(&daemon);
    // HTTP/2's preface, and empty settings.
    greeting.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    // One that has asked stays, and one that is closed before its first call connects again.
    let (asked, idle) = (daemon.grpc().await, daemon.grpc().await);
    let session = asked.create_session(vec![], v1::SessionOptions::default()).await.unwrap();
    let closed = tokio::task::spawn_blocking(|| is_closed(silent) && is_closed(greeting));
    assert!(closed.await.unwrap());
    // A call in the very moment in which it is closed fails.
    let again = async { while idle.status().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
    let sessions = asked.sessions().await.unwrap();
    assert_eq!(sessions.iter().map(|session| &session.id).collect::<Vec<_>>(), [&session]);
    still_well(&daemon).await;
}

fn field(error: &Error) -> (Option<ErrorReason>, Option<&str>) {
    let Error::Failed(failure) = error else { panic!("{error:?}") };
    (Some(failure.reason), failure.details.get("field").map(String::as_str))
}

async fn is_too_long(client: &Client, bytes: usize) {
    let error = client.generate(ask("x".repeat(bytes))).await.err().unwrap();
    assert_eq!(field(&error), (Some(ErrorReason::InvalidArgument), Some("message")), "{error}");
}

#[tokio::test]
async fn messages_are_as_long_as_the_settings_in_force_say() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "100000.0").start();
    let client = daemon.grpc().await;
    is_too_long(&client, 2_000_000).await;
    daemon.change("limits.prompt_bytes", "5_000_000");
    client.count_tokens(ask("x".repeat(4_900_000)).messages).await.unwrap();
    is_too_long(&client, 7_000_000).await;
    // What holds no text is short.
    let error = client.pin(&"x".repeat(100_000)).await.unwrap_err();
    assert_eq!(field(&error), (Some(ErrorReason::InvalidArgument), Some("message")), "{error}");
    still_well(&daemon).await;
}

/// A call of HTTP/2, whole: preface, settings, headers, and a message without fields.
fn create_session() -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/nestd.v1.Sessions/Create"),
        (":authority", "nestd"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let block = headers.map(|(name, value)| [vec![0], text(name), text(value)].concat()).concat();
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &block),
        frame(0, 1, 1, &[0; 5]),
    ]
    .concat()
}

#[tokio::test]
async fn a_session_of_a_connection_that_is_closed_at_once_ends_with_it() {
    let daemon =
        Builder::sim().set("sessions.per_user", "1000").set("sessions.total", "1000").start();
    let call = create_session();
    for number in 0..300 {
        let mut socket = connect(&daemon);
        socket.write_all(&call).unwrap();
        // As far as the daemon gets in a time that differs.
        tokio::time::sleep(Duration::from_micros(number * 5)).await;
    }
    // Sessions are counted by what the log says of them.
    let count = |what| daemon.log().matches(what).count();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(200)).await;
    while count("session made") != count("session ended") {
        assert!(began.elapsed() < Duration::from_secs(20), "sessions without a connection");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(count("session made") > 0, "none was made");
    let mut channel = v1::sessions_client::SessionsClient::new(channel(&daemon).await);
    channel.create(v1::CreateSessionRequest::default()).await.unwrap();
}

#[tokio::test]
async fn the_daemon_may_have_as_many_files_as_it_is_let() {
    let daemon = Builder::sim().without_bus().start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
}
