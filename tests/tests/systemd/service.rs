//! Starting, answering, reading the settings again, stopping.

use std::os::unix::net::UnixStream;
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
    // The model takes eight seconds; the start does not wait for it. Without a governor only the API needs the bus.
    let settings = format!("{SIM}sim.load_ms = 8000\ngovernor.enabled = false\n");
    let machine = Machine::with_nestd(&settings);
    // A bus that is stuck: gRPC answers already, and the service has not started. A connection alone would show
    // nothing: it waits in systemd's socket.
    machine.shell("pkill -STOP -x dbus-daemon");
    machine.run(&["systemctl", "start", "--no-block", "nestd"]);
    let grpc = machine.grpc().await;
    assert_eq!(grpc.status().await.unwrap().state(), State::Loading);
    assert_eq!(machine.state(), "activating");
    machine.shell("pkill -CONT -x dbus-daemon");
    machine.start();
    // The name is there, and need not be waited for.
    let ping = ["/org/nestd/Nestd1", "org.freedesktop.DBus.Peer", "Ping"];
    machine.run(&[&["busctl", "--auto-start=no", "call", "org.nestd.Nestd1"], &ping[..]].concat());
    let dbus = machine.dbus().await;
    assert_eq!(dbus.status().await.unwrap().state(), State::Loading);
    for client in [grpc, dbus] {
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
    // systemd 257 runs the check beside the signal: the reload may be over a moment before.
    until(&client, |status| status.limits.unwrap().max_tokens == 50).await;
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
async fn settings_that_are_mended_need_one_start_whoever_waited() {
    let mut machine = Machine::with_nestd(SIM);
    let wrong = "/etc/nestd/nestd.toml.d/20-wrong.toml";
    machine.write(wrong, "limits.max_token = 5\n");
    let sockets = ["nestd.sock", "metrics.sock"];
    let connect = |name| UnixStream::connect(machine.path(&format!("/run/nestd/{name}"))).unwrap();
    let _waiting = sockets.map(connect);
    // Each starts it anew until its socket has had enough; a start brings the other socket back.
    let state = |machine: &Machine, unit| {
        let output = machine.output(&["systemctl", "is-active", unit]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    machine.until("left alone", |machine| {
        let units = ["nestd.service", "nestd-metrics.socket"];
        units.iter().all(|unit| state(machine, unit) == "failed").then_some(())
    });
    std::fs::remove_file(machine.path(wrong)).unwrap();
    machine.start();
    for client in [machine.grpc().await, machine.dbus().await] {
        let answer = collect(client.generate(ask("one two")).await.unwrap()).await.unwrap();
        assert_eq!(text(&answer), "one two");
    }
    for unit in ["nestd.service", "nestd.socket", "nestd-metrics.socket"] {
        assert_eq!(state(&machine, unit), "active", "{unit}");
    }
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn a_stop_lets_answers_end_and_keeps_to_its_time() {
    let machine = Machine::with_nestd(SIM);
    let times = "[Service]\nWatchdogSec=2\nTimeoutStopSec=3\n";
    machine.write("/etc/systemd/system/nestd.service.d/10-times.conf", times);
    machine.run(&["systemctl", "daemon-reload"]);
    machine.start();
    let client = machine.grpc().await;
    // Eight seconds of answer, longer than the watchdog's time, and than a stop may take that asks for no more: it
    // ends by itself.
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
    // A setting that this systemd does not know is told, and is no failure.
    let units = ["nestd.service", "nestd.socket", "nestd-metrics.socket"];
    let verified =
        machine.output(&[&["systemd-analyze", "--man=no", "verify"], &units[..]].concat());
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    machine.run(&["systemd-analyze", "security", "--threshold=20", "nestd.service"]);
    // What is open has its reason in the unit.
    let unit = machine.run(&["cat", "/usr/lib/systemd/system/nestd.service"]);
    let (_, reasons) = unit.split_once("# What is left open").unwrap();
    let open = machine.run(&["systemd-analyze", "security", "--json=short", "nestd.service"]);
    let open: Vec<serde_json::Value> = serde_json::from_str(&open).unwrap();
    let names = open.iter().filter(|entry| entry["set"] == false).map(|entry| &entry["name"]);
    for name in names.map(|name| name.as_str().unwrap()) {
        // As in "SystemCallFilter=~@resources" and "RootDirectory=/RootImage=".
        let (name, part) = name.split_once('=').unwrap();
        let name = part.strip_prefix('~').unwrap_or(name);
        assert!(reasons.contains(name), "{name}: {open:?}");
    }
    machine.start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.daemon())).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    assert_eq!((line("Seccomp:"), line("NoNewPrivs:")), ("2".into(), "1".into()));
    assert_eq!(line("CapBnd:").trim_matches('0'), "");
    // What it needs of the system is there all the same.
    let environment = std::fs::read(format!("/proc/{}/environ", machine.daemon())).unwrap();
    let watch =
        environment.split(|byte| *byte == 0).any(|v| v.starts_with(b"MEMORY_PRESSURE_WATCH="));
    assert!(watch, "{}", String::from_utf8_lossy(&environment));
    assert!(!machine.journal().contains("cannot watch memory pressure"), "{}", machine.journal());
    let governor = machine.run(&["nestctl", "governor"]);
    assert!(governor.contains("memory"), "{governor}");
    let events = collect(machine.grpc().await.generate(ask("hello")).await.unwrap()).await.unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Text(_))));
    assert!(finished(&events).usage.is_some());
}
