//! What one user may have, over both APIs, and what is left to another.

use std::time::Duration;

use nestd_client::v1::{ErrorReason, GenerateRequest, Priority, Stopping};
use nestd_client::{Client, Error, Failure, ask};
use nestd_tests::{Builder, Daemon, Device, User, collect, finished, until};

const TRANSPORTS: [&str; 2] = ["--grpc", "--dbus"];

fn words(count: usize, max_tokens: u32, priority: Priority) -> GenerateRequest {
    GenerateRequest {
        priority: priority.into(),
        stopping: Some(Stopping { max_tokens, ..Stopping::default() }),
        ..ask("word ".repeat(count))
    }
}

fn failure<T>(result: Result<T, Error>) -> Failure {
    match result.err() {
        Some(Error::Failed(failure)) => failure,
        other => panic!("expected a failure of the daemon, got {other:?}"),
    }
}

/// Refused because a user had this much, and when to come again.
fn over_quota<T>(result: Result<T, Error>, limit: &str) -> Duration {
    let failure = failure(result);
    assert_eq!(failure.reason, ErrorReason::OverQuota, "{failure:?}");
    assert_eq!(failure.details["limit"], limit, "{failure:?}");
    failure.retry_after.expect("a time to come again")
}

async fn clients(daemon: &Daemon, count: usize) -> Vec<Client> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.extend(daemon.both().await.map(|(_, client)| client));
    }
    all
}

#[tokio::test]
async fn a_flood_of_one_user_leaves_another_its_place() {
    let daemon = Builder::sim().for_any_user().start();
    let Some(nobody) = User::nobody(&daemon) else { return };
    let clients = clients(&daemon, 20).await;
    let mut accepted = Vec::new();
    for client in clients.iter().cycle().take(200) {
        // As urgent as can be, and longer than the test.
        match client.generate(words(2000, 2000, Priority::Interactive)).await {
            Ok(events) => accepted.push(events),
            refused => assert!(over_quota(refused, "8") >= Duration::from_millis(100)),
        }
    }
    // Three run, and eight wait.
    assert_eq!(accepted.len(), 11);
    until(&clients[0], |status| status.running_requests == 3).await;
    for transport in TRANSPORTS {
        nobody.may(&daemon, &[transport, "ask", "--priority", "normal", "hello"]);
    }
    let status = clients[0].status().await.unwrap();
    assert_eq!((status.running_requests, status.queued_requests), (3, 8));
}

#[tokio::test]
async fn users_take_turns_where_there_is_one_place() {
    let daemon = Builder::sim().for_any_user().set("limits.parallel_requests", "1").start();
    let Some(nobody) = User::nobody(&daemon) else { return };
    let clients = clients(&daemon, 4).await;
    let mut queued = Vec::new();
    for client in &clients {
        queued.push(client.generate(words(500, 500, Priority::Normal)).await.unwrap());
    }
    until(&clients[0], |status| status.running_requests == 1).await;
    // It comes after the one that runs: the seven others stay behind it.
    nobody.may(&daemon, &["ask", "hello"]);
    // One has ended, one runs.
    let status = until(&clients[0], |status| status.running_requests == 1).await;
    assert_eq!(status.queued_requests, 6);
    drop(queued);
}

#[tokio::test]
async fn tokens_of_a_minute_run_out_and_come_back() {
    let daemon = Builder::sim()
        .set("sim.tokens_per_s", "100000.0")
        .set("quotas.tokens_per_minute", "1200")
        .start();
    let both = daemon.both().await;
    for (name, client) in &both {
        let events = client.generate(words(1000, 300, Priority::Normal)).await.unwrap();
        let usage = finished(&collect(events).await.unwrap()).usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1002, 300), "{name}");
        // A hundred too many, at 20 a second, whatever the connection.
        let mut wait = Duration::ZERO;
        for (_, client) in &both {
            wait = over_quota(client.generate(ask("one")).await, "1200");
            assert!(wait <= Duration::from_millis(5_101), "{wait:?}");
        }
        tokio::time::sleep(wait).await;
        collect(client.generate(ask("one")).await.unwrap()).await.unwrap();
        daemon.change("quotas.tokens_per_minute", "0");
        // Nothing is left to pay.
        collect(client.generate(ask("one")).await.unwrap()).await.unwrap();
        daemon.change("quotas.tokens_per_minute", "1200");
    }
}

#[tokio::test]
async fn energy_is_budgeted_on_battery() {
    let device = Device::on_battery(90);
    device.sys("class/power_supply/BAT0/power_now", "10000000\n");
    let builder = Builder::sim().set("quotas.energy_j_per_hour", "5");
    let daemon = device.governs(builder).start();
    let both = daemon.both().await;
    // What a token costs is known after some.
    let mut refused = None;
    for _ in 0..10 {
        match both[0].1.generate(words(50, 50, Priority::Normal)).await {
            Ok(events) => drop(collect(events).await.unwrap()),
            error => {
                refused = Some(over_quota(error, "5"));
                break;
            }
        }
    }
    assert!(refused.expect("the budget is spent") > Duration::from_secs(1));
    over_quota(both[1].1.generate(ask("hello")).await, "5");
    device.mains(true);
    for (name, client) in &both {
        let mut tries = 0;
        while let Err(error) = client.generate(ask("hello")).await {
            tries += 1;
            assert!(tries < 100, "{name}: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
