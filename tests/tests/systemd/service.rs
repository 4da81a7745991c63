//! Starting, answering, reading the settings again, stopping.

use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::ask;
use nestd_client::v1::State;
use nestd_client::v1::generate_event::Event;
use nestd_tests::{collect, finished, text, until};

use crate::machine::Machine;

/// The simulator, at a speed at which an answer takes a while.
pub const SIM: &str = "model.name = 'sim'\nsim.enabled = true\nsim.tokens_per_s = 20.0\n";

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn the_socket_starts_the_daemon_and_both_apis_answer() {
    let machine = Machine::with_nestd("");
    let answer = machine.run(&["nestctl", "ask", "Turn on the lights in the kitchen"]);
    assert!(!answer.trim().is_empty());
    assert_eq!(machine.state(), "active");
    // The same question on the bus has the same answer.
    let bus = machine.run(&["nestctl", "--dbus", "ask", "Turn on the lights in the kitchen"]);
    assert_eq!(bus, answer);
    let metrics = machine.path("/run/nestd/metrics.sock");
    let metrics = std::process::Command::new("python3")
        .args([
            "-c",
            "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
            s.sendall(b'GET /metrics HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n'); \
            print(b''.join(iter(lambda: s.recv(65536), b'')).decode())",
        ])
        .arg(metrics)
        .output()
        .unwrap();
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    assert!(metrics.contains("nestd_requests_total"), "{metrics}");
    // Stopped, it is started again by the next call: systemd has kept the sockets.
    machine.run(&["systemctl", "stop", "nestd"]);
    assert_eq!(machine.run(&["nestctl", "ask", "Turn on the lights in the kitchen"]), answer);
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn a_call_on_the_bus_starts_the_daemon() {
    let mut machine = Machine::with_nestd("");
    let status = machine.run(&["nestctl", "--dbus", "--json", "status"]);
    assert!(status.contains("nestd-demo"), "{status}");
    // The bus has the call's answer a moment before systemd has READY.
    machine.until("active", |machine| (machine.state() == "active").then_some(()));
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn started_means_that_both_apis_answer() {
    // The model takes three seconds; the start does not wait for it.
    let machine = Machine::with_nestd(&format!("{SIM}sim.load_ms = 3000\n"));
    machine.start();
    let both = [machine.grpc().await, machine.dbus().await];
    for client in &both {
        assert_eq!(client.status().await.unwrap().state(), State::Loading);
    }
    for client in both {
        let answer = collect(client.generate(ask("one two")).await.unwrap()).await.unwrap();
        assert_eq!(text(&answer), "one two");
    }
    assert_eq!(machine.property("StatusText"), "ready: sim at large");
    assert_eq!(machine.property("NotifyAccess"), "main");
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn a_reload_applies_good_settings_and_refuses_bad_ones() {
    let machine = Machine::with_nestd(SIM);
    machine.start();
    let client = machine.grpc().await;
    let pid = machine.property("MainPID");
    let most = async |wanted: u32| {
        let mut request = ask("word ".repeat(100));
        request.stopping.get_or_insert_default().max_tokens = wanted;
        let mut events = client.generate(request).await?;
        events.next().await.unwrap().map(|_| ())
    };
    most(100).await.unwrap();
    let settings = "limits.max_tokens = 50\nlimits.default_max_tokens = 50\n";
    machine.write("/etc/nestd/nestd.toml.d/10-limits.toml", settings);
    machine.run(&["systemctl", "reload", "nestd"]);
    // It is done when systemd says so.
    most(100).await.unwrap_err();
    most(50).await.unwrap();
    machine.write("/etc/nestd/nestd.toml.d/20-wrong.toml", "limits.max_token = 5\n");
    let output = machine.output(&["systemctl", "reload", "nestd"]);
    assert!(!output.status.success(), "{output:?}");
    assert!(machine.journal().contains("limits.max_token:"), "{}", machine.journal());
    most(50).await.unwrap();
    assert_eq!((machine.state(), machine.property("MainPID")), ("active".into(), pid));
    // A start with them fails for good.
    machine.run(&["systemctl", "stop", "nestd"]);
    assert!(!machine.output(&["systemctl", "start", "nestd"]).status.success());
    assert_eq!(machine.property("ExecMainStatus"), "78");
    assert_eq!(machine.property("NRestarts"), "0");
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn a_stop_lets_answers_end_and_keeps_to_its_time() {
    let machine = Machine::with_nestd(SIM);
    let watched = "[Service]\nWatchdogSec=2\n";
    machine.write("/etc/systemd/system/nestd.service.d/10-watchdog.conf", watched);
    machine.run(&["systemctl", "daemon-reload"]);
    machine.start();
    let client = machine.grpc().await;
    // Eight seconds of answer, longer than the watchdog's time: it ends by itself.
    let words = "word ".repeat(160).trim_end().to_owned();
    let answer = client.generate(ask(words.clone())).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let answer = tokio::spawn(collect(answer));
    machine.run(&["systemctl", "stop", "nestd"]);
    assert_eq!(text(&answer.await.unwrap().unwrap()), words);
    assert_eq!(machine.property("Result"), "success");

    // A minute of answer: it is ended after limits.drain_ms, with its reason.
    machine.write("/etc/nestd/nestd.toml.d/10-drain.toml", "limits.drain_ms = 1000\n");
    machine.start();
    let client = machine.grpc().await;
    let answer = client.generate(ask("word ".repeat(1200))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let answer = tokio::spawn(collect(answer));
    let began = Instant::now();
    machine.run(&["systemctl", "stop", "nestd"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let answer = answer.await.unwrap();
    let told = answer.unwrap_err();
    assert_eq!(told.reason(), Some(nestd_client::v1::ErrorReason::ShuttingDown), "{told:?}");
    assert_eq!(machine.property("Result"), "success");
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn the_unit_is_locked_down() {
    let machine = Machine::with_nestd("");
    machine.run(&["systemd-analyze", "--man=no", "verify", "nestd.service"]);
    machine.run(&["systemd-analyze", "security", "--threshold=20", "nestd.service"]);
    machine.start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.daemon())).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    assert_eq!((line("Seccomp:"), line("NoNewPrivs:")), ("2".into(), "1".into()));
    assert_eq!(line("CapBnd:").trim_matches('0'), "");
    // What it needs of the system is there all the same.
    let governor = machine.run(&["nestctl", "governor"]);
    assert!(governor.contains("memory"), "{governor}");
    let events = collect(machine.grpc().await.generate(ask("hello")).await.unwrap()).await.unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Text(_))));
    assert!(finished(&events).usage.is_some());
}
