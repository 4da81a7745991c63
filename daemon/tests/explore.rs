#![cfg(feature = "mistralrs")]
use futures::StreamExt;
use nestd::engine::catalog::Catalog;
use nestd::engine::{self, Isq, Job, Plan, Settings, SimSettings};
use nestd::stream;
use nestd::types::*;
use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
fn anon() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() / 1024
}
#[test]
fn explore() {
    let path = PathBuf::from(std::env::var("M").unwrap());
    let isq = match std::env::var("Q").unwrap_or_default().as_str() {
        "q4k" => Isq::Q4k,
        "q8" => Isq::Q8_0,
        _ => Isq::None,
    };
    let dir = path.parent().unwrap().to_owned();
    let name = path.file_name().unwrap().to_str().unwrap();
    let entry = Catalog { dir, sim: false, isq }.find(name).unwrap();
    let info = entry.info.unwrap();
    let sizes: Vec<String> = std::env::var("S")
        .map(|s| s.split(',').map(str::to_owned).collect())
        .unwrap_or_else(|_| info.sizes.iter().map(|s| s.name.clone()).collect());
    for size in sizes {
        let est = info.sizes.iter().find(|s| s.name == size).unwrap().memory_mib;
        let plan = Plan {
            model: entry.model.clone(),
            path: entry.path.clone(),
            size: size.clone(),
            info: info.clone(),
            settings: Settings {
                isq,
                context_tokens: 0,
                parallel_requests: 2,
                cache_dir: "/tmp/mrs/cache".into(),
                sim: SimSettings { load_ms: 0, tokens_per_s: 1.0, prefill_tokens_per_s: 1.0 },
            },
        };
        let before = anon();
        let peak = Cell::new(0);
        let began = Instant::now();
        let mut engine = engine::load(&plan, &|f| {
            peak.set(peak.get().max(anon()));
            eprint!("{f:.2} ");
        })
        .unwrap();
        eprintln!(
            "\n{size} {isq:?}: {:.2}s, before {before}, resident {}, sampled peak {}, estimate {est}",
            began.elapsed().as_secs_f64(),
            anon(),
            peak.get()
        );
        for q in std::env::var("P").unwrap_or("Turn on the kitchen light.|What is the capital of France?|Who are you?|Set a timer for 5 minutes|battery 15 %. How much battery is left?".into()).split('|') {
            let (sink, events) = stream::channel(1, 1 << 20);
            engine.start(Job { request: GenerateRequest { messages: vec![Message { role: Role::User, parts: vec![Part::Text(q.into())] }], sampling: Sampling::default(), stopping: Stopping { max_tokens: 60, ..Default::default() } }, sink, place: Box::new(()) });
            let events: Vec<_> = futures::executor::block_on(events.collect());
            let text: String = events.iter().filter_map(|e| if let Event::Text(t) = e { Some(t.as_str()) } else { None }).collect();
            match events.last() { Some(Event::Finished(f)) => eprintln!("  {q} -> {text:?} {:?} {:?} ttft {} us, prefill {:.0}/s, decode {:.0}/s", f.reason, f.usage, f.timings.ttft_us, f.timings.prefill_tokens_per_s, f.timings.decode_tokens_per_s), other => eprintln!("{other:?}") }
        }
        drop(engine);
    }
}
