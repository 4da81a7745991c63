//! Listing, loading, switching the size, and unloading, over both transports.

use std::time::Duration;

use futures::StreamExt;
use nestd_client::v1::{self, ErrorReason, State, generate_event::Event};
use nestd_client::{Client, Error, ask};
use nestd_tests::{Builder, collect, finished, text, until};

async fn load(client: &Client, model: &str, size: &str) -> Result<Vec<f64>, Error> {
    let mut fractions = Vec::new();
    let mut progress = client.load(model, size).await?;
    while let Some(fraction) = progress.next().await {
        fractions.push(fraction?);
    }
    Ok(fractions)
}

/// A simulator whose sizes take a load, as mistralrs's do.
fn by_load() -> Builder {
    Builder::sim().set("sim.elastic", "false")
}

#[tokio::test]
async fn sizes_are_switched_and_the_answers_say_so() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        let models = client.models().await.unwrap();
        let sizes: Vec<_> = models[0].sizes.iter().map(|size| size.name.as_str()).collect();
        assert_eq!((models[0].name.as_str(), sizes), ("sim", vec!["large", "small"]), "{name}");
        assert!(models[0].loaded, "{name}");
        for size in ["small", "large"] {
            let fractions = load(&client, "", size).await.unwrap();
            assert_eq!(fractions.last(), Some(&1.0), "{name}");
            assert!(fractions.is_sorted(), "{name} {fractions:?}");
            assert_eq!(client.status().await.unwrap().active_size, size, "{name}");
            let events = collect(client.generate(ask("hello")).await.unwrap()).await.unwrap();
            assert_eq!(finished(&events).sizes, [size], "{name}");
        }
        let wrong = load(&client, "sim", "huge").await.unwrap_err();
        assert_eq!(wrong.reason(), Some(ErrorReason::InvalidArgument), "{name}");
        assert!(wrong.to_string().contains("large, small"), "{name}: {wrong}");
        assert_eq!(client.status().await.unwrap().state(), State::Ready, "{name}");
    }
}

#[tokio::test]
async fn requests_wait_for_a_load_and_see_it() {
    let daemon = by_load().set("sim.load_ms", "1500").start();
    for ((name, client), size) in daemon.both().await.into_iter().zip(["small", "large"]) {
        until(&client, |status| status.state() == State::Ready).await;
        let mut progress = client.load("", size).await.unwrap();
        assert!(progress.next().await.unwrap().unwrap() < 1.0, "{name}");
        let status = client.status().await.unwrap();
        assert_eq!((status.state(), status.model.as_str()), (State::Loading, "sim"), "{name}");
        let counted = client.count_tokens(ask("hello").messages).await.unwrap_err();
        assert_eq!(counted.reason(), Some(ErrorReason::Busy), "{name}");
        let twice = client.load("", size).await.err().unwrap();
        assert_eq!(twice.reason(), Some(ErrorReason::Busy), "{name}");
        assert!(twice.retry_after().is_some(), "{name}");

        let events = collect(client.generate(ask("hello")).await.unwrap()).await.unwrap();
        let loading = events.iter().filter(|event| matches!(event, Event::Loading(_))).count();
        assert!(loading >= 2, "{name}: {events:?}");
        assert_eq!(text(&events), "hello", "{name}");
        assert_eq!(finished(&events).sizes, [size], "{name}");
        let fractions: Vec<f64> = progress.map(Result::unwrap).collect().await;
        assert_eq!(fractions.last(), Some(&1.0), "{name}");
    }
}

#[tokio::test]
async fn a_load_waits_for_running_requests_or_gives_up() {
    let daemon = by_load().set("limits.drain_ms", "1000").start();
    let sizes = [("small", "large"), ("large", "small")];
    for ((name, client), (to, other)) in daemon.both().await.into_iter().zip(sizes) {
        let answer = client.generate(ask("word ".repeat(20))).await.unwrap();
        let fractions = load(&client, "", to).await.unwrap();
        assert_eq!(fractions.last(), Some(&1.0), "{name}");
        let events = collect(answer).await.unwrap();
        assert_eq!(text(&events), "word ".repeat(20), "{name}: all tokens there");

        let answer = client.generate(ask("word ".repeat(400))).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        let refused = load(&client, "", other).await.unwrap_err();
        assert_eq!(refused.reason(), Some(ErrorReason::Busy), "{name}");
        let status = client.status().await.unwrap();
        assert_eq!((status.state(), status.active_size.as_str()), (State::Ready, to), "{name}");
        assert_eq!(status.running_requests, 1, "{name}: the request runs on");
        drop(answer);
        until(&client, |status| status.running_requests == 0).await;
    }
}

#[tokio::test]
async fn what_was_unloaded_is_loaded_again() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        client.unload().await.unwrap();
        let status = client.status().await.unwrap();
        assert_eq!(status.state(), State::NoModel, "{name}");
        assert!(status.problem.contains("nestctl load"), "{name}: {}", status.problem);
        let refused = client.generate(ask("hello")).await.err().unwrap();
        assert_eq!(refused.reason(), Some(ErrorReason::ModelNotLoaded), "{name}");
        client.unload().await.unwrap();
        load(&client, "", "").await.unwrap();
        assert_eq!(client.status().await.unwrap().state(), State::Ready, "{name}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_an_unload_does_not_stop_it_half_way() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        until(&client, |status| status.state() == State::Ready).await;
        let answer = client.generate(ask("word ".repeat(30))).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        let waited = tokio::time::timeout(Duration::from_millis(100), client.unload()).await;
        assert!(waited.is_err(), "{name}: the answer takes longer");
        assert_eq!(text(&collect(answer).await.unwrap()), "word ".repeat(30), "{name}");
        until(&client, |status| status.state() == State::NoModel).await;
        load(&client, "", "").await.unwrap();
    }
}

#[tokio::test]
async fn too_little_memory_is_told_before_loading() {
    let daemon = Builder::sim().set("model.name", "''").set("sim.enabled", "true").start();
    let client = daemon.grpc().await;
    assert_eq!(client.status().await.unwrap().model, "sim", "the only model is loaded");
    drop(daemon);

    // The simulator wants 1 MiB. A model that is not there at start wants none.
    let daemon = Builder::sim().set("model.name", "'other'").start();
    let status = daemon.grpc().await.status().await.unwrap();
    assert_eq!(status.state(), State::NoModel);
    assert!(status.problem.contains("other"), "{}", status.problem);
}

#[tokio::test]
async fn watchers_see_every_state() {
    let daemon = by_load().set("sim.load_ms", "300").start();
    for ((name, client), size) in daemon.both().await.into_iter().zip(["small", "large"]) {
        until(&client, |status| status.state() == State::Ready).await;
        let mut reports = client.watch_status().await.unwrap();
        let first: v1::StatusReport = reports.next().await.unwrap().unwrap();
        assert_eq!(first.state(), State::Ready, "{name}");
        let other = client.clone();
        let load = tokio::spawn(async move { load(&other, "", size).await });
        let mut states = Vec::new();
        let seen = async {
            while let Some(report) = reports.next().await {
                let report = report.unwrap();
                states.push(report.state());
                if report.state() == State::Ready && states.contains(&State::Loading) {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), seen).await.expect(name);
        assert!(states.contains(&State::Loading), "{name} {states:?}");
        load.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_size_that_takes_no_load_changes_in_the_middle_of_an_answer() {
    let daemon = Builder::sim().start();
    for ((name, client), to) in daemon.both().await.into_iter().zip(["small", "large"]) {
        let answer = client.generate(ask("word ".repeat(40))).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        assert_eq!(load(&client, "", to).await.unwrap().last(), Some(&1.0), "{name}");
        assert_eq!(client.status().await.unwrap().running_requests, 1, "{name}: it runs on");
        let events = collect(answer).await.unwrap();
        assert_eq!(text(&events), "word ".repeat(40), "{name}: all tokens there");
        let change = events.iter().find_map(|event| match event {
            Event::SizeChanged(change) => Some(change),
            _ => None,
        });
        let change = change.expect(name);
        assert_eq!((change.to.as_str(), change.reason.is_empty()), (to, false), "{name}");
        assert_eq!(finished(&events).sizes, [change.from.clone(), to.to_owned()], "{name}");
    }
}

#[tokio::test]
async fn loading_what_is_loaded_does_nothing_until_its_settings_change() {
    let daemon = Builder::sim().set("sim.load_ms", "500").start();
    for (name, client) in daemon.both().await {
        until(&client, |status| status.state() == State::Ready).await;
        let answer = client.generate(ask("word ".repeat(40))).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        assert_eq!(load(&client, "sim", "large").await.unwrap(), [1.0], "{name}");
        assert_eq!(client.status().await.unwrap().running_requests, 1, "{name}: it runs on");
        assert_eq!(text(&collect(answer).await.unwrap()), "word ".repeat(40), "{name}");
    }
    daemon.change("model.context_tokens", "1000");
    let client = daemon.grpc().await;
    until(&client, |status| status.state() == State::Ready).await;
    let fractions = load(&client, "sim", "large").await.unwrap();
    assert!(fractions.len() > 2, "a load: {fractions:?}");
    assert_eq!(client.status().await.unwrap().limits.unwrap().context_tokens, 1000);
}
