//! What the conversions send and read, by way of real D-Bus messages.

use std::collections::HashMap;

use nestd_proto::v1::{Media, Part, Sampling, Stopping, Tool};
use zbus::Message as Signal;

use super::*;
use crate::{ask, message};

type Dict = HashMap<String, OwnedVariant>;

/// What the other side reads of a value.
fn on_the_bus<T: serde::Serialize + Type>(value: &T) -> Signal {
    Signal::method_call("/", "M").destination(":1.2").build(&(value,)).unwrap()
}

fn signal<T: serde::Serialize + zbus::wire::DynamicType>(name: &str, body: &T) -> Signal {
    Signal::signal("/r", "org.nestd.Request1", name).build(body).unwrap()
}

fn dict<const N: usize>(pairs: [(&str, Variant<'static>); N]) -> Dict {
    pairs.into_iter().map(|(key, value)| (key.into(), value.try_into().unwrap())).collect()
}

#[test]
fn a_conversation_is_roles_and_parts() {
    let mut conversation = vec![message(Role::System, "Be brief."), message(Role::User, "Hello")];
    conversation.push(Message {
        role: 77,
        parts: vec![Part { kind: Some(Kind::Image(Media::default())) }, Part { kind: None }],
    });
    let turns = messages(&conversation).unwrap();
    let sent = on_the_bus(&turns);
    assert_eq!(sent.body().signature().to_string(), "a(sa(sv))");
    let read: Vec<Turn> = sent.body().deserialize().unwrap();
    assert_eq!(read[0].0, "system");
    assert_eq!(read[1].1[0].0, "text");
    assert_eq!(*read[1].1[0].1, Variant::from("Hello"));
    assert_eq!((read[2].0.as_str(), read[2].1[0].0.as_str()), ("77", "image"));
}

#[test]
fn a_nul_is_refused_before_the_bus_drops_the_connection() {
    let error = messages(&[message(Role::User, "a\0b")]).unwrap_err();
    assert_eq!(error.reason(), Some(ErrorReason::InvalidArgument));
    assert!(error.to_string().starts_with("messages[0].parts[0].text: "), "{error}");
    assert!(LoadOptions::new("a\0", "c0").is_err());
}

#[test]
fn options_hold_what_was_set_and_no_more() {
    let sent = on_the_bus(&Options::new(ask("?"), "c0".into()).unwrap());
    assert_eq!(sent.body().signature().to_string(), "a{sv}");
    let read: Dict = sent.body().deserialize().unwrap();
    assert_eq!(read, dict([("handle_token", "c0".into())]));

    let request = GenerateRequest {
        sampling: Some(Sampling {
            temperature: Some(0.0),
            top_k: Some(40),
            seed: Some(7),
            ..Sampling::default()
        }),
        stopping: Some(Stopping { max_tokens: 5, stop: vec!["\n".into()], deadline_ms: 900 }),
        tools: vec![Tool::default()],
        top_logprobs: Some(0),
        ..ask("?")
    };
    let sent = on_the_bus(&Options::new(request, "c1".into()).unwrap());
    let read: Dict = sent.body().deserialize().unwrap();
    let tools = vec![(String::new(), String::new(), String::new())];
    assert_eq!(
        read,
        dict([
            ("temperature", 0.0.into()),
            ("top_k", 40_u32.into()),
            ("seed", 7_u64.into()),
            ("max_tokens", 5_u32.into()),
            ("stop", vec!["\n"].into()),
            ("deadline_ms", 900_u64.into()),
            ("top_logprobs", 0_u32.into()),
            ("tools", tools.into()),
            ("handle_token", "c1".into()),
        ])
    );
}

#[test]
fn signals_are_the_events_of_grpc() {
    let read = |name, body: &dyn Fn(&str) -> Signal| event(&body(name)).unwrap();
    assert_eq!(
        read("Queued", &|name| signal(name, &3_u32)),
        Some(Event::Queued(Queued { position: 3 }))
    );
    assert_eq!(
        read("Loading", &|name| signal(name, &0.5_f64)),
        Some(Event::Loading(Loading { fraction: 0.5 }))
    );
    assert_eq!(
        read("Prefill", &|name| signal(name, &(1_u32, 2_u32))),
        Some(Event::Prefill(Prefill { done_tokens: 1, total_tokens: 2 }))
    );
    assert_eq!(
        read("Text", &|name| signal(name, &"Hi")),
        Some(Event::Text(Text { delta: "Hi".into(), logprobs: vec![] }))
    );
    let token = |id: u32| (id, "Hi".to_owned(), -0.5);
    let logprob = |id| Logprob { id, text: "Hi".into(), logprob: -0.5 };
    let drawn = TokenLogprobs { token: Some(logprob(1)), top: vec![logprob(2), logprob(1)] };
    assert_eq!(
        read("TextLogprobs", &|name| {
            signal(name, &("Hi", vec![(token(1), vec![token(2), token(1)])]))
        }),
        Some(Event::Text(Text { delta: "Hi".into(), logprobs: vec![drawn] }))
    );
    assert_eq!(
        read("SizeChanged", &|name| signal(name, &("large", "small", "memory"))),
        Some(Event::SizeChanged(SizeChanged {
            from: "large".into(),
            to: "small".into(),
            reason: "memory".into(),
        }))
    );
    assert_eq!(read("Later", &|name| signal(name, &1_u8)), None);
}

#[test]
fn finished_carries_usage_and_timings() {
    let result = dict([
        ("reason", "length".into()),
        ("prompt_tokens", 9_u32.into()),
        ("completion_tokens", 4_u32.into()),
        ("ttft_us", 1500_u64.into()),
        ("decode_tokens_per_s", 12.5.into()),
        ("sizes", vec!["large"].into()),
    ]);
    let Some(Event::Finished(end)) = event(&signal("Finished", &result)).unwrap() else {
        panic!("not the end")
    };
    assert_eq!(end.reason(), FinishReason::Length);
    assert_eq!(end.usage.unwrap().prompt_tokens, 9);
    assert_eq!(end.timings.unwrap().ttft_us, 1500);
    assert_eq!(end.sizes, ["large"]);
    let load = event(&signal("Finished", &dict([("reason", "stop".into())])));
    assert!(matches!(load, Ok(Some(Event::Finished(_)))));
    let odd = event(&signal("Finished", &dict([("reason", "tired".into())])));
    assert!(matches!(odd, Err(Error::Unexpected(_))));
}

#[test]
fn failed_is_the_error_that_a_call_would_give() {
    let details = dict([("buffer_bytes", 65536_u64.into())]);
    let short = event(&signal("Failed", &("Lagged", "too slow", &details))).unwrap_err();
    let full = signal("Failed", &("org.nestd.Error.Lagged", "too slow", &details));
    assert_eq!(event(&full).unwrap_err(), short);
    assert_eq!(short.reason(), Some(ErrorReason::Lagged));
}

#[test]
fn a_report_and_a_model_are_read_whole() {
    let report = dict([
        ("version", "0.1.0".into()),
        ("state", "ready".into()),
        ("model", "demo".into()),
        ("engine", "sim".into()),
        ("active_size", "large".into()),
        ("available_sizes", vec!["large", "small"].into()),
        ("problem", "".into()),
        ("loading_fraction", 0.0.into()),
        ("context_tokens", 8192_u32.into()),
        ("max_tokens", 100_u32.into()),
        ("default_max_tokens", 50_u32.into()),
        ("parallel_requests", 2_u32.into()),
        ("queued_requests", 8_u32.into()),
        ("prompt_bytes", 1024_u32.into()),
        ("running", 1_u32.into()),
        ("queued", 3_u32.into()),
        ("a_later_key", 1_u32.into()),
    ]);
    let status: Status = signal("S", &report).body().deserialize().unwrap();
    let status = StatusReport::try_from(status).unwrap();
    assert_eq!(status.state(), State::Ready);
    assert_eq!(status.available_sizes, ["large", "small"]);
    assert_eq!((status.running_requests, status.queued_requests), (1, 3));
    assert_eq!(status.limits.unwrap().queued_requests, 8);

    let model = dict([
        ("name", "demo".into()),
        ("engine", "sim".into()),
        ("context_tokens", 8192_u32.into()),
        ("loaded", true.into()),
        ("problem", "".into()),
        ("sizes", vec![("large", 2.0, 7_u64)].into()),
    ]);
    let models: Vec<ModelEntry> = signal("M", &vec![model]).body().deserialize().unwrap();
    let model = Model::from(models.into_iter().next().unwrap());
    assert_eq!(model.sizes[0].memory_mib, 7);
    assert!(model.loaded);
}
