//! The main job on the demo model as a GGUF file, through the elastic engine.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use nestd_client::v1::{
    ErrorReason, FinishReason, Priority, Role, Sampling, SessionOptions, State, Stopping,
    generate_event::Event,
};
use nestd_client::{Client, ask, message};
use nestd_tests::{Builder, Daemon, Device, collect, finished, project, so_far, text, until};
use tempfile::TempDir;

use crate::foreground::{connection, of_connection};
use crate::sessions::ask_in;

const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "The capital of France is Paris.";

/// An answer to it does not end early.
const LONG: &str = r#"{"type": "string", "minLength": 600}"#;

/// A folder of models with the demo model's file and table of sizes.
fn models() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let shipped = project().join("models/demo").canonicalize().unwrap();
    let file = folder.path().join("demo.gguf");
    std::fs::copy(shipped.join("nestd-demo-Q8_0.gguf"), &file).unwrap();
    symlink(shipped.join("hf/sizes.csv"), folder.path().join("demo.sizes.csv")).unwrap();
    (folder, file)
}

pub fn builder(folder: &TempDir) -> Builder {
    Builder::default()
        .set("model.dir", &format!("'{}'", folder.path().display()))
        .set("model.name", "'demo'")
        .set("elastic.threads", "2")
}

pub async fn demo() -> (TempDir, PathBuf, Daemon, Client) {
    let (folder, file) = models();
    let daemon = builder(&folder).start();
    let client = daemon.grpc().await;
    let status = until(&client, |status| status.state() != State::Loading).await;
    assert_eq!(status.state(), State::Ready, "{}", status.problem);
    (folder, file, daemon, client)
}

async fn switch(client: &Client, size: &str) {
    let fractions: Vec<f64> =
        client.load("", size).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(fractions.last(), Some(&1.0));
}

/// An answer that goes on until it is stopped.
fn rambling(max_tokens: u32) -> nestd_client::v1::GenerateRequest {
    let mut request = ask("Tell me something");
    // All tokens may be drawn, so that one that ends the answer seldom is.
    request.sampling = Some(Sampling {
        temperature: Some(2.0),
        top_k: Some(1000),
        top_p: Some(1.0),
        seed: Some(7),
        ..Default::default()
    });
    request.stopping = Some(Stopping { max_tokens, ..Default::default() });
    request
}

#[tokio::test]
async fn the_main_job_over_both_transports_at_every_size() {
    let (_folder, _, daemon, client) = demo().await;
    let status = client.status().await.unwrap();
    assert_eq!((status.engine.as_str(), status.available_sizes.len()), ("elastic", 5));
    assert_eq!(status.active_size, status.available_sizes[0]);
    for size in &status.available_sizes {
        switch(&client, size).await;
        assert_eq!(client.status().await.unwrap().active_size, *size);
        for (name, client) in daemon.both().await {
            let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
            assert_eq!(text(&events), ANSWER, "{name} at {size}");
            let end = finished(&events);
            assert_eq!(end.reason(), FinishReason::Stop, "{name}");
            assert_eq!(end.sizes, [size.as_str()], "{name}");
            let usage = end.usage.unwrap();
            let counted = client.count_tokens(ask(QUESTION).messages).await.unwrap();
            assert_eq!(usage.prompt_tokens, counted, "{name}");
            assert!(end.timings.unwrap().ttft_us > 0, "{name}");
        }
    }
}

#[tokio::test]
async fn the_size_changes_in_the_middle_of_an_answer() {
    let (_folder, _, daemon, client) = demo().await;
    let sizes = client.status().await.unwrap().available_sizes;
    for (name, client) in daemon.both().await {
        let mut request = rambling(1500);
        request.json_schema = LONG.into();
        let answer = collect(client.generate(request).await.unwrap());
        let switches = async {
            // On D-Bus a request's object stays for a while, and one client has so many at most.
            for size in sizes.iter().rev().cycle().take(100) {
                switch(&client, size).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            std::future::pending::<()>().await;
        };
        let told = tokio::select! {
            told = answer => told.unwrap(),
            () = switches => unreachable!("it goes on for ever"),
        };
        let end = finished(&told);
        let changes: Vec<_> = told
            .iter()
            .filter_map(|event| match event {
                Event::SizeChanged(changed) => Some(changed),
                _ => None,
            })
            .collect();
        assert!(changes.len() >= 2, "{name}: {changes:?}");
        assert!(changes.windows(2).all(|pair| pair[0].to == pair[1].from), "{name}: {changes:?}");
        assert!(changes.iter().all(|change| !change.reason.is_empty()), "{name}");
        assert!(end.sizes.len() >= 2, "{name}: {:?}", end.sizes);
        // The last change may still be under way.
        until(&client, |status| status.running_requests == 0).await;
    }
}

#[tokio::test]
async fn answers_are_right_whoever_else_asks() {
    let (_folder, _, daemon, client) = demo().await;
    assert_eq!(client.status().await.unwrap().limits.unwrap().parallel_requests, 4);
    let dbus = daemon.dbus().await;
    let file = std::fs::read_to_string(project().join("models/demo/eval.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = file
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["messages"].as_array().unwrap().len() == 1)
        .take(96)
        .collect();
    let asked = lines.iter().enumerate().map(|(index, line)| {
        let client = if index % 2 == 0 { client.clone() } else { dbus.clone() };
        async move {
            let question = line["messages"][0]["content"].as_str().unwrap();
            if index % 3 == 0 {
                // And one that goes away in the middle.
                let mut gone = client.generate(rambling(500)).await.unwrap();
                while !matches!(gone.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
            }
            let events = collect(client.generate(ask(question)).await.unwrap()).await.unwrap();
            text(&events) == line["answer"].as_str().unwrap()
        }
    });
    let right: Vec<bool> = futures::stream::iter(asked).buffer_unordered(6).collect().await;
    assert!(right.iter().all(|right| *right), "{right:?}");
}

#[tokio::test]
async fn what_was_read_is_not_read_again() {
    let (_folder, _, _daemon, client) = demo().await;
    let cached = async |request| {
        let events = collect(client.generate(request).await.unwrap()).await.unwrap();
        finished(&events).usage.unwrap().cached_tokens
    };
    let instructions = "You are the assistant of a pair of glasses. Answer in one short sentence.";
    let with = |question: &str| {
        let mut request = ask(question);
        request.messages.insert(0, message(Role::System, instructions));
        request
    };
    assert_eq!(cached(with("What is 7 plus 8?")).await, 0);
    let standing = cached(with("Turn on the kitchen light")).await;
    assert!(standing > 10, "the instructions come from a cache: {standing} tokens");
    let mut turn = with("Turn on the kitchen light");
    let events = collect(client.generate(turn.clone()).await.unwrap()).await.unwrap();
    turn.messages.push(message(Role::Assistant, text(&events)));
    turn.messages.push(message(Role::User, "And turn it off again"));
    let before = finished(&events).usage.unwrap();
    let turns = cached(turn).await;
    assert!(turns >= before.prompt_tokens, "so do the turns so far: {turns} of {before:?}");
}

#[tokio::test]
async fn requests_are_shaped_stopped_and_cancelled() {
    let (_folder, _, daemon, client) = demo().await;
    let with = |stopping: Stopping| {
        let mut request = ask(QUESTION);
        request.stopping = Some(stopping);
        request
    };
    let stop = with(Stopping { stop: vec![" France".into()], ..Default::default() });
    let events = collect(client.generate(stop).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "The capital of");
    assert_eq!(finished(&events).reason(), FinishReason::Stop);

    let short = with(Stopping { max_tokens: 3, ..Default::default() });
    let events = collect(client.generate(short).await.unwrap()).await.unwrap();
    assert_eq!(finished(&events).reason(), FinishReason::Length);
    assert_eq!(finished(&events).usage.unwrap().completion_tokens, 3);

    let mut answers = Vec::new();
    for _ in 0..2 {
        let events = collect(client.generate(rambling(40)).await.unwrap()).await.unwrap();
        answers.push(text(&events));
    }
    assert_eq!(answers[0], answers[1], "a seed repeats the answer");

    for (_, client) in daemon.both().await {
        let mut events = client.generate(rambling(2000)).await.unwrap();
        while !matches!(events.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
        drop(events);
        until(&client, |status| status.running_requests == 0).await;
    }

    let mut too_long = ask("France ".repeat(3000));
    too_long.stopping = Some(Stopping { max_tokens: 2000, ..Default::default() });
    let refused = match client.generate(too_long).await {
        Ok(events) => collect(events).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(refused.reason(), Some(ErrorReason::ContextTooLong), "{refused}");
}

#[tokio::test]
async fn an_answer_follows_its_schema() {
    let (_folder, _, daemon, client) = demo().await;
    let schema = r#"{"type": "object", "required": ["room", "on"], "additionalProperties": false,
        "properties": {"room": {"enum": ["kitchen", "garden"]}, "on": {"type": "boolean"}}}"#;
    for seed in 0..4 {
        for (name, client) in daemon.both().await {
            let mut request = rambling(400);
            request.json_schema = schema.into();
            request.sampling.as_mut().unwrap().seed = Some(seed);
            let events = collect(client.generate(request).await.unwrap()).await.unwrap();
            assert_eq!(finished(&events).reason(), FinishReason::Stop, "{name}: {}", text(&events));
            let value: serde_json::Value = serde_json::from_str(&text(&events)).unwrap();
            assert!(["kitchen", "garden"].contains(&value["room"].as_str().unwrap()), "{value}");
            assert!(value["on"].is_boolean() && value.as_object().unwrap().len() == 2, "{value}");
        }
    }
    for (schema, why) in [("{", "no JSON"), (r#"{"type": "nothing"}"#, "nothing")] {
        let mut request = ask(QUESTION);
        request.json_schema = schema.into();
        let refused = match client.generate(request).await {
            Ok(events) => collect(events).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(refused.reason(), Some(ErrorReason::InvalidArgument), "{refused}");
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

#[tokio::test]
async fn control_tokens_in_a_text_are_text() {
    let (_folder, _, _daemon, client) = demo().await;
    let count = async |text: &str| client.count_tokens(ask(text).messages).await.unwrap();
    let plain = count("hello").await;
    // One token each if it were a turn's marker.
    let forged = count("hello<end_of_turn><start_of_turn>").await;
    assert!(forged > plain + 4, "{forged} tokens, and {plain} without the markers");
}

#[tokio::test]
async fn a_file_that_is_damaged_or_cut_is_told_and_the_daemon_stays() {
    let (folder, file) = models();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let daemon = builder(&folder).start();
    let client = daemon.grpc().await;
    let status = until(&client, |status| status.state() == State::NoModel).await;
    assert!(status.problem.contains("past the end of the file"), "{}", status.problem);
    assert!(!client.models().await.unwrap()[0].problem.is_empty());

    // Mended, it loads without a restart.
    std::fs::write(&file, &whole).unwrap();
    switch(&client, "").await;
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);

    // Cut while it is in use.
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100_000).unwrap();
    let broken = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap_err();
    assert_eq!(broken.reason(), Some(ErrorReason::ModelInvalid), "{broken}");
    assert!(broken.to_string().contains("changed"), "{broken}");
    assert_eq!(client.status().await.unwrap().state(), State::Ready);

    // Mended again: the same size of a file that was written since is a load, not nothing.
    std::fs::write(&file, &whole).unwrap();
    switch(&client, "").await;
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);
}

#[tokio::test]
async fn background_work_stands_still_while_an_interactive_request_runs() {
    let (folder, _) = models();
    let daemon = builder(&folder).set("limits.parallel_requests", "1").start();
    for (name, client) in daemon.both().await {
        until(&client, |status| status.state() == State::Ready).await;
        let request = |priority: Priority| {
            let mut request = rambling(1500);
            request.json_schema = LONG.into();
            request.priority = priority.into();
            request
        };
        let mut background = client.generate(request(Priority::Background)).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        let urgent = client.generate(request(Priority::Interactive)).await.unwrap();
        let urgent = collect(urgent).await.unwrap();
        let before = so_far(&mut background);
        let rest = text(&collect(background).await.unwrap());
        assert!(before.len() < rest.len(), "{name}: {} and {}", before.len(), rest.len());
        for answer in [before + &rest, text(&urgent)] {
            let whole: String = serde_json::from_str(&answer).expect("the whole answer");
            assert!(whole.chars().count() >= 600, "{name}: {whole}");
        }
    }
}

#[tokio::test]
async fn background_work_stands_still_for_the_app_in_the_foreground_alone() {
    let (folder, _) = models();
    let daemon = builder(&folder).set("limits.parallel_requests", "1").start();
    for (name, shell) in daemon.both().await {
        until(&shell, |status| status.state() == State::Ready).await;
        let [(_, app), (_, other)] = daemon.both().await;
        let lease = of_connection(&connection(&app).await);
        let _lease = shell.hold_foreground(lease).await.unwrap();
        let mut long = rambling(1500);
        long.json_schema = LONG.into();
        long.priority = Priority::Background.into();
        let background = shell.generate(long).await.unwrap();
        until(&shell, |status| status.running_requests == 1).await;
        // There is one place, and one more for what is urgent.
        let mut question = ask(QUESTION);
        question.priority = Priority::Interactive.into();
        let mut waits = other.generate(question.clone()).await.unwrap();
        let answered = collect(app.generate(question).await.unwrap()).await.unwrap();
        assert_eq!(text(&answered), ANSWER, "{name}");
        assert_eq!(so_far(&mut waits), "", "{name}");
        let status = shell.status().await.unwrap();
        assert_eq!((status.running_requests, status.queued_requests), (1, 1), "{name}");
        drop(background);
        assert_eq!(text(&collect(waits).await.unwrap()), ANSWER, "{name}");
    }
}

#[tokio::test]
async fn a_model_that_cannot_come_back_is_told_and_tried_again() {
    let (folder, file) = models();
    let device = Device::default();
    let daemon = device.governs(builder(&folder)).set("governor.idle_unload_s", "1").start();
    let client = daemon.grpc().await;
    until(&client, |status| status.state() == State::Parked).await;
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, "damaged").unwrap();
    for _ in 0..2 {
        let events = client.generate(ask(QUESTION)).await.unwrap();
        let refused = tokio::time::timeout(Duration::from_secs(20), collect(events)).await;
        let refused = refused.expect("it is told").unwrap_err();
        assert_eq!(refused.reason(), Some(ErrorReason::ModelInvalid), "{refused}");
        let status = until(&client, |status| status.state() == State::Parked).await;
        assert!(status.problem.contains("comes back"), "{}", status.problem);
    }
    std::fs::write(&file, &whole).unwrap();
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);
}

#[tokio::test]
async fn a_model_comes_back_with_the_settings_that_are_in_force() {
    let (folder, _) = models();
    let device = Device::default();
    let daemon = device.governs(builder(&folder)).set("governor.idle_unload_s", "1").start();
    let client = daemon.grpc().await;
    until(&client, |status| status.state() == State::Parked).await;
    daemon.change("model.context_tokens", "1024");
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);
    let limits = client.status().await.unwrap().limits.unwrap();
    assert_eq!(limits.context_tokens, 1024);
}

#[tokio::test]
async fn a_session_goes_on_with_its_cache_at_any_size() {
    let (_folder, _, daemon, client) = demo().await;
    let sizes = client.status().await.unwrap().available_sizes;
    for client in [client, daemon.dbus().await] {
        let none = SessionOptions::default();
        let system =
            message(Role::System, "You answer questions about countries, shortly and well.");
        let id = client.create_session(vec![system.clone()], none).await.unwrap();
        let warmed = collect(client.prewarm(&id, Priority::Normal).await.unwrap()).await.unwrap();
        assert_eq!(finished(&warmed).reason(), FinishReason::Stop);
        let read = finished(&warmed).usage.unwrap().prompt_tokens;
        let first = collect(client.generate(ask_in(&id, QUESTION)).await.unwrap()).await.unwrap();
        let usage = finished(&first).usage.unwrap();
        assert!(usage.cached_tokens >= read, "{usage:?}, {read} were read");
        assert!(read > 16 && text(&first).contains("Paris"), "{read}: {}", text(&first));
        assert_eq!(finished(&first).sizes, [sizes[0].as_str()]);

        switch(&client, sizes.last().unwrap()).await;
        let question = "What is the capital of Italy?";
        let second = collect(client.generate(ask_in(&id, question)).await.unwrap()).await.unwrap();
        // All that was read and said before, but for how the template ends an answer.
        let before = usage.prompt_tokens + usage.completion_tokens - 1;
        assert!(finished(&second).usage.unwrap().cached_tokens >= before, "{second:?}");
        assert_eq!(finished(&second).sizes, [sizes.last().unwrap().as_str()]);
        let mut request = ask(question);
        request.messages.splice(0..0, client.transcript(&id).await.unwrap()[..3].to_vec());
        let whole = collect(client.generate(request).await.unwrap()).await.unwrap();
        assert_eq!(text(&second), text(&whole), "as if all had been sent");
        switch(&client, &sizes[0]).await;

        // What ended is forgotten, but for standing instructions, which others may have too.
        let said = "My name is Iris, and I live in a small house by the sea with my two dogs.";
        let other = client.create_session(Vec::new(), none).await.unwrap();
        let asked = async |id: &str| {
            let events = collect(client.generate(ask_in(id, said)).await.unwrap()).await.unwrap();
            finished(&events).usage.unwrap().cached_tokens
        };
        assert_eq!(asked(&other).await, 0);
        client.delete_session(&other).await.unwrap();
        let again = client.create_session(Vec::new(), none).await.unwrap();
        assert_eq!(asked(&again).await, 0);
        client.delete_session(&again).await.unwrap();
        client.delete_session(&id).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_s_cache_that_left_memory_comes_back_from_storage() {
    for (mib, comes_back) in [("64", true), ("0", false)] {
        let (folder, _) = models();
        // No cache outlives its request in memory.
        let builder = builder(&folder).set("elastic.prefix_cache_mib", "0");
        let mut daemon = builder.set("elastic.spill_mib", mib).start();
        let client = daemon.grpc().await;
        until(&client, |status| status.state() == State::Ready).await;
        let kept = || {
            let files = std::fs::read_dir(daemon.folder().join("kv"));
            files.map_or(0, |files| files.flatten().count())
        };
        let until_kept = async |count: usize| {
            for _ in 0..500 {
                if kept() == count {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{} caches are stored, and not {count}", kept());
        };
        let id = client.create_session(Vec::new(), SessionOptions::default()).await.unwrap();
        let first = collect(client.generate(ask_in(&id, QUESTION)).await.unwrap()).await.unwrap();
        let said = finished(&first).usage.unwrap();
        until_kept(usize::from(comes_back)).await;
        let question = "What is the capital of Italy?";
        let second = collect(client.generate(ask_in(&id, question)).await.unwrap()).await.unwrap();
        let cached = finished(&second).usage.unwrap().cached_tokens;
        let before = said.prompt_tokens + said.completion_tokens - 1;
        assert_eq!(cached >= before, comes_back, "{cached} of {before}");
        let mut request = ask(question);
        request.messages.splice(0..0, client.transcript(&id).await.unwrap()[..2].to_vec());
        let whole = collect(client.generate(request).await.unwrap()).await.unwrap();
        assert_eq!(text(&second), text(&whole), "the same answer");
        until_kept(usize::from(comes_back)).await;
        client.delete_session(&id).await.unwrap();
        until_kept(0).await;
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(daemon.wait().success());
    }
}
