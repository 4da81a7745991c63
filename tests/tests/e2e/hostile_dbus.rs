//! What a hostile client on the bus may try beside malformed calls: the daemon goes on serving the others.

use std::collections::HashMap;
use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsFd;

use nestd_client::{Bus, Dbus, ask};
use nestd_proto::dbus::{NAME, PATH};
use nestd_tests::{Builder, Daemon, collect, text};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use zbus::Variant;

const MANAGER: &str = "org.nestd.Manager1";

type Messages<'a> = Vec<(&'a str, Vec<(&'a str, Variant<'a>)>)>;
type Options<'a> = HashMap<&'a str, Variant<'a>>;

async fn connect(daemon: &Daemon) -> zbus::Connection {
    let address = daemon.bus_address();
    zbus::connection::Builder::address(address.as_str()).build().await.unwrap()
}

async fn still_well(daemon: &mut Daemon) {
    assert!(daemon.runs(), "the daemon has ended");
    let client = daemon.dbus().await;
    let events = collect(client.generate(ask("all is well")).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "all is well");
}

/// A name and a sentence of an error; the bus cuts off who sends it 32 MiB.
fn error(reply: zbus::Result<zbus::Message>) -> (String, String) {
    match reply {
        Err(zbus::Error::MethodError(name, text, _)) => {
            (name.to_string(), text.unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn errors_quote_no_more_than_a_bus_carries() {
    let mut daemon = Builder::sim()
        .set("sim.tokens_per_s", "10000.0")
        .set("limits.prompt_bytes", "8_000_000")
        .start();
    let bus = connect(&daemon).await;
    let long = "\u{7}".repeat(7 << 20);
    let none = Options::new;
    let hello = || vec![("user", vec![("text", Variant::from("hello"))])];
    let calls: [(Messages<'_>, Options<'_>); 5] = [
        (vec![(&long, vec![])], none()),
        (vec![("user", vec![(&long, Variant::from(""))])], none()),
        (hello(), Options::from([(long.as_str(), Variant::from(1_u32))])),
        (hello(), Options::from([("priority", Variant::from(long.as_str()))])),
        (hello(), Options::from([("session", Variant::from(long.as_str()))])),
    ];
    for (number, body) in calls.iter().enumerate() {
        let reply = bus.call_method(Some(NAME), PATH, Some(MANAGER), "Generate", body).await;
        let (name, text) = error(reply);
        assert!(name.starts_with("org.nestd.Error."), "call {number}: {name}");
        assert!(text.len() < 4096, "call {number}: {} bytes", text.len());
    }
    still_well(&mut daemon).await;
}

/// The open file is the client's, too, and so are its flags. Each such pipe once took a thread of the daemon.
#[tokio::test]
async fn pipes_that_block_hold_up_nobody() {
    let pipes = std::thread::available_parallelism().unwrap().get().min(32) + 1;
    let mut daemon = Builder::sim()
        .set("sim.tokens_per_s", "20.0")
        .set("limits.parallel_requests", &(pipes + 1).to_string())
        .set("quotas.parallel_requests", "0")
        .set("quotas.queued_requests", "0")
        .start();
    let words = "word ".repeat(60);
    let client = Dbus::connect(&Bus::Address(daemon.bus_address())).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..pipes {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let events = client.generate_to_fd(writer.as_fd(), ask(words.clone())).await.unwrap();
        // The daemon has written, and found room.
        let mut first = [0];
        let (reader, first) = tokio::task::spawn_blocking(move || {
            reader.read_exact(&mut first).unwrap();
            (reader, first)
        })
        .await
        .unwrap();
        assert_eq!(&first, b"w");
        // It is full from now on, and may block.
        let flags = |writer: &PipeWriter, flags| fcntl(writer, FcntlArg::F_SETFL(flags)).unwrap();
        flags(&writer, OFlag::O_NONBLOCK);
        let filled = writer.write_all("-".repeat(1 << 20).as_bytes()).unwrap_err();
        assert_eq!(filled.kind(), std::io::ErrorKind::WouldBlock);
        flags(&writer, OFlag::empty());
        drop(writer);
        held.push((reader, events));
    }
    still_well(&mut daemon).await;
    for (mut reader, events) in held {
        let all = tokio::task::spawn_blocking(move || {
            let mut all = String::from("w");
            reader.read_to_string(&mut all).unwrap();
            all
        });
        collect(events).await.unwrap();
        assert_eq!(all.await.unwrap().replace('-', ""), words);
    }
}

/// The ids of the sessions that have an object.
async fn sessions(bus: &zbus::Connection) -> Vec<String> {
    let path = format!("{PATH}/session");
    let interface = Some("org.freedesktop.DBus.Introspectable");
    let reply = bus.call_method(Some(NAME), path.as_str(), interface, "Introspect", &()).await;
    let Ok(reply) = reply else { return Vec::new() };
    let xml: String = reply.body().deserialize().unwrap();
    let nodes = xml.split("<node name=\"").skip(1);
    nodes.map(|node| node.split('"').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn sessions_of_callers_that_leave_at_once_leave_nothing() {
    let daemon =
        Builder::sim().set("sessions.per_user", "1000").set("sessions.total", "1000").start();
    let bus = connect(&daemon).await;
    for number in 0..300 {
        let caller = connect(&daemon).await;
        let call = zbus::Message::method_call(PATH, "CreateSession")
            .destination(NAME)
            .interface(MANAGER)
            .build(&(Messages::new(), Options::new()))
            .unwrap();
        caller.send(&call).await.unwrap();
        // As far as the daemon gets in a time that differs.
        tokio::time::sleep(std::time::Duration::from_micros(number * 20)).await;
        caller.close().await.unwrap();
    }
    let began = std::time::Instant::now();
    loop {
        let left = sessions(&bus).await;
        if left.is_empty() {
            break;
        }
        assert!(began.elapsed().as_secs() < 20, "objects without a session: {left:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(daemon.log().contains("session made"), "none was made: {}", daemon.log());
}

#[tokio::test]
async fn a_body_that_no_call_has_is_refused_unread() {
    let mut daemon = Builder::sim().start();
    let bus = connect(&daemon).await;
    let long = "x".repeat(2 << 20);
    let messages: Messages<'_> = vec![("user", vec![("text", Variant::from(long.as_str()))])];
    let body = (messages, Options::new());
    for member in ["Generate", "CreateSession", "ListModels"] {
        let reply = bus.call_method(Some(NAME), PATH, Some(MANAGER), member, &body).await;
        let (name, text) = error(reply);
        assert_eq!(name, "org.nestd.Error.InvalidArgument", "{member}: {text}");
        assert!(text.starts_with("the call's body: "), "{member}: {text}");
    }
    let properties = Some("org.freedesktop.DBus.Properties");
    let body = (MANAGER, long.as_str());
    let reply = bus.call_method(Some(NAME), PATH, properties, "Get", &body).await;
    assert_eq!(error(reply).0, "org.nestd.Error.InvalidArgument");
    // The limit is the one in force.
    daemon.change("limits.prompt_bytes", "4_000_000");
    let messages: Messages<'_> = vec![("user", vec![("text", Variant::from(long.as_str()))])];
    let body = (messages, Options::new());
    bus.call_method(Some(NAME), PATH, Some(MANAGER), "CreateSession", &body).await.unwrap();
    still_well(&mut daemon).await;
}

/// A bus cuts off who sends it a longer message than it takes, and replies tend to be longer than their calls.
#[tokio::test]
async fn a_call_as_long_as_the_bus_takes_it_ends_nothing() {
    const LONGEST: usize = 32 << 20;
    let mut daemon = Builder::sim().start();
    let bus = connect(&daemon).await;
    let owner = zbus::fdo::DBusProxy::new(&bus).await.unwrap();
    let owner = owner.get_name_owner(NAME.try_into().unwrap()).await.unwrap();
    let call = |length: usize| {
        let path = format!("/{}", "x".repeat(length));
        let call = zbus::Message::method_call(path.as_str(), "A").interface("a.b");
        let call = call.sender(bus.unique_name().unwrap()).destination(owner.clone());
        call.build(&()).unwrap()
    };
    let longest = call(LONGEST - call(8).data().len());
    assert!((LONGEST - 16..=LONGEST).contains(&longest.data().len()));
    let member = longest.header();
    let reply = bus.call_method(
        Some(owner.clone()),
        member.path().unwrap(),
        Some("a.b"),
        member.member().unwrap(),
        &(),
    );
    let refused = reply.await.unwrap_err().to_string();
    assert!(refused.contains("longer than a bus takes"), "{refused}");
    still_well(&mut daemon).await;
    assert!(daemon.log().len() < 100_000, "a log of {} bytes", daemon.log().len());
}
