//! A thousand malformed requests over each API, and garbage on the socket: all are refused, the daemon
//! goes on, and nothing is left behind.

use std::collections::HashMap;
use std::io::Write;

use bytes::{Buf, BufMut};
use futures::StreamExt;
use nestd_client::v1::{self, State};
use nestd_client::{Client, ask};
use nestd_proto::dbus::{NAME, PATH};
use nestd_tests::{Builder, collect, text, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};
use zbus::Variant;

use crate::contract::channel;

const REQUESTS: usize = 1000;

/// The daemon answers as on the first day, with as many descriptors as before.
async fn still_well(client: &Client, name: &str) {
    let events = collect(client.generate(ask("all is well")).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "all is well", "{name}");
    let status = until(client, |status| status.running_requests == 0).await;
    assert_eq!((status.state(), status.queued_requests), (State::Ready, 0), "{name}");
}

/// Sends bytes as they are, and throws the answer away.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

/// A request with something wrong in it: one field is what it may not be, or bytes are broken.
fn malformed(random: &mut StdRng) -> Vec<u8> {
    let mut request = ask("hello");
    let long = |random: &mut StdRng| "\u{0}ä\u{10FFFF}".repeat(random.random_range(0..2000));
    match random.random_range(0..10) {
        0 => request.messages[0].role = random.random_range(4..i32::MAX),
        1 => request.messages[0].role = random.random_range(i32::MIN..=0),
        2 => request.messages[0].parts.push(v1::Part { kind: None }),
        3 => request.messages.clear(),
        4 => {
            let temperature = [f64::NAN, f64::INFINITY, -1.0, 1e300][random.random_range(0..4)];
            request.sampling =
                Some(v1::Sampling { temperature: Some(temperature), ..Default::default() });
        }
        5 => {
            let stop = (0..random.random_range(9..100)).map(|_| long(random)).collect();
            request.stopping = Some(v1::Stopping { stop, ..Default::default() });
        }
        6 => request.priority = random.random_range(4..i32::MAX),
        7 => {
            let max_tokens = random.random_range(100_000..u32::MAX);
            request.stopping = Some(v1::Stopping { max_tokens, ..Default::default() });
        }
        8 => request.top_logprobs = Some(random.random_range(21..u32::MAX)),
        _ => {
            let mut bytes = vec![0; random.random_range(1..200)];
            random.fill(&mut bytes[..]);
            // A field of a group that never ends: never a valid message, whatever follows.
            bytes.insert(0, 0x0b);
            return bytes;
        }
    }
    prost::Message::encode_to_vec(&request)
}

#[tokio::test]
async fn a_thousand_malformed_grpc_requests() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "10000.0").start();
    let client = daemon.grpc().await;
    let mut random = StdRng::seed_from_u64(1);
    let mut grpc = tonic::client::Grpc::new(channel(&daemon).await);
    let before = daemon.descriptors();
    for number in 0..REQUESTS {
        let bytes = malformed(&mut random);
        grpc.ready().await.unwrap();
        let path =
            tonic::codegen::http::uri::PathAndQuery::from_static("/nestd.v1.Inference/Generate");
        let reply = grpc.server_streaming(tonic::Request::new(bytes.clone()), path, Raw).await;
        let code =
            reply.err().unwrap_or_else(|| panic!("request {number} was taken: {bytes:?}")).code();
        assert!(
            matches!(code, Code::InvalidArgument | Code::Unimplemented | Code::Internal),
            "request {number}: {code:?}"
        );
    }
    still_well(&client, "gRPC").await;
    assert!(daemon.descriptors() <= before + 4, "{} of {before}", daemon.descriptors());
}

#[tokio::test]
async fn garbage_on_the_socket() {
    let daemon = Builder::sim().without_bus().start();
    let client = daemon.grpc().await;
    let mut random = StdRng::seed_from_u64(2);
    for _ in 0..200 {
        let mut socket = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
        if random.random() {
            let _ = socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        }
        let mut bytes = vec![0; random.random_range(0..4096)];
        random.fill(&mut bytes[..]);
        let _ = socket.write_all(&bytes);
    }
    still_well(&client, "garbage").await;
}

/// A value of some type, which may nest.
fn value(random: &mut StdRng, depth: u32) -> Variant<'static> {
    match random.random_range(0..if depth == 0 { 8 } else { 11 }) {
        0 => Variant::from(random.random::<u8>()),
        1 => Variant::from(random.random::<bool>()),
        2 => Variant::from(random.random::<i64>()),
        3 => Variant::from(random.random::<u32>()),
        4 => Variant::from([f64::NAN, -1.0, 1e308][random.random_range(0..3)]),
        5 => Variant::from("\u{1}x".repeat(random.random_range(0..300))),
        6 => Variant::from(zbus::ObjectPath::from_static_str_unchecked("/a/b")),
        7 => Variant::from(random.random::<u64>()),
        8 => Variant::from(vec![random.random::<u16>(); random.random_range(0..50)]),
        9 => Variant::new((random.random::<u8>(), "in a struct")),
        _ => Variant::Variant(Box::new(value(random, depth - 1))),
    }
}

#[tokio::test]
async fn a_thousand_malformed_dbus_calls() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "10000.0").start();
    let client = daemon.dbus().await;
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let mut random = StdRng::seed_from_u64(3);
    let keys = [
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "max_tokens",
        "stop",
        "handle_token",
        "session",
        "nonsense",
        "",
    ];
    let before = daemon.descriptors();
    for number in 0..REQUESTS {
        let good = [("user", vec![("text", Variant::from("hello"))])];
        let none = HashMap::<&str, Variant<'_>>::new();
        let manager = Some("org.nestd.Manager1");
        let reply = match random.random_range(0..6) {
            0 => {
                let body = value(&mut random, 3);
                bus.call_method(Some(NAME), PATH, manager, "Generate", &body).await
            }
            1 => {
                let role = ["", "User", "tool", "\u{7f}"][random.random_range(0..4)];
                let messages = [(role, vec![("text", Variant::from("hello"))])];
                bus.call_method(Some(NAME), PATH, manager, "Generate", &(&messages[..], none)).await
            }
            2 => {
                let kind = ["", "text", "image", "TEXT"][random.random_range(0..4)];
                let part = loop {
                    let part = value(&mut random, 3);
                    if !matches!(part, Variant::Str(_)) {
                        break part;
                    }
                };
                let messages = [("user", vec![(kind, part)])];
                bus.call_method(Some(NAME), PATH, manager, "Generate", &(&messages[..], none)).await
            }
            3 => {
                let key = keys[random.random_range(0..keys.len())];
                let options = HashMap::from([(key, Variant::new((1_u8, "never right")))]);
                bus.call_method(Some(NAME), PATH, manager, "Generate", &(&good[..], options)).await
            }
            4 => {
                let file = std::fs::File::open("/dev/null").unwrap();
                let fd = zbus::Fd::from(std::os::fd::AsFd::as_fd(&file));
                let body = (fd, &good[..], none);
                bus.call_method(Some(NAME), PATH, manager, "GenerateToFd", &body).await
            }
            _ => {
                let path = format!("{PATH}/request/x/y{}", random.random::<u16>());
                let request = Some("org.nestd.Request1");
                bus.call_method(Some(NAME), path.as_str(), request, "Cancel", &()).await
            }
        };
        match reply {
            Err(zbus::Error::MethodError(..) | zbus::Error::FDO(_)) => {}
            other => panic!("call {number}: {other:?}"),
        }
    }
    still_well(&client, "D-Bus").await;
    assert!(daemon.descriptors() <= before + 4, "{} of {before}", daemon.descriptors());
}

#[tokio::test]
async fn one_caller_cannot_take_every_place() {
    let builder = Builder::sim().set("limits.queued_requests", "4096");
    let daemon = builder.set("quotas.queued_requests", "0").start();
    let client = daemon.dbus().await;
    let mut held = Vec::new();
    let refused = loop {
        match client.generate(ask("word ".repeat(500))).await {
            Ok(mut events) => {
                events.next().await.unwrap().unwrap();
                held.push(events);
            }
            Err(error) => break error,
        }
        assert!(held.len() < 1000, "one caller holds {} requests", held.len());
    };
    assert_eq!(refused.reason(), Some(v1::ErrorReason::QueueFull));
    let other = daemon.dbus().await;
    let _accepted = other.generate(ask("hello")).await.unwrap();
    drop(held);
    until(&client, |status| status.running_requests + status.queued_requests == 0).await;
}
