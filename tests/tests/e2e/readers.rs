//! Slow readers: they slow nobody down, and they get all of the text or are told that they lagged.

use std::os::fd::AsFd;
use std::time::Duration;

use futures::StreamExt;
use nestd_client::v1::ErrorReason;
use nestd_client::{Client, ask};
use nestd_tests::{Builder, collect, text, until};

#[tokio::test]
async fn a_client_that_never_reads_stops_nobody() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "2000.0").start();
    for (name, client) in daemon.both().await {
        let prompt = "a rather long word that fills windows and buffers ".repeat(200);
        let deaf = client.generate(ask(prompt.clone())).await.unwrap();
        let other = client.generate(ask("quick")).await.unwrap();
        let events = tokio::time::timeout(Duration::from_secs(20), collect(other)).await;
        assert_eq!(text(&events.expect(name).unwrap()), "quick", "{name}");
        until(&client, |status| status.running_requests == 0).await;
        // Nobody read for a while, and nothing is lost.
        let events = collect(deaf).await.unwrap();
        assert!(prompt.starts_with(&text(&events)), "{name}");
        assert_eq!(text(&events).split_whitespace().count(), 512, "{name}");
    }
}

#[tokio::test]
async fn a_reader_that_falls_too_far_behind_is_told() {
    // What is under way, in HTTP/2's windows and the socket's buffers, is beyond the daemon's buffer.
    let daemon = Builder::sim()
        .set("sim.tokens_per_s", "5000.0")
        .set("limits.buffer_bytes", "1024")
        .set("limits.prompt_bytes", "4_000_000")
        .start();
    let client = daemon.grpc().await;
    let word = "x".repeat(3500) + " ";
    let mut request = ask(word.repeat(1000));
    request.stopping = Some(nestd_client::v1::Stopping { max_tokens: 1000, ..Default::default() });
    let mut events = client.generate(request).await.unwrap();
    until(&client, |status| status.running_requests == 0).await;
    let mut read = String::new();
    let end = loop {
        match events.next().await.unwrap() {
            Ok(event) => read += &text(event.event.as_slice()),
            Err(error) => break error,
        }
    };
    assert_eq!(end.reason(), Some(ErrorReason::Lagged), "{end}");
    assert!(read.len() < 3_500_000 && word.repeat(1000).starts_with(&read));
}

#[tokio::test]
async fn nor_does_one_whose_answer_is_whole_before_it_lags() {
    let daemon = Builder::sim().set("sim.tokens_per_s", "1_000_000.0").start();
    let client = daemon.dbus().await;
    let Client::Dbus(dbus) = &client else { unreachable!() };
    let before = daemon.descriptors();
    // More than a pipe holds, and less than the daemon does.
    let request = ask(("x".repeat(500) + " ").repeat(400));
    let (reader, writer) = std::io::pipe().unwrap();
    let events = dbus.generate_to_fd(writer.as_fd(), request).await.unwrap();
    drop(writer);
    let ended = tokio::time::timeout(Duration::from_secs(60), collect(events)).await;
    let error = ended.expect("the reader is told that it lagged").unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::Lagged), "{error}");
    assert!(daemon.descriptors() <= before, "the daemon keeps its end open");
    drop(reader);
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_keeps_no_end_waiting() {
    let daemon = Builder::sim()
        .set("sim.tokens_per_s", "5000.0")
        .set("limits.buffer_bytes", "1024")
        .set("limits.prompt_bytes", "4_000_000")
        .start();
    let client = daemon.dbus().await;
    let Client::Dbus(dbus) = &client else { unreachable!() };
    let before = daemon.descriptors();
    // More than a pipe holds.
    let request = ask(("x".repeat(3500) + " ").repeat(300));
    let (reader, writer) = std::io::pipe().unwrap();
    let events = dbus.generate_to_fd(writer.as_fd(), request).await.unwrap();
    drop(writer);
    let ended = tokio::time::timeout(Duration::from_secs(20), collect(events)).await;
    let error = ended.expect("the reader is told that it lagged").unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::Lagged), "{error}");
    assert!(daemon.descriptors() <= before, "the daemon keeps its end open");
    drop(reader);
}
