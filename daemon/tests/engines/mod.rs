//! An engine by itself, stepped by hand.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, dead_code)]

use std::path::Path;

use futures::{FutureExt, StreamExt};
use nestd::engine::catalog::Catalog;
use nestd::engine::{self, Engine, Isq, Job, Plan, Pulse, Settings, SimSettings, elastic};
use nestd::stream::{self, Events};
use nestd::types::{Event, GenerateRequest, Message, Part, Priority, Role, Sampling, Stopping};

/// The demo model's file, or the simulator.
pub fn load(model: &str) -> Box<dyn Engine> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    load_with(model, &dir, elastic::Settings::default())
}

/// A model in a folder, with these settings.
pub fn load_with(model: &str, dir: &Path, elastic: elastic::Settings) -> Box<dyn Engine> {
    let engine = Settings {
        isq: Isq::None,
        context_tokens: 2048,
        parallel_requests: 4,
        elastic,
        cache_dir: std::env::temp_dir(),
        sim: SimSettings {
            load_ms: 0,
            tokens_per_s: 1e6,
            prefill_tokens_per_s: 1e6,
            elastic: true,
        },
    };
    let settings = engine.clone();
    let entry =
        Catalog { dir: dir.to_owned(), sim: true, prefer: None, engine }.find(model).unwrap();
    let info = entry.info.unwrap();
    let size = info.sizes[0].name.clone();
    let plan = Plan { model: entry.model, path: entry.path, written: None, info, size, settings };
    engine::load(&plan, &|_| {}, &Pulse::default()).unwrap()
}

pub fn request(words: usize, priority: Priority) -> GenerateRequest {
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

pub fn start(engine: &mut dyn Engine, id: u64, request: GenerateRequest) -> Events {
    start_for("", None, engine, id, request)
}

/// The same for a session, of somebody.
pub fn start_for(
    account: &str,
    session: Option<u64>,
    engine: &mut dyn Engine,
    id: u64,
    request: GenerateRequest,
) -> Events {
    let (sink, events) = stream::channel(id, 1 << 20);
    let (account, place) = (account.to_owned(), Box::new(()));
    engine.start(Job { request, account, session, sink, place });
    events
}

/// What has come so far: tokens of the prompt that were read, pieces of text, and the last event.
pub fn seen(events: &mut Events) -> (u32, usize, Option<Event>) {
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
