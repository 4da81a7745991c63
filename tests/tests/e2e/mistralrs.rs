//! The main job on the demo model, through mistral.rs.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use nestd_client::v1::{
    ErrorReason, FinishReason, GenerateRequest, Priority, Role, Sampling, SessionOptions, State,
    Stopping, generate_event::Event,
};
use nestd_client::{Client, ask, message};
use nestd_tests::{Builder, Daemon, Device, collect, finished, project, text, until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::governor::told;
use crate::sessions::ask_in;

const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "The capital of France is Paris.";

/// A folder of models with the demo model in it, file by file, so that a test can damage one.
fn models() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("demo");
    std::fs::create_dir(&demo).unwrap();
    let shipped = project().join("models/demo/hf").canonicalize().unwrap();
    for file in std::fs::read_dir(shipped).unwrap() {
        let file = file.unwrap();
        symlink(file.path(), demo.join(file.file_name())).unwrap();
    }
    (folder, demo)
}

fn builder(models: &Path) -> Builder {
    Builder::default()
        .set("model.dir", &format!("'{}'", models.display()))
        .set("model.name", "'demo'")
        .set("model.isq", "'none'")
}

/// The daemon with the demo model loaded.
async fn demo() -> (TempDir, Daemon, Client) {
    let (folder, _) = models();
    let daemon = builder(folder.path()).start();
    let client = daemon.grpc().await;
    let status = until_settled(&client).await;
    assert_eq!(status, State::Ready, "{}", client.status().await.unwrap().problem);
    (folder, daemon, client)
}

async fn until_settled(client: &Client) -> State {
    // A load of the demo model takes a few seconds, on a machine that is otherwise busy.
    for _ in 0..1200 {
        let state = client.status().await.unwrap().state();
        if state != State::Loading {
            return state;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    State::Loading
}

async fn switch(client: &Client, size: &str) {
    let fractions: Vec<f64> =
        client.load("", size).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(fractions.last(), Some(&1.0));
    assert!(fractions.is_sorted(), "{fractions:?}");
}

#[tokio::test]
async fn the_main_job_over_both_transports_at_two_sizes() {
    let (_folder, daemon, client) = demo().await;
    let status = client.status().await.unwrap();
    let sizes = status.available_sizes.clone();
    assert!(sizes.len() >= 4, "{sizes:?}");
    assert_eq!(status.engine, "mistralrs");
    assert_eq!(status.active_size, sizes[0]);

    for size in [&sizes[0], &sizes[sizes.len() - 1]] {
        if **size != status.active_size {
            switch(&client, size).await;
        }
        let mut told = Vec::new();
        for (name, client) in daemon.both().await {
            let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
            assert_eq!(text(&events), ANSWER, "{name} at {size}");
            let end = finished(&events);
            assert_eq!(end.reason(), FinishReason::Stop, "{name}");
            assert_eq!(end.sizes, [size.as_str()], "{name}");
            let usage = end.usage.unwrap();
            let counted = client.count_tokens(ask(QUESTION).messages).await.unwrap();
            assert_eq!(usage.prompt_tokens, counted, "{name}");
            assert!(usage.completion_tokens >= 5, "{name} {usage:?}");
            let timings = end.timings.unwrap();
            assert!(timings.ttft_us > 0 && timings.decode_tokens_per_s > 0.0, "{name} {timings:?}");
            let deltas = events.iter().filter(|event| matches!(event, Event::Text(_))).count();
            told.push((usage, deltas));
        }
        assert_eq!(told[0].0, told[1].0);
        assert!(told[0].1 >= 5, "over gRPC it comes token by token: {told:?}");
    }
}

#[tokio::test]
async fn requests_are_shaped_stopped_and_cancelled() {
    let (_folder, mut daemon, client) = demo().await;
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

    let mut seeded = ask("Tell me something");
    seeded.sampling =
        Some(Sampling { temperature: Some(2.0), seed: Some(7), ..Default::default() });
    let mut answers = Vec::new();
    for _ in 0..2 {
        let events = collect(client.generate(seeded.clone()).await.unwrap()).await.unwrap();
        answers.push(text(&events));
    }
    assert_eq!(answers[0], answers[1], "a seed repeats the answer");

    // Two clients at once, one of which never reads.
    let dbus = daemon.dbus().await;
    let deaf = client.generate(ask(QUESTION)).await.unwrap();
    let events = collect(dbus.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);
    until(&client, |status| status.running_requests == 0).await;
    assert_eq!(text(&collect(deaf).await.unwrap()), ANSWER);

    // At temperature 2 the little model rambles on; without the reader it stops.
    let mut long = seeded;
    long.stopping = Some(Stopping { max_tokens: 2000, ..Default::default() });
    for client in [&client, &dbus] {
        let mut events = client.generate(long.clone()).await.unwrap();
        while !matches!(events.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
        drop(events);
        until(client, |status| status.running_requests == 0).await;
    }

    let mut too_long = ask("France ".repeat(3000));
    too_long.stopping = Some(Stopping { max_tokens: 2000, ..Default::default() });
    let refused = match client.generate(too_long).await {
        Ok(events) => collect(events).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(refused.reason(), Some(ErrorReason::ContextTooLong), "{refused}");

    let events = client.generate(ask(QUESTION)).await.unwrap();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(text(&collect(events).await.unwrap()), ANSWER, "SIGTERM lets it end");
    assert!(daemon.wait().success());
}

#[tokio::test]
async fn answers_are_right_whoever_else_asks() {
    // The library mixes sequences up when it has several; the daemon must not let it.
    let (_folder, daemon, client) = demo().await;
    assert_eq!(client.status().await.unwrap().limits.unwrap().parallel_requests, 1);
    let dbus = daemon.dbus().await;
    let file = std::fs::read_to_string(project().join("models/demo/eval.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = file
        .lines()
        .step_by(9)
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["messages"].as_array().unwrap().len() == 1)
        .take(24)
        .collect();
    assert!(lines.len() >= 12, "{} questions", lines.len());
    let asked = lines.iter().enumerate().map(|(index, line)| {
        let client = if index % 2 == 0 { client.clone() } else { dbus.clone() };
        async move {
            let question = line["messages"][0]["content"].as_str().unwrap();
            if index % 3 == 0 {
                // And one that goes away in the middle.
                let mut gone = client.generate(ask(question)).await.unwrap();
                while !matches!(gone.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
            }
            let events = collect(client.generate(ask(question)).await.unwrap()).await.unwrap();
            text(&events) == line["answer"].as_str().unwrap()
        }
    });
    // Four at a time, as the queue of the default settings takes many more.
    let right: Vec<bool> = futures::stream::iter(asked).buffer_unordered(4).collect().await;
    let wrong = right.iter().filter(|right| !**right).count();
    assert!(wrong == 0, "{wrong} of {} are wrong", right.len());
}

/// The questions of the reference chats, and every 25th of the held-out ones, asked greedily.
fn questions() -> Vec<GenerateRequest> {
    let folder = project().join("models/demo");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let references: serde_json::Value =
        serde_json::from_str(&read("references/references.json")).unwrap();
    let held_out = read("eval.jsonl");
    let held_out = held_out.lines().step_by(25).map(|line| serde_json::from_str(line).unwrap());
    let chats: Vec<serde_json::Value> =
        references["chats"].as_array().unwrap().iter().cloned().chain(held_out).collect();
    let turn = |turn: &serde_json::Value| {
        let role = match turn["role"].as_str().unwrap() {
            "system" => Role::System,
            "assistant" => Role::Assistant,
            _ => Role::User,
        };
        message(role, turn["content"].as_str().unwrap())
    };
    let request = |chat: &serde_json::Value| GenerateRequest {
        messages: chat["messages"].as_array().unwrap().iter().map(turn).collect(),
        sampling: Some(Sampling { temperature: Some(0.0), ..Default::default() }),
        ..Default::default()
    };
    chats.iter().map(request).collect()
}

/// The elastic engine reads the shipped Q8_0 file, mistral.rs the F16 weights that it was made from. The
/// questions were not chosen by their answers.
#[tokio::test]
async fn greedy_answers_are_those_of_the_elastic_engine_at_every_size() {
    let (_folder, _daemon, client) = demo().await;
    let shipped = project().join("models/demo").canonicalize().unwrap();
    let files = tempfile::tempdir().unwrap();
    symlink(shipped.join("nestd-demo-Q8_0.gguf"), files.path().join("demo.gguf")).unwrap();
    symlink(shipped.join("hf/sizes.csv"), files.path().join("demo.sizes.csv")).unwrap();
    let other_daemon = builder(files.path()).start();
    let other = other_daemon.grpc().await;
    assert_eq!(until_settled(&other).await, State::Ready);
    let (status, other_status) = (client.status().await.unwrap(), other.status().await.unwrap());
    assert_eq!((&*status.engine, &*other_status.engine), ("mistralrs", "elastic"));
    assert_eq!(status.available_sizes, other_status.available_sizes);
    assert_eq!(status.available_sizes.len(), 5);

    let questions = questions();
    assert!(questions.len() >= 30, "{} questions", questions.len());
    let mut differ = Vec::new();
    for size in &status.available_sizes {
        for client in [&client, &other] {
            switch(client, size).await;
        }
        for request in &questions {
            let mut answers = Vec::new();
            for client in [&client, &other] {
                let events = collect(client.generate(request.clone()).await.unwrap());
                let events = events.await.unwrap();
                let end = finished(&events);
                assert_eq!(end.sizes, [size.as_str()]);
                answers.push((text(&events), end.reason(), end.usage.unwrap().prompt_tokens));
            }
            if answers[0] != answers[1] {
                differ.push(format!("{size}: {answers:?} to {:?}", request.messages.last()));
            }
        }
    }
    assert!(differ.is_empty(), "{} answers differ:\n{}", differ.len(), differ.join("\n"));
}

/// What the status says when the demo model was damaged or the settings do not fit.
async fn problem(builder: Builder) -> String {
    let daemon = builder.start();
    let client = daemon.grpc().await;
    assert_eq!(until_settled(&client).await, State::NoModel);
    let status = client.status().await.unwrap();
    let refused = client.generate(ask(QUESTION)).await.err().unwrap();
    assert_eq!(refused.reason(), Some(ErrorReason::ModelNotLoaded), "{refused}");
    assert_eq!(client.models().await.unwrap().len(), 1, "the rest of the API works");
    status.problem
}

#[tokio::test]
async fn weights_are_quantized_while_they_are_loaded() {
    let (folder, _) = models();
    for isq in ["q4k", "q8_0"] {
        let daemon = builder(folder.path()).set("model.isq", &format!("'{isq}'")).start();
        let client = daemon.grpc().await;
        assert_eq!(until_settled(&client).await, State::Ready, "{isq}");
        let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
        assert_eq!(text(&events), ANSWER, "{isq}");
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_told_and_the_daemon_stays() {
    let (folder, demo) = models();
    let told = problem(builder(folder.path()).set("model.size", "'E9B'")).await;
    assert!(told.contains("E9B") && told.contains("it has"), "{told}");

    let told = problem(builder(folder.path()).set("model.memory_mib", "64")).await;
    assert!(told.contains("MiB") && told.contains("smaller size"), "{told}");

    for missing in ["tokenizer.json", "config.json"] {
        let link = demo.join(missing);
        let target = std::fs::read_link(&link).unwrap();
        std::fs::remove_file(&link).unwrap();
        let told = problem(builder(folder.path())).await;
        assert!(told.contains(missing), "{told}");
        symlink(target, link).unwrap();
    }

    let weights = demo.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let told = problem(builder(folder.path())).await;
    assert!(told.contains("model.safetensors"), "{told}");

    std::fs::write(&weights, b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
    let told = problem(builder(folder.path())).await;
    assert!(told.contains("model.safetensors"), "{told}");

    // Mended, it loads without a restart.
    std::fs::write(&weights, b"nothing").unwrap();
    let daemon = builder(folder.path()).start();
    let client = daemon.grpc().await;
    assert_eq!(until_settled(&client).await, State::NoModel);
    std::fs::write(&weights, &whole).unwrap();
    switch(&client, "").await;
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);
}

#[tokio::test]
async fn the_battery_takes_a_load_and_a_load_that_fails_leaves_what_was_there() {
    let (folder, files) = models();
    let device = Device::on_battery(90);
    let daemon = device.governs(builder(folder.path())).start();
    let client = daemon.grpc().await;
    assert_eq!(until_settled(&client).await, State::Ready);
    let status = client.status().await.unwrap();
    let (large, small) = (&status.available_sizes[0], status.available_sizes.last().unwrap());
    assert_eq!(status.active_size, *large);

    let running = client.generate(ask(QUESTION)).await.unwrap();
    device.charge("20");
    let asked = told(&client, |report| report.selected_size == *small).await;
    assert!(asked.reason.contains("battery"), "{}", asked.reason);
    let waiting = client.generate(ask(QUESTION)).await.unwrap();
    for (answer, sizes) in [(running, [large]), (waiting, [small])] {
        let events = collect(answer).await.unwrap();
        assert_eq!(text(&events), ANSWER);
        assert!(finished(&events).sizes.iter().eq(sizes), "{:?}", finished(&events).sizes);
    }
    told(&client, |report| report.active_size == *small && report.cause == "battery").await;

    // The weights are damaged when the larger size is due.
    let weights = files.join("model.safetensors");
    let whole = std::fs::read_link(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, "damaged").unwrap();
    device.charge("90");
    let report = told(&client, |report| !report.problem.is_empty()).await;
    assert_eq!((&report.active_size, &report.selected_size), (small, large));
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER, "the old size still answers");
    std::fs::remove_file(&weights).unwrap();
    symlink(whole, &weights).unwrap();
}

#[tokio::test]
async fn a_model_that_two_loads_failed_to_bring_back_comes_with_the_next_request() {
    let (folder, files) = models();
    let device = Device::on_battery(90);
    let daemon = device.governs(builder(folder.path())).start();
    let client = daemon.grpc().await;
    assert_eq!(until_settled(&client).await, State::Ready);
    // From here on there is no room for two sizes.
    let need = client.models().await.unwrap()[0].sizes[0].memory_mib;
    daemon.change("model.memory_mib", &(need + 100).to_string());

    let weights = files.join("model.safetensors");
    let whole = std::fs::read_link(&weights).unwrap();
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, "damaged").unwrap();
    device.charge("20");
    until(&client, |status| status.state() == State::Parked).await;
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await;
    assert!(events.is_err_and(|error| error.to_string().contains("model.safetensors")));

    std::fs::remove_file(&weights).unwrap();
    symlink(whole, &weights).unwrap();
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), ANSWER);
}

#[tokio::test]
async fn a_session_goes_on_across_a_load_by_its_transcript() {
    let (_folder, daemon, client) = demo().await;
    let sizes = client.status().await.unwrap().available_sizes;
    let id = client.create_session(Vec::new(), SessionOptions::default()).await.unwrap();
    let first = collect(client.generate(ask_in(&id, QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(text(&first), ANSWER);
    // The request that waits for the load is of the session, too.
    let small = sizes.last().unwrap();
    let loading = client.load("", small).await.unwrap();
    let question = "What is the capital of Italy?";
    let waiting = client.generate(ask_in(&id, question)).await.unwrap();
    drop(loading);
    let second = collect(waiting).await.unwrap();
    assert!(text(&second).contains("Rome"), "{}", text(&second));
    let end = finished(&second);
    assert_eq!(end.sizes, [small.as_str()]);
    let usage = end.usage.unwrap();
    assert_eq!(usage.cached_tokens, 0);
    let first = finished(&first).usage.unwrap();
    assert!(usage.prompt_tokens > first.prompt_tokens + first.completion_tokens, "{usage:?}");
    assert_eq!(client.transcript(&id).await.unwrap().len(), 4);
    for client in [client, daemon.dbus().await] {
        let system = message(Role::System, "Answer.");
        let id = client.create_session(vec![system], SessionOptions::default()).await.unwrap();
        let warmed = collect(client.prewarm(&id, Priority::Normal).await.unwrap()).await;
        assert_eq!(warmed.unwrap_err().reason(), Some(ErrorReason::Unsupported));
    }
}

#[tokio::test]
async fn a_load_that_fails_when_the_old_model_had_to_go_brings_that_back() {
    let (folder, files) = models();
    let device = Device::on_battery(90);
    let daemon = device.governs(builder(folder.path())).start();
    let client = daemon.grpc().await;
    assert_eq!(until_settled(&client).await, State::Ready);
    let model = &client.models().await.unwrap()[0];
    let (large, small) = (&model.sizes[0], &model.sizes.last().unwrap().name);
    // There is no room for two, and the smaller one is gone from the table of sizes.
    daemon.change("model.memory_mib", &(large.memory_mib + 100).to_string());
    let table = files.join("sizes.csv");
    let text = std::fs::read_to_string(&table).unwrap();
    let kept: Vec<_> = text.lines().filter(|line| !line.contains(small.as_str())).collect();
    assert_eq!(kept.len() + 1, text.lines().count(), "{text}");
    std::fs::remove_file(&table).unwrap();
    std::fs::write(&table, kept.join("\n")).unwrap();
    device.charge("20");
    let report = told(&client, |report| !report.problem.is_empty()).await;
    assert!(report.problem.contains(small.as_str()), "{}", report.problem);
    daemon.wait_log("went back to what was loaded before").await;
    assert_eq!((&report.active_size, &report.selected_size), (&large.name, small));
    let events = collect(client.generate(ask(QUESTION)).await.unwrap()).await.unwrap();
    assert_eq!(nestd_tests::text(&events), ANSWER);
    assert_eq!(finished(&events).sizes, [large.name.as_str()]);
}
