//! The daemon as a process: settings, readiness, reload, stop, and what ends it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::v1::{ErrorReason, State, generate_event::Event};
use nestd_client::{Client, ask};
use nestd_tests::{Builder, Daemon, collect, finished, program, text, until};
use nix::sys::signal::Signal;

fn check_config(settings: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nestd.toml");
    std::fs::write(&file, settings).unwrap();
    Command::new(program("nestd"))
        .args(["--check-config", "--config"])
        .arg(file)
        .env("NESTD_LOG__LEVEL", "info")
        .output()
        .unwrap()
}

#[test]
fn check_config_tells_all_problems() {
    let output = check_config("[limits]\nmax_tokens = 100\ndefault_max_tokens = 50\n");
    assert!(output.status.success(), "{output:?}");
    let output = check_config("[limits]\nmax_tokens = 0\nmax_token = 1\n[dbus]\nbus = 'x y'\n");
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8(output.stderr).unwrap();
    for key in ["limits.max_tokens", "limits.max_token:", "dbus.bus", "nestd.toml"] {
        assert!(told.contains(key), "{key} is not in\n{told}");
    }
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn the_defaults_that_are_printed_are_the_shipped_file() {
    let output = Command::new(program("nestd")).arg("--print-defaults").output().unwrap();
    let shipped = std::fs::read(nestd_tests::project().join("systemd/nestd.toml")).unwrap();
    assert_eq!(output.stdout, shipped);
}

#[tokio::test]
async fn ready_comes_when_both_transports_answer() {
    let mut daemon = Builder::sim().set("sim.load_ms", "2000").launch();
    let lines = daemon.wait_for("READY=1");
    assert!(lines.iter().any(|line| line.starts_with("STATUS=loading sim")), "{lines:?}");
    // At once, without trying again: both answer, though the model is still being loaded.
    for (name, client) in daemon.both().await {
        assert_eq!(client.status().await.expect(name).state(), State::Loading, "{name}");
    }
    daemon.wait_for("STATUS=ready: sim at large");
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.signal(Signal::SIGTERM);
    let lines = daemon.wait_for("STOPPING=1");
    assert!(!lines.iter().any(|line| line.starts_with("READY")), "{lines:?}");
    assert!(daemon.wait().success());
    assert!(!daemon.socket().exists());
}

#[tokio::test]
async fn a_manager_that_reads_no_notices_stops_nothing() {
    // Nobody reads the notification socket after READY; its queue is full after a few status lines.
    let mut daemon = Builder::sim().set("sim.load_ms", "300").start();
    let client = daemon.grpc().await;
    for size in ["small", "large"].repeat(5) {
        until(&client, |status| status.state() == State::Ready).await;
        client.load("", size).await.unwrap().for_each(|_| async {}).await;
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[tokio::test]
async fn stopping_lets_a_running_answer_end() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Builder::sim().start();
        let [(_, grpc), (_, dbus)] = daemon.both().await;
        let prompt = "word ".repeat(40);
        let mut answers = Vec::new();
        for client in [&grpc, &dbus] {
            let mut events = client.generate(ask(prompt.clone())).await.unwrap();
            while !matches!(events.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
            answers.push(events);
        }
        daemon.signal(signal);
        daemon.wait_for("STOPPING=1");
        let refused = dbus.generate(ask("one more")).await.err().unwrap();
        assert_eq!(refused.reason(), Some(ErrorReason::ShuttingDown), "{refused}");
        for events in answers {
            let events = collect(events).await.unwrap();
            assert_eq!(finished(&events).usage.unwrap().completion_tokens, 40);
        }
        assert!(daemon.wait().success());
    }
}

#[tokio::test]
async fn stopping_has_a_deadline() {
    let mut daemon = Builder::sim().set("limits.drain_ms", "300").start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    let mut answers = Vec::new();
    for client in [&grpc, &dbus] {
        answers.push(client.generate(ask("word ".repeat(500))).await.unwrap());
    }
    until(&grpc, |status| status.running_requests == 2).await;
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    for events in answers {
        let ended = collect(events).await.unwrap_err();
        assert_eq!(ended.reason(), Some(ErrorReason::ShuttingDown), "{ended}");
    }
    assert!(daemon.wait().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// What systemd waits for in a reload: its begin with the time, and READY after it.
fn reload_was_told(daemon: &mut Daemon) {
    let told = daemon.notifications("READY=1");
    let (_ready, before) = told.split_last().unwrap();
    let mut reloading = before.iter().filter(|lines| lines.contains(&"RELOADING=1".into()));
    let reloading = reloading.next().unwrap_or_else(|| panic!("no RELOADING=1: {told:?}"));
    let time = reloading.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "in one: {told:?}");
}

#[tokio::test]
async fn a_reload_applies_good_settings_and_keeps_the_old_for_bad_ones() {
    let mut daemon = Builder::sim().start();
    let client = daemon.grpc().await;
    let file = daemon.folder().join("nestd.toml");
    let settings = std::fs::read_to_string(&file).unwrap();
    let running = client.generate(ask("word ".repeat(60))).await.unwrap();

    std::fs::write(&file, format!("{settings}\nlimits.max_tokens = 777\n")).unwrap();
    daemon.signal(Signal::SIGHUP);
    until(&client, |status| status.limits.unwrap().max_tokens == 777).await;
    reload_was_told(&mut daemon);

    std::fs::write(&file, format!("{settings}\nlimits.max_tokens = 0\nlimits.nothing = 1\n"))
        .unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_log("limits.nothing").await;
    reload_was_told(&mut daemon);
    assert!(daemon.log().contains("limits.max_tokens"), "{}", daemon.log());
    assert_eq!(client.status().await.unwrap().limits.unwrap().max_tokens, 777);

    std::fs::write(&file, settings.replace("nestd.sock", "elsewhere.sock")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_log("takes effect with the next start only").await;
    assert!(daemon.socket().exists());
    let events = collect(running).await.unwrap();
    assert_eq!(text(&events), "word ".repeat(60), "a reload disturbs no request");
}

#[tokio::test]
async fn one_socket_and_one_name_have_one_daemon() {
    let daemon = Builder::sim().start();
    let output = daemon.second();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("another daemon serves this socket"), "{told}");
    let client = daemon.grpc().await;
    assert_eq!(client.status().await.unwrap().state(), State::Ready, "the first one goes on");
}

#[tokio::test]
async fn a_socket_that_nobody_serves_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("nestd.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    let setting = format!("'{}'", stale.display());
    let _daemon = Builder::sim().set("grpc.socket", &setting).without_bus().start();
    let client = Client::grpc(&stale).await.unwrap();
    until(&client, |status| status.state() == State::Ready).await;
}

#[tokio::test]
async fn the_socket_has_the_group_that_is_set() {
    let own = nix::unistd::getegid();
    let group = nix::unistd::Group::from_gid(own).unwrap().unwrap().name;
    // Another one can be given by root only.
    let other = nix::unistd::Group::from_name("daemon").unwrap();
    let root = nix::unistd::geteuid().is_root();
    let (name, gid) = match other {
        Some(other) if root => (other.name, other.gid),
        _ => (group, own),
    };
    let daemon = Builder::sim()
        .set("grpc.socket_group", &format!("'{name}'"))
        .set("grpc.socket_mode", "'0600'")
        .start();
    let metadata = std::fs::metadata(daemon.socket()).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), gid.as_raw());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);

    let mut refused = Builder::sim().set("grpc.socket_group", "'no-such-group'").launch();
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains("no-such-group"), "{}", refused.log());
}

#[test]
fn a_configuration_that_was_named_must_be_there() {
    let output = Command::new(program("nestd"))
        .args(["--check-config", "--config", "/nonexistent/nestd.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("/nonexistent/nestd.toml"), "{told}");
}

#[tokio::test]
async fn the_daemon_ends_with_its_bus() {
    let mut daemon = Builder::sim().start();
    daemon.bus().kill();
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("D-Bus"), "{}", daemon.log());
}
