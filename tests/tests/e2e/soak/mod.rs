//! Many clients over both APIs who behave badly, all at once: whatever they do, each request ends once
//! and in words, and nothing stays behind. `client` is one of them, `account` is what is checked after.
//!
//! The long run, in an optimized build:
//! `cargo test --release -p nestd-tests --test e2e -- --ignored --nocapture soak`, with
//! `NESTD_SOAK_S` and `NESTD_SOAK_CLIENTS` for another time and another number than 300 s and 200.

mod account;
mod client;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nestd_client::{Client, ask};
use nestd_tests::{Builder, Daemon, Device, collect, text};
use rand::SeedableRng;
use rand::rngs::StdRng;

use account::{Account, Log};
use client::Badly;

/// How long what was left alone may take to go: the longest is an idle thread's ten seconds.
const SETTLE: Duration = Duration::from_secs(60);
/// Resident memory may grow by so much after a quarter of the time, and no more: in a leak of a
/// kilobyte a request, the long run would take several times that.
const GROWTH_KIB: u64 = 48 << 10;
/// How often memory is looked at.
const LOOKS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_of_seconds() {
    soak(Duration::from_secs(20), 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes five minutes; docs/performance.md has a run"]
async fn a_soak_of_minutes() {
    let number = |name, default| {
        std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
    };
    let seconds = number("NESTD_SOAK_S", 300);
    soak(Duration::from_secs(seconds), number("NESTD_SOAK_CLIENTS", 200)).await;
}

/// What the daemon holds at one moment.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(daemon: &Daemon) -> Self {
        Self { descriptors: daemon.descriptors(), threads: daemon.threads() }
    }
}

async fn soak(time: Duration, clients: u64) {
    let device = Device::default();
    let daemon = device
        .governs(Builder::sim())
        .set("sim.tokens_per_s", "500.0")
        .set("sim.elastic", "true")
        .set("limits.parallel_requests", "16")
        .set("limits.queued_requests", "128")
        .set("limits.buffer_bytes", "4096")
        .set("limits.prompt_bytes", "2_000_000")
        .set("grpc.connections_per_user", "512")
        .set("quotas.parallel_requests", "0")
        .set("quotas.queued_requests", "0")
        .set("sessions.total", "64")
        .set("sessions.per_user", "64")
        .start();
    // One client over each API that stays, and has the daemon do once what it does later.
    let watchers = daemon.both().await;
    for (_, client) in &watchers {
        collect(client.generate(ask("warm up")).await.unwrap()).await.unwrap();
    }
    let before = Held::by(&daemon);
    let daemon = Arc::new(daemon);

    let until = Instant::now() + time;
    let account = Arc::new(Account::default());
    let running: Vec<_> = (0..clients)
        .map(|number| {
            let random = StdRng::seed_from_u64(number);
            let badly = Badly::new(Arc::clone(&daemon), Arc::clone(&account), random, number);
            tokio::spawn(badly.until(until))
        })
        .collect();
    let mut resident_kib = Vec::new();
    for look in 1..=LOOKS {
        let next = until.checked_sub(time * (LOOKS - look) / LOOKS).unwrap();
        tokio::time::sleep_until(next.into()).await;
        resident_kib.push(daemon.resident_kib());
        daemon.pass_over_notifications();
    }
    for client in running {
        client.await.unwrap();
    }

    gone(&watchers).await;
    let settled = Instant::now();
    let after = loop {
        daemon.pass_over_notifications();
        let after = Held::by(&daemon);
        let left = after.descriptors > before.descriptors || after.threads > before.threads;
        if !left || settled.elapsed() > SETTLE {
            break after;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    resident_kib.push(daemon.resident_kib());
    for (name, client) in &watchers {
        let events = collect(client.generate(ask("all is well")).await.unwrap()).await.unwrap();
        assert_eq!(text(&events), "all is well", "{name}");
    }

    let log = Log::read(&daemon.log());
    println!("{clients} clients for {} s", time.as_secs());
    println!("{account}");
    println!("the daemon's log: {log}");
    println!("descriptors and threads: before {before:?}, after {after:?}");
    println!("resident MiB: {:?}", resident_kib.iter().map(|kib| kib >> 10).collect::<Vec<_>>());

    account.check();
    log.check();
    account::check_metrics(&daemon, &log, &account);
    assert!(after.descriptors <= before.descriptors, "{after:?} of {before:?}");
    assert!(after.threads <= before.threads, "{after:?} of {before:?}");
    let early = resident_kib[resident_kib.len() / 4];
    let last = resident_kib[resident_kib.len() - 1];
    assert!(last <= early + GROWTH_KIB, "{early} KiB became {last}");
}

/// Waits until no request, no session and no hold is left.
async fn gone(watchers: &[(&'static str, Client)]) {
    let began = Instant::now();
    for (name, client) in watchers {
        loop {
            let requests = client.requests().await.unwrap().requests;
            let holds = client.governor().await.unwrap().holds;
            let status = client.status().await.unwrap();
            let counted = status.running_requests + status.queued_requests;
            if requests.is_empty() && holds.is_empty() && counted == 0 {
                break;
            }
            assert!(began.elapsed() < SETTLE, "{name}: left are {requests:?} and {holds:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
