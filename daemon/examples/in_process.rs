//! The simulator called in this process, without the daemon and its APIs: what `tests/bench/load.py overhead`
//! compares them with. Its arguments are tokens a second, tokens of an answer, and answers, one after the
//! other.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::Instant;

use futures::StreamExt;
use nestd::engine::catalog::Catalog;
use nestd::engine::{Isq, Job, Keep, Plan, Settings, SimSettings, elastic, spawn};
use nestd::stream;
use nestd::types::{Event, GenerateRequest, Message, Part, Role, Stopping};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

fn plan(tokens_per_s: f64) -> Plan {
    let sim = SimSettings { load_ms: 0, tokens_per_s, prefill_tokens_per_s: 1e6, elastic: true };
    let settings = Settings {
        isq: Isq::None,
        context_tokens: 0,
        parallel_requests: 4,
        elastic: elastic::Settings::default(),
        cache_dir: PathBuf::new(),
        sim,
    };
    let engine = settings.clone();
    let catalog = Catalog { dir: PathBuf::new(), sim: true, prefer: None, engine };
    let entry = catalog.find("sim").unwrap();
    let info = entry.info.unwrap();
    let size = info.sizes[0].name.clone();
    Plan { model: entry.model, path: entry.path, written: None, info, size, settings }
}

/// CPU time of this process in seconds.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let microseconds = usage.user_time() + usage.system_time();
    microseconds.num_microseconds() as f64 / 1e6
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let numbers: Vec<u32> =
        std::env::args().skip(1).map(|argument| argument.parse().unwrap()).collect();
    let [tokens_per_s, max_tokens, answers] = numbers[..] else {
        return eprintln!("in_process TOKENS_PER_S TOKENS ANSWERS");
    };
    let (engine, _ended) = spawn().unwrap();
    engine.load(plan(tokens_per_s.into()), Keep::Nothing, Box::new(|_| {})).await.unwrap();
    let text = "word ".repeat(usize::try_from(max_tokens).unwrap());
    let (began, cpu_began) = (Instant::now(), cpu());
    let (mut tokens, mut pieces) = (0, 0);
    for id in 0..answers {
        let request = GenerateRequest {
            messages: vec![Message { role: Role::User, parts: vec![Part::Text(text.clone())] }],
            stopping: Stopping { max_tokens, ..Stopping::default() },
            ..GenerateRequest::default()
        };
        let (sink, mut events) = stream::channel(id.into(), 64 << 20);
        let account = String::new();
        engine.generate(Job { request, account, session: None, sink, place: Box::new(()) });
        while let Some(event) = events.next().await {
            match event {
                Event::Text(_) => pieces += 1,
                Event::Finished(end) => tokens += end.usage.completion_tokens,
                _ => {}
            }
        }
    }
    let (seconds, cpu_s) = (began.elapsed().as_secs_f64(), cpu() - cpu_began);
    println!(
        "{}",
        serde_json::json!({ "tokens": tokens, "pieces": pieces, "seconds": seconds, "cpu_s": cpu_s })
    );
}
