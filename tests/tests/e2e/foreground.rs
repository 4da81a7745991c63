//! The app in the foreground goes first, over both APIs: who says so, for how long, and who may not.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::v1::{
    ActiveRequest, App, ErrorReason, ForegroundEvent, ForegroundLease, GenerateRequest,
    HoldForegroundRequest, Priority, RequestState, Stopping,
};
use nestd_client::{Client, Error, Events, ask};
use nestd_tests::{Builder, Daemon, program, text, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn request(words: &str, priority: Priority) -> GenerateRequest {
    GenerateRequest { priority: priority.into(), ..ask(words) }
}

pub fn of_connection(name: &str) -> HoldForegroundRequest {
    let app = App { connection: name.into(), ..App::default() };
    HoldForegroundRequest { app: Some(app), reason: "it has the focus".into() }
}

/// What the daemon calls a client's connection, as it shows to whoever looks.
pub async fn connection(client: &Client) -> String {
    let lease = client.hold_foreground(of_connection("nobody")).await.unwrap();
    let holder = client.requests().await.unwrap().foreground.expect("a lease").client;
    drop(lease);
    seen(client, |lease| lease.is_none()).await;
    holder.split(' ').nth(4).expect("uid N pid N NAME").to_owned()
}

/// Waits until the lease in force is as wanted.
async fn seen(client: &Client, wanted: impl Fn(Option<&ForegroundLease>) -> bool) {
    let began = Instant::now();
    loop {
        let lease = client.requests().await.unwrap().foreground;
        if wanted(lease.as_ref()) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it stays {lease:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What those who wait were asked as and are served as, in the order of the list.
fn waiting(all: &[ActiveRequest]) -> Vec<(Priority, Priority)> {
    let waiting = all.iter().filter(|one| one.state() == RequestState::Queued);
    waiting.map(|one| (one.priority(), one.served_as())).collect()
}

/// The answers, in the order in which the daemon made them: the transports bring them in another.
async fn order(daemon: &Daemon, asked: Vec<Events>) -> Vec<String> {
    let mut answers = Vec::new();
    for events in asked {
        let events: Vec<_> = events.map(Result::unwrap).collect().await;
        let ended = format!("finished request={} ", events[0].request_id);
        daemon.wait_log(&ended).await;
        let answer: Vec<_> = events.into_iter().filter_map(|event| event.event).collect();
        answers.push((daemon.log().find(&ended), text(&answer)));
    }
    answers.sort();
    answers.into_iter().map(|(_, answer)| answer).collect()
}

fn in_force(event: Option<Result<ForegroundEvent, Error>>) -> bool {
    event.expect("an event").unwrap().in_force
}

#[tokio::test]
async fn the_app_in_the_foreground_overtakes_what_others_call_interactive() {
    let daemon = Builder::sim().set("limits.parallel_requests", "1").start();
    for (shell_on, shell) in daemon.both().await {
        let [(_, app), (_, other)] = daemon.both().await;
        for (app, other) in [(&app, &other), (&other, &app)] {
            let name = connection(app).await;
            // One at a time, behind one that runs until it is dropped.
            let mut long = request(&"word ".repeat(2000), Priority::Normal);
            long.stopping = Some(Stopping { max_tokens: 2000, ..Stopping::default() });
            let running = shell.generate(long).await.unwrap();
            until(&shell, |status| status.running_requests == 1).await;
            let mut asked = Vec::new();
            for (client, answer, priority) in [
                (other, "other", Priority::Interactive),
                (other, "normal", Priority::Normal),
                (app, "background", Priority::Background),
                (app, "first", Priority::Interactive),
            ] {
                asked.push(client.generate(request(answer, priority)).await.unwrap());
            }
            let told = shell.requests().await.unwrap();
            let [i, n, b] = [Priority::Interactive, Priority::Normal, Priority::Background];
            assert_eq!(waiting(&told.requests), [(i, i), (i, i), (n, n), (b, b)], "{shell_on}");
            assert_eq!(told.foreground, None, "{shell_on}");

            // Those who wait change at once.
            let mut lease = shell.hold_foreground(of_connection(&name)).await.unwrap();
            assert!(in_force(lease.next().await), "{shell_on}");
            for (_, watcher) in daemon.both().await {
                let told = watcher.requests().await.unwrap();
                let with = [(i, i), (i, n), (n, n), (b, b)];
                assert_eq!(waiting(&told.requests), with, "{shell_on}");
                let seen = told.foreground.expect("a lease");
                let app = seen.app.unwrap();
                assert_eq!(
                    (app.connection, seen.reason.as_str()),
                    (name.clone(), "it has the focus")
                );
                assert!(seen.client.starts_with("uid "), "{}", seen.client);
            }
            // And who comes later is served by it, too.
            asked.push(other.generate(request("later", Priority::Interactive)).await.unwrap());
            asked.push(app.generate(request("second", Priority::Interactive)).await.unwrap());
            drop(running);
            let answers = order(&daemon, asked).await;
            assert_eq!(
                answers,
                ["first", "second", "other", "normal", "later", "background"],
                "{shell_on}"
            );
            drop(lease);
            seen(&shell, |lease| lease.is_none()).await;
        }
    }
    assert!(daemon.log().contains("reason=\"it has the focus\""), "{}", daemon.log());
}

#[tokio::test]
async fn a_user_is_an_app_and_what_runs_goes_on_as_it_began() {
    let daemon = Builder::sim().start();
    let own = nix::unistd::geteuid().as_raw();
    for (name, client) in daemon.both().await {
        let of_user = |uid| HoldForegroundRequest {
            app: Some(App { uid: Some(uid), ..App::default() }),
            reason: String::new(),
        };
        let mut running = Vec::new();
        for (uid, served_as) in [(own, Priority::Interactive), (own + 1, Priority::Normal)] {
            let lease = client.hold_foreground(of_user(uid)).await.unwrap();
            let long = request(&"word ".repeat(1000), Priority::Interactive);
            running.push(client.generate(long).await.unwrap());
            let count = u32::try_from(running.len()).unwrap();
            until(&client, |status| status.running_requests == count).await;
            let all = client.requests().await.unwrap().requests;
            let newest = all.iter().max_by_key(|one| one.request_id).expect("a request");
            assert_eq!(newest.priority(), Priority::Interactive, "{name}");
            assert_eq!(newest.served_as(), served_as, "{name}");
            drop(lease);
            seen(&client, |lease| lease.is_none()).await;
        }
        // Nobody is in the foreground now.
        let all = client.requests().await.unwrap().requests;
        let mut kept: Vec<_> = all.iter().map(|one| (one.request_id, one.served_as())).collect();
        kept.sort_by_key(|(id, _)| *id);
        let kept: Vec<_> = kept.into_iter().map(|(_, served_as)| served_as).collect();
        assert_eq!(kept, [Priority::Interactive, Priority::Normal], "{name}");
        drop(running);
        until(&client, |status| status.running_requests == 0).await;
    }
}

#[tokio::test]
async fn the_newest_lease_is_in_force_and_ends_with_its_connection() {
    let daemon = Builder::sim().start();
    let watcher = daemon.grpc().await;
    let is = |name: &'static str| {
        move |lease: Option<&ForegroundLease>| {
            lease.is_some_and(|lease| lease.app.as_ref().is_some_and(|app| app.connection == name))
        }
    };
    for (name, client) in daemon.both().await {
        let mut first = client.hold_foreground(of_connection("one")).await.unwrap();
        assert!(in_force(first.next().await), "{name}");
        // The others are on both transports.
        for (_, other) in daemon.both().await {
            let mut second = other.hold_foreground(of_connection("two")).await.unwrap();
            assert!(in_force(second.next().await), "{name}");
            assert!(!in_force(first.next().await), "{name}");
            seen(&watcher, is("two")).await;
            drop(second);
            assert!(in_force(first.next().await), "{name}");
            seen(&watcher, is("one")).await;
        }
        // One that waits ends without being in force.
        let mut newest = client.hold_foreground(of_connection("three")).await.unwrap();
        assert!(in_force(newest.next().await), "{name}");
        drop(first);
        drop(client);
        seen(&watcher, is("three")).await;
        drop(newest);
        seen(&watcher, |lease| lease.is_none()).await;
    }
    // A client that leaves without a word.
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let options = HashMap::from([("connection", zbus::Variant::from("one"))]);
    let id: u64 = call(&bus, "HoldForeground", &options).await.unwrap();
    seen(&watcher, is("one")).await;
    // Nobody else can let it go.
    let other = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    for number in [id, 12_345] {
        let refused = call::<()>(&other, "ReleaseForeground", &number).await.unwrap_err();
        assert!(refused.to_string().contains("is not a lease of this caller"), "{refused}");
    }
    seen(&watcher, is("one")).await;
    bus.close().await.unwrap();
    seen(&watcher, |lease| lease.is_none()).await;
}

/// `a{sv}`
type Dict = HashMap<String, zbus::OwnedVariant>;

async fn call<T: serde::de::DeserializeOwned + zbus::Type>(
    bus: &zbus::Connection,
    method: &str,
    body: &(impl serde::Serialize + zbus::wire::DynamicType),
) -> zbus::Result<T> {
    let (name, path) = ("org.nestd.Nestd1", "/org/nestd/Nestd1");
    let reply = bus.call_method(Some(name), path, Some("org.nestd.Manager1"), method, body).await?;
    reply.body().deserialize()
}

#[tokio::test]
async fn nonsense_is_refused_and_leases_have_an_end_in_number() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        let of = |app: App, reason: &str| HoldForegroundRequest {
            app: Some(app),
            reason: reason.into(),
        };
        let known = || App { uid: Some(1), ..App::default() };
        let long = "x".repeat(257);
        for (wrong, field) in [
            (HoldForegroundRequest::default(), "app"),
            (of(App::default(), "nobody"), "app"),
            (of(App { unit: long.clone(), ..App::default() }, ""), "unit"),
            (of(App { connection: "a\nb".into(), ..known() }, ""), "connection"),
            (of(App { certificate: long.clone(), ..known() }, ""), "certificate"),
            (of(known(), &long), "reason"),
            (of(known(), "two\nlines"), "reason"),
        ] {
            let refused = client.hold_foreground(wrong).await.err().expect("a refusal");
            assert_eq!(refused.reason(), Some(ErrorReason::InvalidArgument), "{name}: {refused}");
            assert!(refused.to_string().starts_with(field), "{name}: {refused}");
        }
        let mut held = Vec::new();
        let refused = loop {
            match client.hold_foreground(of(known(), "")).await {
                Ok(one) => held.push(one),
                Err(error) => break error,
            }
            assert!(held.len() < 20, "{name}");
        };
        assert_eq!((held.len(), refused.reason()), (8, Some(ErrorReason::Busy)), "{name}");
        drop(held);
        seen(&client, |lease| lease.is_none()).await;
    }
    let bus =
        zbus::connection::Builder::address(daemon.bus_address().as_str()).build().await.unwrap();
    for (key, value) in [("uid", zbus::Variant::from("root")), ("pid", 7_u32.into())] {
        let options = HashMap::from([(key, value)]);
        let refused = call::<u64>(&bus, "HoldForeground", &options).await.unwrap_err();
        assert!(refused.to_string().contains("InvalidArgument"), "{refused}");
        assert!(refused.to_string().contains(key), "{refused}");
    }
}

#[tokio::test]
async fn the_bus_is_told_who_is_in_the_foreground() {
    let daemon = Builder::sim().start();
    let bus =
        zbus::connection::Builder::address(daemon.bus_address().as_str()).build().await.unwrap();
    let (name, path) = ("org.nestd.Nestd1", "/org/nestd/Nestd1");
    let object = zbus::Proxy::new(&bus, name, path, "org.nestd.Manager1").await.unwrap();
    let mut changes = object.receive_property_changed::<Dict>("Foreground").await;
    assert!(changes.next().await.unwrap().get().await.unwrap().is_empty());
    let client = daemon.grpc().await;
    let mut lease = client
        .hold_foreground(HoldForegroundRequest {
            app: Some(App { uid: Some(7), unit: "a.service".into(), ..App::default() }),
            reason: "why".into(),
        })
        .await
        .unwrap();
    let id = lease.next().await.unwrap().unwrap().id;
    let mut told = changes.next().await.unwrap().get().await.unwrap();
    let mut keys: Vec<_> = told.keys().cloned().collect();
    keys.sort();
    assert_eq!(keys, ["client", "id", "reason", "uid", "unit"]);
    assert_eq!(u64::try_from(told.remove("id").unwrap()).unwrap(), id);
    assert_eq!(u32::try_from(told.remove("uid").unwrap()).unwrap(), 7);
    drop(lease);
    assert!(changes.next().await.unwrap().get().await.unwrap().is_empty());
}

/// `nestctl foreground` with these arguments, and what it prints.
fn holds(daemon: &Daemon, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(program("nestctl"))
        .args(arguments)
        .env("NESTCTL_BUS", daemon.bus_address())
        .env("NESTCTL_SOCKET", daemon.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[tokio::test]
async fn nestctl_holds_it_until_it_is_ended() {
    let daemon = Builder::sim().start();
    let watcher = daemon.grpc().await;
    let mut id = 0;
    for transport in ["--grpc", "--dbus"] {
        let of_unit = [transport, "foreground", "--unit", "a.service", "--reason", "the focus"];
        let (mut older, mut told) = holds(&daemon, &of_unit);
        id += 1;
        let now = format!("lease {id} is in force; Ctrl-C ends it");
        assert_eq!(told.next().unwrap().unwrap(), now);
        let of_user = [transport, "--json", "foreground", "--uid", "7", "--reason", "a call"];
        let (mut newer, mut objects) = holds(&daemon, &of_user);
        id += 1;
        let object: Value = serde_json::from_str(&objects.next().unwrap().unwrap()).unwrap();
        assert_eq!(object, serde_json::json!({ "id": id, "in_force": true }));
        let behind = format!("lease {} waits behind a newer one; Ctrl-C ends it", id - 1);
        assert_eq!(told.next().unwrap().unwrap(), behind);
        let (mut top, lines) = holds(&daemon, &[transport, "top", "--once"]);
        let lines: Vec<String> = lines.map(Result::unwrap).collect();
        assert!(top.wait().unwrap().success());
        let line = lines.iter().find(|line| line.starts_with("foreground uid 7: a call (uid "));
        assert!(line.is_some(), "{lines:#?}");

        kill(Pid::from_raw(newer.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        assert_eq!(newer.wait().unwrap().code(), Some(130));
        assert_eq!(told.next().unwrap().unwrap(), now);
        older.kill().unwrap();
        older.wait().unwrap();
        seen(&watcher, |lease| lease.is_none()).await;

        for (wrong, code) in [
            (&["--reason", "nobody"][..], 2),
            (&["--uid", "7"], 2),
            (&["--uid", "root", "--reason", "a name"], 2),
            (&["--unit", "", "--reason", "nothing"], 2),
            (&["--unit", "a\nb", "--reason", "two lines"], 4),
        ] {
            let (mut child, _) = holds(&daemon, &[&[transport, "foreground"], wrong].concat());
            assert_eq!(child.wait().unwrap().code(), Some(code), "{wrong:?}");
        }
    }
}

#[tokio::test]
async fn a_lease_that_nobody_waits_for_any_more_ends() {
    let daemon = Builder::sim().start();
    for (_, client) in daemon.both().await {
        for number in 0..50 {
            // Given up somewhere on the way.
            let hold = client.hold_foreground(of_connection("nobody"));
            let _ = tokio::time::timeout(Duration::from_micros(number * 40), hold).await;
        }
        seen(&client, |lease| lease.is_none()).await;
    }
}
