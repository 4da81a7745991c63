//! A request's number is in everything that is said about it: events, errors, the object on the bus, and
//! the log.

use std::collections::HashMap;

use futures::StreamExt;
use nestd_client::v1::generate_event::Event;
use nestd_client::{Error, ask};
use nestd_proto::dbus::{NAME, PATH};
use nestd_tests::{Builder, Daemon};
use nix::sys::signal::Signal;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

/// Every line of the log about request `id`, and no line that is about one without saying which.
fn lines(daemon: &Daemon, id: u64) -> Vec<String> {
    let log = daemon.log();
    let about = ["accepted", "began", "finished", "failed", "loaded", "cannot be told", "was gone"];
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    for line in log.lines().filter(|line| line.contains("nestd") || !line.contains("::")) {
        if has(line, &about) && !line.contains("metrics") {
            assert!(line.contains("request="), "a line without a number: {line}");
        }
        assert!(!line.contains("/request/") || line.contains("request="), "{line}");
    }
    let id = format!("request={id} ");
    log.lines().filter(|line| format!("{line} ").contains(&id)).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_event_and_every_line_has_the_number() {
    let daemon = Builder::sim().set("log.level", "'warn,nestd=debug'").start();
    let mut ids = Vec::new();
    for (name, client) in daemon.both().await {
        let events: Vec<_> = client.generate(ask("one two")).await.unwrap().collect().await;
        let events: Vec<_> = events.into_iter().map(Result::unwrap).collect();
        let id = events[0].request_id;
        assert!(id > 0 && events.iter().all(|event| event.request_id == id), "{name}: {events:?}");
        daemon.wait_log(&format!("finished request={id} ")).await;
        let told = lines(&daemon, id);
        for word in ["accepted", "began", "finished"] {
            let found = told.iter().filter(|line| line.contains(word)).count();
            assert_eq!(found, 1, "{word}: {told:#?}");
        }
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_request_that_fails_says_which_it_was() {
    let mut daemon = Builder::sim().set("limits.drain_ms", "100").start();
    let mut running = Vec::new();
    for (name, client) in daemon.both().await {
        let mut events = client.generate(ask("word ".repeat(500))).await.unwrap();
        let id = loop {
            let event = events.next().await.unwrap().unwrap();
            if matches!(event.event, Some(Event::Text(_))) {
                break event.request_id;
            }
        };
        running.push((name, id, events, client));
    }
    daemon.signal(Signal::SIGTERM);
    for (name, id, mut events, _client) in running {
        let error = loop {
            if let Err(error) = events.next().await.unwrap() {
                break error;
            }
        };
        let Error::Failed(failure) = error else { panic!("{name}: {error}") };
        assert_eq!(failure.details["request_id"], id.to_string(), "{name}");
        daemon.wait_log(&format!("failed request={id} ")).await;
    }
    assert!(daemon.wait().success());
}

/// Without the client library: the object's property and its outcome, as firmware reads them.
#[tokio::test]
async fn the_object_on_the_bus_has_the_number() {
    let daemon = Builder::sim().start();
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let messages = vec![("user", vec![("text", Variant::from("one two"))])];
    let options: HashMap<&str, Variant<'_>> = HashMap::new();
    let reply = bus
        .call_method(Some(NAME), PATH, Some("org.nestd.Manager1"), "Generate", &(messages, options))
        .await
        .unwrap();
    let path: OwnedObjectPath = reply.body().deserialize().unwrap();
    let id = u64::try_from(property(&bus, &path, "Id").await).unwrap();
    let outcome = loop {
        let outcome = property(&bus, &path, "Outcome").await;
        let outcome: HashMap<String, OwnedVariant> = outcome.try_into().unwrap();
        if !outcome.is_empty() {
            break outcome;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(outcome["request_id"], OwnedVariant::from(id));
    daemon.wait_log(&format!("finished request={id} ")).await;
}

async fn property(bus: &Connection, path: &OwnedObjectPath, name: &str) -> OwnedVariant {
    let properties = "org.freedesktop.DBus.Properties";
    let reply = bus
        .call_method(Some(NAME), path, Some(properties), "Get", &("org.nestd.Request1", name))
        .await
        .unwrap();
    reply.body().deserialize().unwrap()
}
