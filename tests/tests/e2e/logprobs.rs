//! How likely the tokens of an answer were: the same over both transports, and what the engine itself
//! computes.

use std::collections::HashMap;

use nestd_client::v1::{
    ErrorReason, GenerateRequest, Sampling, Stopping, TokenLogprobs, generate_event::Event,
};
use nestd_client::{Client, Error, ask};
use nestd_elastic::chat::Chat;
use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{Sequence, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::text::sample::{Logprobs, greedy, logprobs};
use nestd_elastic::text::template::Turn;
use nestd_proto::dbus::{NAME, PATH};
use nestd_tests::{Builder, collect, finished, project, text};
use zbus::Variant;

use crate::elastic::demo;

const QUESTION: &str = "What is the capital of France?";

fn request(top: u32) -> GenerateRequest {
    let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
    GenerateRequest { top_logprobs: Some(top), sampling: Some(sampling), ..ask(QUESTION) }
}

async fn told(client: &Client, request: GenerateRequest) -> (Vec<Event>, Vec<TokenLogprobs>) {
    let events = collect(client.generate(request).await.unwrap()).await.unwrap();
    let logprobs = events.iter().filter_map(|event| match event {
        Event::Text(text) => Some(text.logprobs.clone()),
        _ => None,
    });
    let logprobs = logprobs.flatten().collect();
    (events, logprobs)
}

/// The greedy answer's tokens by the engine itself, with five of the likeliest each.
fn computed() -> Vec<(u32, Logprobs)> {
    let model = Model::open(&project().join("models/demo/nestd-demo-Q8_0.gguf")).unwrap();
    let chat = Chat::read(&model).unwrap();
    let turns = [Turn { role: "user", text: QUESTION }];
    let mut tokens = chat.template.encode_chat(&chat.tokenizer, &turns).unwrap();
    let pool = Pool::new(&Settings { threads: 2, ..Settings::default() }).unwrap();
    let mut runner = Runner::new(pool, None);
    let mut sequence = Sequence::new(&Shape::new(model.config(), 256, Store::F16));
    let mut answer = Vec::new();
    loop {
        let part = Part { sequence: &mut sequence, tokens: &tokens, logits: Logits::Last };
        let logits = runner.step(&model, &model.full(), &mut [part]).unwrap();
        let token = greedy(logits).unwrap();
        let likely = logprobs(logits, token, 5).unwrap();
        let token = u32::try_from(token).unwrap();
        answer.push((token, likely));
        if chat.tokenizer.ends(token) {
            return answer;
        }
        tokens = vec![token];
    }
}

#[tokio::test]
async fn every_token_is_told_with_the_likeliest_as_the_engine_computes_them() {
    let (_folder, _, daemon, _) = demo().await;
    let computed = computed();
    let near = |told: f64, computed: f32| (told - f64::from(computed)).abs() < 1e-3;
    for (name, client) in daemon.both().await {
        let (events, logprobs) = told(&client, request(5)).await;
        assert_eq!(logprobs.len(), computed.len(), "{name}");
        let made = finished(&events).usage.unwrap().completion_tokens as usize;
        assert_eq!(logprobs.len(), made, "{name}");
        for (told, (token, Logprobs { chosen, top })) in logprobs.iter().zip(&computed) {
            let drawn = told.token.as_ref().unwrap();
            assert_eq!(drawn.id, *token, "{name}: {told:?}");
            assert!(near(drawn.logprob, *chosen), "{name}: {told:?} and {chosen}");
            assert_eq!(told.top.len(), 5, "{name}");
            assert_eq!(told.top[0], *drawn, "{name}: the greedy one is the likeliest");
            assert!(told.top.is_sorted_by(|a, b| a.logprob >= b.logprob), "{name}: {told:?}");
            let sum: f64 = told.top.iter().map(|one| one.logprob.exp()).sum();
            assert!(sum <= 1.0 + 1e-6, "{name}: {sum}");
            for (told, (_, computed)) in told.top.iter().zip(top) {
                assert!(near(told.logprob, *computed), "{name}: {told:?} and {computed}");
            }
        }
        // The last token ends the turn: it is no text.
        let texts = logprobs.iter().map(|told| told.token.as_ref().unwrap().text.as_str());
        let texts: Vec<&str> = texts.collect();
        let (last, texts) = texts.split_last().unwrap();
        assert_eq!((*last, texts.concat()), ("<end_of_turn>", text(&events)), "{name}");

        let (events, alone) = told(&client, request(0)).await;
        assert_eq!(alone.len(), made, "{name}");
        assert!(alone.iter().all(|told| told.token.is_some() && told.top.is_empty()), "{name}");
        assert_eq!(text(&events), "The capital of France is Paris.", "{name}");
        let (_, none) = told(&client, ask(QUESTION)).await;
        assert!(none.is_empty(), "{name}: {none:?}");
    }
}

#[tokio::test]
async fn what_changes_a_draw_does_not_change_what_is_told() {
    let (_folder, _, daemon, client) = demo().await;
    let (_, plain) = told(&client, request(20)).await;
    for (name, client) in daemon.both().await {
        // The first token is drawn from the same logits, whatever the schema and the penalties say.
        let mut bent = request(20);
        bent.json_schema = r#"{"enum": ["no", "yes"]}"#.into();
        bent.sampling.as_mut().unwrap().presence_penalty = Some(2.0);
        let (events, logprobs) = told(&client, bent).await;
        assert!(["\"no\"", "\"yes\""].contains(&text(&events).as_str()), "{name}");
        assert_eq!(logprobs[0].top.len(), 20, "{name}");
        for (bent, plain) in logprobs[0].top.iter().zip(&plain[0].top) {
            assert!((bent.logprob - plain.logprob).abs() < 1e-3, "{name}: {bent:?} {plain:?}");
        }
        let drawn = logprobs[0].token.as_ref().unwrap();
        assert!(drawn.text.starts_with('"') && drawn.logprob < logprobs[0].top[0].logprob);

        // A stop string's tokens are told; its text is not.
        let mut stopped = request(0);
        stopped.stopping = Some(Stopping { stop: vec![" of".into()], ..Stopping::default() });
        let (events, logprobs) = told(&client, stopped).await;
        assert_eq!(text(&events), "The capital", "{name}");
        let made = finished(&events).usage.unwrap().completion_tokens as usize;
        assert_eq!(logprobs.len(), made, "{name}");
        let texts = logprobs.iter().map(|told| told.token.as_ref().unwrap().text.as_str());
        assert!(texts.collect::<String>().contains(" of"), "{name}");
    }
}

async fn refusal(client: &Client, request: GenerateRequest) -> Error {
    match client.generate(request).await {
        Ok(events) => collect(events).await.unwrap_err(),
        Err(error) => error,
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_refused_by_name() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        for top in [21, u32::MAX] {
            let refused = refusal(&client, request(top)).await;
            assert_eq!(refused.reason(), Some(ErrorReason::InvalidArgument), "{name}: {refused}");
            assert!(refused.to_string().starts_with("top_logprobs: "), "{name}: {refused}");
        }
        let refused = refusal(&client, request(0)).await;
        assert_eq!(refused.reason(), Some(ErrorReason::Unsupported), "{name}: {refused}");
        assert!(refused.to_string().contains("top_logprobs"), "{name}: {refused}");
    }
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let messages = vec![("user", vec![("text", Variant::from("hello"))])];
    for value in [Variant::from("5"), Variant::from(5_i32), Variant::from(-1_i64)] {
        let options = HashMap::from([("top_logprobs", value)]);
        let call = (&messages, &options);
        let refused = bus
            .call_method(Some(NAME), PATH, Some("org.nestd.Manager1"), "Generate", &call)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("InvalidArgument"), "{refused}");
        assert!(refused.to_string().contains("top_logprobs"), "{refused}");
    }
    // A pipe has no place for them.
    let (_reader, writer) = std::io::pipe().unwrap();
    let options = HashMap::from([("top_logprobs", Variant::from(1_u32))]);
    let call = (zbus::Fd::from(std::os::fd::OwnedFd::from(writer)), &messages, &options);
    let refused = bus
        .call_method(Some(NAME), PATH, Some("org.nestd.Manager1"), "GenerateToFd", &call)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("Unsupported"), "{refused}");
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_them() {
    let (_folder, _, daemon, _) = demo().await;
    let mut long = request(20);
    long.json_schema = r#"{"type": "string", "minLength": 300}"#.into();
    long.stopping = Some(Stopping { max_tokens: 600, ..Stopping::default() });
    for (name, client) in daemon.both().await {
        let events = client.generate(long.clone()).await.unwrap();
        nestd_tests::until(&client, |status| status.running_requests == 0).await;
        let events = collect(events).await.unwrap();
        let logprobs = events.iter().filter_map(|event| match event {
            Event::Text(text) => Some(text.logprobs.len()),
            _ => None,
        });
        let made = finished(&events).usage.unwrap().completion_tokens as usize;
        assert_eq!(logprobs.sum::<usize>(), made, "{name}");
    }
}
