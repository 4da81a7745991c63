//! The main job, on the simulator: a prompt over each transport is answered token by token.

use std::io::Read;
use std::os::fd::AsFd;

use futures::StreamExt;
use nestd_client::v1::{
    self, ErrorReason, FinishReason, GenerateRequest, Priority, Role, Sampling, Stopping,
};
use nestd_client::{Client, ask, message};
use nestd_proto::v1::generate_event::Event;
use nestd_tests::{Builder, Daemon, collect, finished, so_far, text, until};

fn words(count: u32) -> String {
    (0..count).fold(String::new(), |text, number| text + &format!("word{number} "))
}

fn long() -> String {
    words(30)
}

#[tokio::test]
async fn both_transports_tell_the_same() {
    let daemon = Builder::sim().start();
    let mut told = Vec::new();
    for (name, client) in daemon.both().await {
        let mut request = ask(long());
        request.messages.insert(0, message(Role::System, "Repeat."));
        request.sampling = Some(Sampling { temperature: Some(0.0), ..Sampling::default() });
        request.stopping = Some(Stopping { max_tokens: 20, ..Stopping::default() });
        assert_eq!(client.count_tokens(request.messages.clone()).await.unwrap(), 35, "{name}");

        let events = collect(client.generate(request).await.unwrap()).await.unwrap();
        assert_eq!(text(&events), words(20), "{name}");
        let end = finished(&events);
        assert_eq!(end.reason(), FinishReason::Length, "{name}");
        let usage = v1::Usage { prompt_tokens: 35, cached_tokens: 0, completion_tokens: 20 };
        assert_eq!(end.usage, Some(usage), "{name}");
        assert_eq!(end.sizes, ["large"], "{name}");
        let timings = end.timings.unwrap();
        assert!(timings.ttft_us >= timings.queue_us && timings.ttft_us > 0, "{name} {timings:?}");
        assert!(timings.decode_tokens_per_s > 0.0, "{name} {timings:?}");
        let deltas = events.iter().filter(|event| matches!(event, Event::Text(_))).count();
        assert!(deltas >= 5, "{name}: the answer came in {deltas} pieces, not token by token");

        // What depends on time aside, the kinds come in the same order.
        let mut kinds: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Queued(_) => "queued",
                Event::Loading(_) => "loading",
                Event::Prefill(_) => "prefill",
                Event::Text(_) => "text",
                Event::SizeChanged(_) => "size_changed",
                Event::Finished(_) => "finished",
            })
            .collect();
        kinds.dedup();
        told.push(kinds);
    }
    assert_eq!(told[0], told[1]);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        let mut request = ask("one two three four");
        request.stopping = Some(Stopping { stop: vec!["three".into()], ..Stopping::default() });
        let events = collect(client.generate(request).await.unwrap()).await.unwrap();
        assert_eq!(text(&events), "one two ", "{name}");
        assert_eq!(finished(&events).reason(), FinishReason::Stop, "{name}");
    }
}

#[tokio::test]
async fn the_status_is_the_same_on_both() {
    let daemon = Builder::sim().start();
    let [(_, grpc), (_, dbus)] = daemon.both().await;
    let status = until(&grpc, |status| status.state() == v1::State::Ready).await;
    assert_eq!(status, dbus.status().await.unwrap());
    assert_eq!(status.active_size, "large");
    assert_eq!(status.available_sizes, ["large", "small"]);
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(status.limits.unwrap().context_tokens, 4096);
}

/// Asks with a pipe for the answer; gives the pipe's reading end and the request's path.
async fn ask_to_fd(
    daemon: &Daemon,
    request: &str,
) -> (zbus::Connection, std::io::PipeReader, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let part = ("text", zbus::Variant::from(request));
    let messages = [("user", vec![part])];
    let options = std::collections::HashMap::<&str, zbus::Variant<'_>>::new();
    let fd = zbus::Fd::from(writer.as_fd());
    let path: zbus::OwnedObjectPath = bus
        .call_method(
            Some(nestd_proto::dbus::NAME),
            nestd_proto::dbus::PATH,
            Some("org.nestd.Manager1"),
            "GenerateToFd",
            &(fd, &messages[..], options),
        )
        .await
        .unwrap()
        .body()
        .deserialize()
        .unwrap();
    (bus, reader, path.to_string())
}

#[tokio::test]
async fn text_goes_into_a_pipe_and_the_outcome_onto_the_object() {
    let daemon = Builder::sim().start();
    let (bus, mut reader, path) = ask_to_fd(&daemon, &long()).await;
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        reader.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap();
    assert_eq!(answer, long());
    let outcome: std::collections::HashMap<String, zbus::OwnedVariant> = bus
        .call_method(
            Some(nestd_proto::dbus::NAME),
            path.as_str(),
            Some("org.freedesktop.DBus.Properties"),
            "Get",
            &("org.nestd.Request1", "Outcome"),
        )
        .await
        .unwrap()
        .body()
        .deserialize::<zbus::OwnedVariant>()
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!(<&str>::try_from(&*outcome["reason"]).unwrap(), "stop");
    assert_eq!(u32::try_from(&*outcome["completion_tokens"]).unwrap(), 30);
}

#[tokio::test]
async fn a_pipe_whose_reader_leaves_cancels_the_request() {
    let daemon = Builder::sim().start();
    let client = daemon.grpc().await;
    let (_bus, reader, _) = ask_to_fd(&daemon, &long().repeat(20)).await;
    until(&client, |status| status.running_requests == 1).await;
    drop(reader);
    until(&client, |status| status.running_requests == 0).await;
}

#[tokio::test]
async fn requests_run_side_by_side_and_then_wait() {
    let daemon = Builder::sim().set("limits.parallel_requests", "2").start();
    let client = daemon.dbus().await;
    let request = |client: Client| async move {
        collect(client.generate(ask(long())).await.unwrap()).await.unwrap()
    };
    let requests = futures::future::join_all((0..4).map(|_| request(client.clone()))).await;
    let queued = requests
        .iter()
        .filter(|events| events.iter().any(|event| matches!(event, Event::Queued(_))));
    assert!(queued.count() >= 2, "two of four wait");
    for events in &requests {
        assert_eq!(text(events), long());
    }
}

#[tokio::test]
async fn the_first_signal_is_not_lost_without_a_token() {
    // The library subscribes before it calls; a client that learns the path from the reply must
    // get every signal as well, since the first one is sent after the reply.
    let daemon = Builder::sim().start();
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let mut messages = zbus::MessageStream::from(&bus);
    let part = ("text", zbus::Variant::from("hello"));
    let conversation = [("user", vec![part])];
    let options = std::collections::HashMap::<&str, zbus::Variant<'_>>::new();
    bus.call_method(
        Some(nestd_proto::dbus::NAME),
        nestd_proto::dbus::PATH,
        Some("org.nestd.Manager1"),
        "Generate",
        &(&conversation[..], options),
    )
    .await
    .unwrap();
    let mut order = Vec::new();
    while order.last().is_none_or(|last| last != "Finished") {
        let message = messages.next().await.unwrap().unwrap();
        let header = message.header();
        match header.message_type() {
            zbus::message::Type::MethodReturn => order.push("reply".to_owned()),
            zbus::message::Type::Signal
                if header.interface().is_some_and(|i| i == "org.nestd.Request1") =>
            {
                order.push(header.member().unwrap().to_string());
            }
            _ => {}
        }
    }
    let reply = order.iter().position(|what| what == "reply");
    let first = order.iter().position(|what| what != "reply");
    assert!(reply < first, "{order:?}");
    assert!(order.contains(&"Text".to_owned()), "{order:?}");
}

#[tokio::test]
async fn requests_belong_to_their_callers() {
    let daemon = Builder::sim().start();
    let (_bus, _reader, path) = ask_to_fd(&daemon, &long()).await;
    let address = daemon.bus_address();
    let other = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let name = Some(nestd_proto::dbus::NAME);
    let request = Some("org.nestd.Request1");
    let properties = Some("org.freedesktop.DBus.Properties");
    let outcome = ("org.nestd.Request1", "Outcome");
    for (member, reply) in [
        ("Cancel", other.call_method(name, path.as_str(), request, "Cancel", &()).await),
        ("Outcome", other.call_method(name, path.as_str(), properties, "Get", &outcome).await),
    ] {
        match reply {
            Err(zbus::Error::MethodError(name, ..)) => {
                assert_eq!(name.as_str(), "org.nestd.Error.NotAllowed", "{member}");
            }
            other => panic!("{member}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_a_later_version_brings_is_refused_by_name() {
    let daemon = Builder::sim().start();
    let request = |change: fn(&mut GenerateRequest)| {
        let mut request = ask("hello");
        change(&mut request);
        request
    };
    let image = |request: &mut GenerateRequest| {
        let kind =
            v1::part::Kind::Image(v1::Media { mime_type: "image/png".into(), data: vec![1] });
        request.messages[0].parts.push(v1::Part { kind: Some(kind) });
    };
    for (what, request) in [
        ("tools", request(|request| request.tools.push(v1::Tool::default()))),
        ("messages[0].parts[1].image", request(image)),
    ] {
        for (name, client) in daemon.both().await {
            let error = client.generate(request.clone()).await.err().expect(what);
            assert_eq!(
                error.reason(),
                Some(v1::ErrorReason::Unsupported),
                "{name} {what}: {error}"
            );
            assert!(error.to_string().starts_with(what), "{name} {what}: {error}");
        }
    }
}

#[tokio::test]
async fn what_an_engine_cannot_do_is_refused_by_name() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        let mut request = ask("hello");
        request.json_schema = "{}".into();
        let error = collect(client.generate(request).await.unwrap()).await.unwrap_err();
        assert_eq!(error.reason(), Some(v1::ErrorReason::Unsupported), "{name}: {error}");
        assert!(error.to_string().starts_with("json_schema"), "{name}: {error}");
    }
}

#[tokio::test]
async fn signals_of_a_request_go_to_its_caller_alone() {
    let daemon = Builder::sim().start();
    let address = daemon.bus_address();
    let other = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(nestd_proto::dbus::NAME);
    let rule = rule.build().unwrap();
    let mut heard = zbus::MessageStream::for_match_rule(rule, &other, None).await.unwrap();
    let client = daemon.dbus().await;
    let events = collect(client.generate(ask("not for others")).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "not for others");
    // A broadcast that comes later shows that the other one listens; nothing was before it.
    client.load("", "small").await.unwrap().for_each(|_| async {}).await;
    let mut changed = std::collections::HashMap::new();
    while !changed.contains_key("ActiveSize") {
        let signal = heard.next().await.unwrap().unwrap();
        let member = signal.header().member().map(ToString::to_string);
        // The governor's own broadcast, which has other arguments.
        if member.as_deref() == Some("SizeChanged") {
            continue;
        }
        assert_eq!(member.as_deref(), Some("PropertiesChanged"));
        let body = signal.body();
        let (interface, properties, _): (
            String,
            std::collections::HashMap<String, zbus::OwnedVariant>,
            Vec<String>,
        ) = body.deserialize().unwrap();
        match interface.as_str() {
            "org.nestd.Manager1" => changed.extend(properties),
            other => assert_eq!(other, "org.nestd.Governor1"),
        }
    }
    assert_eq!(<&str>::try_from(&*changed["ActiveSize"]).unwrap(), "small");
}

#[tokio::test]
async fn an_interactive_request_goes_first_and_background_work_stands_still() {
    let daemon = Builder::sim().set("limits.parallel_requests", "1").start();
    for (name, client) in daemon.both().await {
        let request = |text: &str, priority: Priority| {
            let mut request = ask(text);
            request.priority = priority.into();
            request
        };
        let words = "word ".repeat(40);
        let mut background = client.generate(request(&words, Priority::Background)).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        // One place, and it is taken: a normal request waits, an interactive one does not.
        let normal = client.generate(request("one", Priority::Normal)).await.unwrap();
        let interactive = client.generate(request(&words, Priority::Interactive)).await.unwrap();
        let interactive = collect(interactive).await.unwrap();
        assert_eq!(text(&interactive), words, "{name}");
        let before = so_far(&mut background);
        assert!(before.len() < words.len() / 2, "{name}: it stood still, but for {before:?}");
        assert_eq!(text(&collect(normal).await.unwrap()), "one", "{name}");
        let rest = collect(background).await.unwrap();
        assert_eq!(before + &text(&rest), words, "{name}: all tokens there");

        let mut wrong = ask("hello");
        wrong.priority = 77;
        let refused = client.generate(wrong).await.err().unwrap();
        assert_eq!(refused.reason(), Some(ErrorReason::InvalidArgument), "{name}");
        assert!(refused.to_string().starts_with("priority"), "{name}: {refused}");
    }
}
