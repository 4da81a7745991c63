//! What an engine still does for a request that was cancelled, counted in its steps: nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use futures::{FutureExt, StreamExt};
use nestd::engine::catalog::Catalog;
use nestd::engine::{self, Engine, Isq, Job, Plan, Settings, SimSettings, Step, elastic};
use nestd::stream::{self, Events};
use nestd::types::{
    Event, FinishReason, GenerateRequest, Message, Part, Priority, Role, Sampling, Stopping,
};

/// The demo model's file, or the simulator.
fn load(model: &str) -> Box<dyn Engine> {
    let engine = Settings {
        isq: Isq::None,
        context_tokens: 2048,
        parallel_requests: 4,
        elastic: elastic::Settings::default(),
        cache_dir: std::env::temp_dir(),
        sim: SimSettings {
            load_ms: 0,
            tokens_per_s: 1e6,
            prefill_tokens_per_s: 1e6,
            elastic: true,
        },
    };
    let settings = engine.clone();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let entry = Catalog { dir, sim: true, prefer: None, engine }.find(model).unwrap();
    let info = entry.info.unwrap();
    let size = info.sizes[0].name.clone();
    let plan = Plan { model: entry.model, path: entry.path, written: None, info, size, settings };
    engine::load(&plan, &|_| {}).unwrap()
}

fn request(words: usize, priority: Priority) -> GenerateRequest {
    let text = "word ".repeat(words);
    GenerateRequest {
        messages: vec![Message { role: Role::User, parts: vec![Part::Text(text)] }],
        // All tokens may be drawn, so that one that ends the answer seldom is.
        sampling: Sampling {
            temperature: Some(2.0),
            top_k: Some(1000),
            top_p: Some(1.0),
            seed: Some(7),
            ..Sampling::default()
        },
        stopping: Stopping { max_tokens: 400, ..Stopping::default() },
        priority,
        ..GenerateRequest::default()
    }
}

fn start(engine: &mut dyn Engine, id: u64, request: GenerateRequest) -> Events {
    let (sink, events) = stream::channel(id, 1 << 20);
    engine.start(Job { request, session: None, sink, place: Box::new(()) });
    events
}

/// What has come so far: tokens of the prompt that were read, pieces of text, and the last event.
fn seen(events: &mut Events) -> (u32, usize, Option<Event>) {
    let (mut read, mut texts, mut last) = (0, 0, None);
    while let Some(Some(event)) = events.next().now_or_never() {
        match &event {
            Event::Prefill { done_tokens, .. } => read = *done_tokens,
            Event::Text(_) => texts += 1,
            _ => {}
        }
        last = Some(event);
    }
    (read, texts, last)
}

fn cancelled(last: Option<Event>) -> u32 {
    match last {
        Some(Event::Finished(end)) if end.reason == FinishReason::Cancelled => {
            end.usage.completion_tokens
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cancel_in_decode_costs_no_token_more() {
    for model in ["nestd-demo-Q8_0", "sim"] {
        let mut engine = load(model);
        let mut events = start(&mut *engine, 1, request(200, Priority::Normal));
        let mut texts = 0;
        while texts < 3 {
            engine.step();
            let (_, new, last) = seen(&mut events);
            assert!(!matches!(last, Some(Event::Finished(_) | Event::Failed(_))), "{last:?}");
            texts += new;
        }
        events.stopper().cancel();
        engine.step();
        let (_, more, last) = seen(&mut events);
        assert_eq!(more, 0, "{model}");
        assert!(cancelled(last) >= 3, "{model}");
        assert_eq!(engine.step(), Step::Idle, "{model}: nothing is left to do");
    }
}

#[test]
fn a_cancel_in_prefill_costs_no_chunk_more() {
    let mut engine = load("nestd-demo-Q8_0");
    let mut events = start(&mut *engine, 1, request(300, Priority::Normal));
    engine.step();
    let (read, texts, last) = seen(&mut events);
    let Some(Event::Prefill { total_tokens, .. }) = last else { panic!("{last:?}") };
    assert!(
        read > 0 && read < total_tokens / 2 && texts == 0,
        "{read} of {total_tokens} were read"
    );
    events.stopper().cancel();
    assert_eq!(engine.step(), Step::Idle, "the step after it reads nothing");
    let (read, texts, last) = seen(&mut events);
    assert_eq!((read, texts, cancelled(last)), (0, 0, 0));
}

#[test]
fn a_cancel_of_one_leaves_the_others_as_they_are() {
    let mut engine = load("nestd-demo-Q8_0");
    let mut first = start(&mut *engine, 1, request(20, Priority::Normal));
    let mut second = start(&mut *engine, 2, request(20, Priority::Normal));
    while seen(&mut second).1 == 0 {
        engine.step();
    }
    seen(&mut first);
    first.stopper().deadline();
    engine.step();
    assert!(
        matches!(seen(&mut first).2, Some(Event::Finished(end)) if end.reason == FinishReason::Deadline)
    );
    assert_eq!(seen(&mut second).1, 1, "the same step made its next token");
}
