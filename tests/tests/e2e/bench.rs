//! `nestctl bench` against the daemon, over each transport.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nestd_tests::{Builder, Daemon, program};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const WAYS: [(&str, &[&str]); 3] =
    [("grpc", &["--grpc"]), ("dbus", &["--dbus"]), ("fd", &["--dbus", "--fd"])];

fn bench(daemon: &Daemon, options: &[&str]) -> Command {
    let mut command = Command::new(program("nestctl"));
    command
        .arg("bench")
        .args(options)
        .env("NESTCTL_BUS", daemon.bus_address())
        .env("NESTCTL_SOCKET", daemon.socket())
        .stdin(Stdio::null());
    command
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Every call is counted once, and the parts are the whole.
fn adds_up(told: &Value) {
    let parts = |value: &Value| {
        let outcomes = value["outcomes"].as_object().unwrap();
        let ended: u64 = outcomes.values().map(number).sum();
        assert_eq!(number(&value["requests"]), ended + number(&value["unfinished"]), "{value}");
        for time in ["ttft_ms", "between_tokens_ms", "per_token_ms", "queue_ms"] {
            let at = ["p50", "p90", "p99", "max"].map(|p| value[time][p].as_f64());
            assert!(at.is_sorted(), "{time}: {value}");
        }
    };
    parts(&told["all"]);
    let priorities = told["priorities"].as_array().unwrap();
    priorities.iter().for_each(parts);
    for sum in ["requests", "unfinished", "prompt_tokens", "completion_tokens", "pieces"] {
        let parts: u64 = priorities.iter().map(|priority| number(&priority[sum])).sum();
        assert_eq!(number(&told["all"][sum]), parts, "{sum}: {told}");
    }
    let clients: u64 = priorities.iter().map(|priority| number(&priority["clients"])).sum();
    assert_eq!(number(&told["clients"]), clients, "{told}");
}

#[test]
fn every_request_is_counted_over_each_transport() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "2000.0").start();
    for (over, options) in WAYS {
        let more = [
            "--json",
            "--clients",
            "4",
            "--priority",
            "interactive=1,normal=2,background=1",
            "--requests",
            "20",
            "--prompt-tokens",
            "12..40",
            "--max-tokens",
            "5..10",
            "--pause-ms",
            "0..5",
        ];
        let told = json(&bench(&daemon, &[options, &more[..]].concat()).output().unwrap());
        adds_up(&told);
        assert_eq!(told["over"], over);
        assert_eq!((&told["model"], &told["size"]), (&"sim".into(), &"large".into()));
        let all = &told["all"];
        assert_eq!((number(&all["requests"]), number(&all["outcomes"]["length"])), (20, 20));
        let prompts = number(&all["prompt_tokens"]);
        assert!((20 * 12..=20 * 40).contains(&prompts), "{all}");
        let answers = number(&all["completion_tokens"]);
        assert!((20 * 5..=20 * 10).contains(&answers), "{all}");
        assert!(number(&all["pieces"]) >= 20 && number(&all["pieces"]) <= answers, "{all}");
        let priorities = told["priorities"].as_array().unwrap();
        let names: Vec<_> = priorities.iter().map(|one| one["priority"].as_str()).collect();
        assert_eq!(names, ["interactive", "normal", "background"].map(Some));
        assert_eq!(number(&priorities[1]["clients"]), 2);
        for time in ["ttft_ms", "queue_ms"] {
            assert!(all[time]["p99"].as_f64().unwrap() > 0.0, "{time}: {told}");
        }
    }
}

#[test]
fn the_same_seed_asks_the_same() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "5000.0").start();
    let told = |over: &str, seed: &str| {
        let options = [over, "--json", "--clients", "1", "--requests", "9", "--seed", seed];
        let range = ["--prompt-tokens", "10..90", "--max-tokens", "1..200"];
        let told = json(&bench(&daemon, &[&options[..], &range].concat()).output().unwrap());
        ["prompt_tokens", "completion_tokens"].map(|tokens| number(&told["all"][tokens]))
    };
    assert_eq!(told("--grpc", "7"), told("--dbus", "7"));
    assert_ne!(told("--grpc", "7"), told("--grpc", "8"));
}

#[test]
fn a_time_ends_it_and_what_is_under_way_is_cancelled() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "20.0").start();
    for (count, (_, options)) in (1..).zip(WAYS) {
        let long = ["--json", "--clients", "2", "--duration", "1", "--max-tokens", "128"];
        let told = json(&bench(&daemon, &[options, &long[..]].concat()).output().unwrap());
        adds_up(&told);
        assert_eq!((number(&told["all"]["requests"]), number(&told["all"]["unfinished"])), (2, 2));
        assert!(told["all"]["ttft_ms"]["p50"].is_null(), "{told}");
        // The daemon ends them, too.
        let began = Instant::now();
        while daemon.log().matches("reason=Cancelled").count() < 2 * count {
            assert!(began.elapsed() < Duration::from_secs(30), "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn refusals_are_waited_out_counted_and_explained() {
    let daemon = Builder::sim()
        .set("quotas.parallel_requests", "1")
        .set("quotas.queued_requests", "1")
        .set("sim.tokens_per_s", "500.0")
        .start();
    for (_, options) in WAYS {
        let many = ["--clients", "5", "--requests", "5", "--max-tokens", "20"];
        let told = bench(&daemon, &[options, &["--json"], &many].concat()).output().unwrap();
        let told = json(&told);
        adds_up(&told);
        let outcomes = &told["all"]["outcomes"];
        assert_eq!(number(&outcomes["length"]), 5, "{told}");
        assert!(number(&outcomes["OVER_QUOTA"]) >= 1, "{told}");
        let output = bench(&daemon, &[options, &many].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        for word in ["normal", "first token", "between tokens", "OVER_QUOTA", "P99"] {
            assert!(table.contains(word), "{word}: {table}");
        }
        let note = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(note.contains("refused") && note.contains("[quotas]"), "{note}");
        assert_eq!(note.lines().count(), 1, "no progress without a terminal: {note}");
    }
}

#[tokio::test]
async fn an_interrupted_run_tells_what_it_has() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "2000.0").start();
    let mut child = bench(&daemon, &["--json", "--duration", "600", "--max-tokens", "5"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.wait_log("accepted").await;
    while daemon.log().matches("accepted").count() < 40 {
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let told: Value = serde_json::from_str(&line).unwrap();
    adds_up(&told);
    assert!(number(&told["all"]["outcomes"]["length"]) >= 30, "{told}");
}

#[test]
fn a_daemon_that_goes_away_ends_it_with_the_numbers_so_far() {
    for (_, options) in WAYS {
        let mut daemon =
            Builder::sim().set("sim.tokens_per_s", "2000.0").set("limits.drain_ms", "0").start();
        let options = [options, &["--json", "--duration", "600", "--max-tokens", "5"]].concat();
        let child =
            bench(&daemon, &options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while daemon.log().matches("accepted").count() < 40 {
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        adds_up(&serde_json::from_slice(&output.stdout).unwrap());
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        let reason = error["error"]["reason"].as_str().unwrap();
        assert!(["SHUTTING_DOWN", "DISCONNECTED", "UNREACHABLE"].contains(&reason), "{error}");
    }
}

#[test]
fn what_cannot_be_measured_is_told() {
    let daemon = Builder::sim().start();
    let run = |options: &[&str]| {
        let output = bench(&daemon, options).output().unwrap();
        assert!(output.stdout.is_empty(), "{output:?}");
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (options, code, words) in [
        (&["--clients", "0"][..], 2, "--clients"),
        (&["--priority", "urgent"], 2, "interactive, normal or background"),
        (&["--priority", "normal=0"], 2, "weight of normal"),
        (&["--clients", "1", "--priority", "normal,background"], 2, "--clients are too few"),
        (&["--prompt-tokens", "9..3"], 2, "above the second"),
        (&["--max-tokens", "some"], 2, "neither a number"),
        (&["--duration", "0"], 2, "number of seconds"),
        (&["--requests", "0"], 2, "--requests"),
        (&["--fd"], 2, "--dbus"),
        (&["--threads", "2"], 2, "--model"),
        (&["--model", "m.gguf", "--clients", "2"], 2, "--clients"),
        (&["--model", "m.gguf", "--max-tokens", "1..2"], 2, "one number"),
        (&["--prompt-tokens", "9000"], 4, "context"),
        (&["--max-tokens", "100000"], 4, "max_tokens"),
        (&["--socket", "/nonexistent"], 3, "/nonexistent"),
    ] {
        let (told, why) = run(options);
        assert!(told == code && why.contains(words), "{options:?}: {told} {why}");
    }
    let output = Command::new(program("nestctl"))
        .arg("unload")
        .env("NESTCTL_SOCKET", daemon.socket())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (told, why) = run(&[]);
    assert!(told == 6 && why.contains("nothing") | why.contains("unloaded"), "{told} {why}");
}
