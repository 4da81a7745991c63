//! Every way to end a request early, and that the work ends with it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::ask;
use nestd_client::v1::{FinishReason, Stopping, generate_event::Event};
use nestd_tests::{Builder, Daemon, collect, finished, program, until};

/// A daemon with room for one request, and a request that runs for minutes.
fn slow() -> (Daemon, String) {
    let daemon =
        Builder::sim().set("limits.parallel_requests", "1").set("sim.tokens_per_s", "20.0").start();
    (daemon, "word ".repeat(2000))
}

#[tokio::test]
async fn dropping_the_stream_ends_the_work() {
    let (daemon, prompt) = slow();
    for (_, client) in daemon.both().await {
        let mut events = client.generate(ask(prompt.clone())).await.unwrap();
        while !matches!(events.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
        assert_eq!(client.status().await.unwrap().running_requests, 1);
        drop(events);
        until(&client, |status| status.running_requests == 0).await;
    }
}

#[tokio::test]
async fn a_queued_request_that_is_dropped_never_starts() {
    let (daemon, prompt) = slow();
    for (_, client) in daemon.both().await {
        let running = client.generate(ask(prompt.clone())).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        let queued = client.generate(ask(prompt.clone())).await.unwrap();
        until(&client, |status| status.queued_requests == 1).await;
        drop(queued);
        until(&client, |status| status.queued_requests == 0).await;
        assert_eq!(client.status().await.unwrap().running_requests, 1);
        drop(running);
        until(&client, |status| status.running_requests == 0).await;
    }
}

#[tokio::test]
async fn cancel_finishes_the_request() {
    let (daemon, prompt) = slow();
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let mut messages = zbus::MessageStream::from(&bus);
    let conversation = [("user", vec![("text", zbus::Variant::from(prompt))])];
    let options = std::collections::HashMap::from([("handle_token", zbus::Variant::from("mine"))]);
    let name = Some(nestd_proto::dbus::NAME);
    let path: zbus::OwnedObjectPath = bus
        .call_method(
            name,
            nestd_proto::dbus::PATH,
            Some("org.nestd.Manager1"),
            "Generate",
            &(&conversation[..], options),
        )
        .await
        .unwrap()
        .body()
        .deserialize()
        .unwrap();
    let sender = nestd_proto::sender_element(bus.unique_name().unwrap());
    assert_eq!(path.as_str(), format!("/org/nestd/Nestd1/request/{sender}/mine"));
    bus.call_method(name, &path, Some("org.nestd.Request1"), "Cancel", &()).await.unwrap();
    loop {
        let message = messages.next().await.unwrap().unwrap();
        if message.header().member().is_some_and(|member| member == "Finished") {
            let body = message.body();
            let result: std::collections::HashMap<String, zbus::OwnedVariant> =
                body.deserialize().unwrap();
            assert_eq!(<&str>::try_from(&*result["reason"]).unwrap(), "cancelled");
            break;
        }
    }
    let client = daemon.grpc().await;
    until(&client, |status| status.running_requests == 0).await;
}

#[tokio::test]
async fn a_client_that_is_killed_ends_its_work() {
    let (daemon, prompt) = slow();
    let client = daemon.grpc().await;
    for transport in ["--grpc", "--dbus"] {
        let mut victim = Command::new(program("nestctl"))
            .args([transport, "ask", &prompt])
            .env("NESTCTL_BUS", daemon.bus_address())
            .env("NESTCTL_SOCKET", daemon.socket())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until(&client, |status| status.running_requests == 1).await;
        victim.kill().unwrap();
        victim.wait().unwrap();
        until(&client, |status| status.running_requests == 0).await;
    }
}

#[tokio::test]
async fn a_deadline_counts_from_the_call() {
    let (daemon, prompt) = slow();
    for (name, client) in daemon.both().await {
        let stopping = |deadline_ms| Some(Stopping { deadline_ms, ..Stopping::default() });
        let mut running = ask(prompt.clone());
        running.stopping = stopping(600);
        let mut queued = ask(prompt.clone());
        queued.stopping = stopping(300);
        let began = Instant::now();
        let running = client.generate(running).await.unwrap();
        let queued = client.generate(queued).await.unwrap();
        let queued = collect(queued).await.unwrap();
        let running = collect(running).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10), "{name}");
        for (events, tokens) in [(&queued, false), (&running, true)] {
            let end = finished(events);
            assert_eq!(end.reason(), FinishReason::Deadline, "{name}");
            assert_eq!(end.usage.unwrap().completion_tokens > 0, tokens, "{name} {end:?}");
        }
        until(&client, |status| status.running_requests == 0).await;
    }
}
