//! Who may do what: other users on the socket and the bus, polkit, and the log that holds no text.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nestd_client::v1::State;
use nestd_client::{Error, ask};
use nestd_tests::{Builder, Daemon, Mock, User, collect, until};
use zbus::interface;

const TRANSPORTS: [&str; 2] = ["--grpc", "--dbus"];

/// What changes what others share, as `nestctl` does it.
const CONTROLS: [&[&str]; 4] = [
    &["load"],
    &["unload"],
    &["size", "small"],
    &["foreground", "--uid", "1", "--reason", "it has the focus"],
];

fn open() -> Builder {
    let builder = Builder::sim().set("sim.tokens_per_s", "2000.0").set("governor.enabled", "true");
    builder.for_any_user().on_system_bus()
}

#[tokio::test]
async fn other_users_watch_and_ask_but_control_nothing() {
    let daemon = open().start();
    let client = daemon.grpc().await;
    until(&client, |status| status.state() == State::Ready).await;
    let Some(nobody) = User::nobody(&daemon) else { return };
    let mut refused = 0;
    for transport in TRANSPORTS {
        for allowed in
            [&["status"][..], &["models"], &["governor"], &["count-tokens", "a"], &["ask", "a b"]]
        {
            nobody.may(&daemon, &[&[transport], allowed].concat());
        }
        for control in CONTROLS {
            let told = nobody.may_not(&daemon, &[&[transport], control].concat());
            assert!(told.contains("is for access.control (0) in nestd's settings"), "{told}");
            let polkit = told.contains("polkit, which could allow org.nestd.");
            assert_eq!(polkit, transport == "--dbus", "{told}");
            refused += 1;
            // Once for each call, with the client and the method.
            let lines: Vec<_> = daemon
                .log()
                .lines()
                .filter(|line| line.contains("refused"))
                .map(str::to_owned)
                .collect();
            assert_eq!(lines.len(), refused, "{lines:#?}");
            assert!(lines[refused - 1].contains(&format!("uid {}", nobody.uid)), "{lines:#?}");
            assert!(lines[refused - 1].contains("method="), "{lines:#?}");
        }
    }
    let status = client.status().await.unwrap();
    // The governor may take another size where the machine is short of memory; nobody has pinned one.
    let pin = client.governor().await.unwrap().pin;
    assert_eq!((status.state(), pin.as_str()), (State::Ready, ""));
}

#[tokio::test]
async fn the_table_lets_users_and_groups_in_from_the_next_call_on() {
    let daemon = open().start();
    let Some(nobody) = User::nobody(&daemon) else { return };
    let group = nix::unistd::Group::from_name("daemon").unwrap().expect("the system has it");
    let member = nobody.in_group(&group.gid.to_string());
    let pin = |transport| [transport, "size", "small"];
    for transport in TRANSPORTS {
        for entries in ["['nobody']", &format!("['root', '{}']", nobody.uid)] {
            daemon.change("access.control", entries);
            nobody.may(&daemon, &pin(transport));
        }
        for entries in ["['@daemon']", &format!("['@{}']", group.gid)] {
            daemon.change("access.control", entries);
            member.may(&daemon, &pin(transport));
            let told = nobody.may_not(&daemon, &pin(transport));
            assert!(told.contains("access.control (@"), "{told}");
        }
        daemon.change("access.control", "['no-such-user', '@no-such-group', 'cert:nobody']");
        let _ = member.may_not(&daemon, &pin(transport));

        daemon.change("access.use", "['@daemon']");
        member.may(&daemon, &[transport, "ask", "a"]);
        let ended = daemon.grpc().await.requests().await.unwrap().ended_requests;
        let told = nobody.may_not(&daemon, &[transport, "ask", "a"]);
        assert!(told.contains("access.use (@daemon) or access.control"), "{told}");
        let counted = daemon.grpc().await.requests().await.unwrap().ended_requests;
        assert_eq!(counted, ended + 1, "{transport}");
        nobody.may(&daemon, &[transport, "status"]);
        daemon.change("access.use", "['*']");
    }
    for entry in ["no-such-user", "@no-such-group"] {
        daemon.wait_log(&format!("entry={entry}")).await;
    }
    // A higher class includes the lower ones; without any, nothing is told.
    daemon.change("access.observe", "[]");
    daemon.change("access.use", "[]");
    daemon.change("access.control", "['@daemon']");
    for transport in TRANSPORTS {
        for command in ["status", "models", "governor"] {
            member.may(&daemon, &[transport, command]);
            let told = nobody.may_not(&daemon, &[transport, command]);
            assert!(told.contains("access.observe (nobody)"), "{told}");
        }
    }
    // A list that is wrong changes nothing.
    let file = daemon.folder().join("nestd.toml.d/999.toml");
    std::fs::write(&file, "access.control = ['nobody', 'a b']").unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.wait_log("access.control: \"a b\" is not a user's name").await;
    let _ = nobody.may_not(&daemon, &["--grpc", "unload"]);
}

#[tokio::test]
async fn root_needs_no_entry() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can call as root");
        return;
    }
    let daemon = Builder::sim()
        .set("access.observe", "[]")
        .set("access.use", "[]")
        .set("access.control", "[]")
        .start();
    for (name, client) in daemon.both().await {
        client.status().await.expect(name);
        client.unload().await.expect(name);
    }
}

const POLKIT: &str = "org.freedesktop.PolicyKit1";

async fn polkit(daemon: &Daemon) -> Mock {
    Mock::start(&daemon.bus_address(), "polkitd", POLKIT).await
}

async fn tell(mock: &Mock, method: &str, body: &(impl serde::Serialize + zbus::wire::DynamicType)) {
    let path = "/org/freedesktop/PolicyKit1/Authority";
    mock.call(path, "org.freedesktop.DBus.Mock", method, body).await;
}

#[tokio::test]
async fn polkit_allows_on_the_bus_what_the_table_does_not() {
    let daemon = open().start();
    let Some(nobody) = User::nobody(&daemon) else { return };
    let mock = polkit(&daemon).await;
    let told = nobody.may_not(&daemon, &["--dbus", "unload"]);
    assert!(told.ends_with("and polkit does not allow org.nestd.load-model"), "{told}");

    tell(&mock, "SetAllowed", &(["org.nestd.load-model"],)).await;
    nobody.may(&daemon, &["--dbus", "unload"]);
    nobody.may(&daemon, &["--dbus", "load"]);
    daemon.wait_log("polkit allows it").await;
    let told = nobody.may_not(&daemon, &["--dbus", "size", "small"]);
    assert!(told.ends_with("and polkit does not allow org.nestd.pin-size"), "{told}");
    tell(&mock, "SetAllowed", &(["org.nestd.pin-size"],)).await;
    nobody.may(&daemon, &["--dbus", "size", "small"]);
    // It has no say on the socket, nor in what it has no action for.
    tell(&mock, "AllowUnknown", &(true,)).await;
    let told = nobody.may_not(&daemon, &["--grpc", "unload"]);
    assert!(!told.contains("polkit"), "{told}");
    daemon.change("access.use", "[]");
    let told = nobody.may_not(&daemon, &["--dbus", "ask", "a"]);
    assert!(!told.contains("polkit"), "{told}");

    tell(&mock, "SimulateHang", &(true,)).await;
    let told = nobody.may_not(&daemon, &["--dbus", "unload"]);
    assert!(told.contains("polkit cannot be asked: no answer in 5 s"), "{told}");
    // Who is in the table is not kept waiting by it.
    daemon.dbus().await.unload().await.unwrap();
    drop(mock);
    let told = nobody.may_not(&daemon, &["--dbus", "load"]);
    assert!(told.contains("is not on the bus"), "{told}");
}

/// On a bus that is not the system's, anybody may have its name.
#[tokio::test]
async fn polkit_is_asked_on_the_system_bus_only() {
    let daemon = Builder::sim().for_any_user().start();
    let Some(nobody) = User::nobody(&daemon) else { return };
    let mock = polkit(&daemon).await;
    tell(&mock, "AllowUnknown", &(true,)).await;
    let told = nobody.may_not(&daemon, &["--dbus", "unload"]);
    assert!(told.ends_with("and polkit is asked on the system bus only"), "{told}");
}

/// A polkit that remembers what it was asked, and wants a person to authenticate.
#[derive(Default)]
struct Challenging {
    asked: Arc<Mutex<Vec<(String, String, u32)>>>,
}

type Subject = (String, HashMap<String, zbus::OwnedVariant>);

// The interface macro wants values.
#[allow(clippy::needless_pass_by_value)]
#[interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Challenging {
    fn check_authorization(
        &self,
        subject: Subject,
        action: String,
        details: HashMap<String, String>,
        flags: u32,
        question: String,
    ) -> (bool, bool, HashMap<String, String>) {
        assert!(details.is_empty() && !question.is_empty());
        assert_eq!(subject.0, "system-bus-name");
        let name = String::try_from(subject.1["name"].try_clone().unwrap()).unwrap();
        self.asked.lock().unwrap().push((name, action, flags));
        // A person is at hand only for who lets it be asked.
        (flags == 1, flags == 0, HashMap::default())
    }
}

// The polkit here answers while the test waits for `nestctl`.
#[tokio::test(flavor = "multi_thread")]
async fn polkit_is_asked_about_the_caller_and_a_person_only_by_leave() {
    let daemon = open().start();
    let Some(nobody) = User::nobody(&daemon) else { return };
    let challenging = Challenging::default();
    let asked = Arc::clone(&challenging.asked);
    let _polkit = zbus::connection::Builder::address(daemon.bus_address().as_str())
        .name(POLKIT)
        .serve_at("/org/freedesktop/PolicyKit1/Authority", challenging)
        .build()
        .await
        .unwrap();
    let told = nobody.may_not(&daemon, &["--dbus", "unload"]);
    assert!(
        told.ends_with("to authenticate for org.nestd.load-model, which the call does not allow")
    );
    let output = nobody.types(&daemon, &["--dbus", "unload"]);
    assert!(output.status.success(), "{output:?}");
    let asked = asked.lock().unwrap();
    let [(first, action, 0), (second, _, 1)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(action, "org.nestd.load-model");
    let name = |line: &str| line.split(' ').find(|word| word.starts_with(":1.")).map(str::to_owned);
    let log = daemon.log();
    let line = |words| log.lines().find(|line| line.contains(words)).and_then(name).unwrap();
    assert_eq!((first, second), (&line("refused"), &line("polkit allows it")));
}

#[tokio::test]
async fn no_text_is_logged() {
    // The last one names libraries that are told no text by what is done here, and has its way.
    for level in ["'trace'", "'debug,nestd=trace'", "'trace,tonic=trace,hyper_util=trace'"] {
        let daemon = Builder::sim().set("log.level", level).start();
        for (_, client) in daemon.both().await {
            let mut request = ask("xyzzy-secret plugh-secret");
            let events = client.generate(request.clone()).await.unwrap();
            let events = collect(events).await.unwrap();
            assert!(
                nestd_tests::text(&events).contains("xyzzy-secret"),
                "the simulator repeats it"
            );
            client.count_tokens(request.messages.clone()).await.unwrap();
            // What fails is told without it, too.
            request.json_schema = "{\"type\": \"plugh-secret\"".into();
            let failed = match client.generate(request).await {
                Ok(events) => collect(events).await.err(),
                Err(error) => Some(error),
            };
            assert!(matches!(failed, Some(Error::Failed(_))), "{failed:?}");
        }
        daemon.wait_log("finished").await;
        assert_eq!(daemon.log().contains("TRACE"), level.contains("hyper"), "{}", daemon.log());
        assert!(!daemon.log().contains("secret"), "{}", daemon.log());
    }
}

#[cfg(not(feature = "tcp"))]
#[test]
fn a_build_without_tcp_says_so() {
    let mut daemon = Builder::sim().set("tcp.listen", "'127.0.0.1:7878'").launch();
    assert_eq!(daemon.wait().code(), Some(78));
    assert!(daemon.log().contains("built without TCP"), "{}", daemon.log());
}
