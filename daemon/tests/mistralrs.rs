//! The engine `mistralrs` on the demo model.
//!
//! Loads take most of the time, so one test makes all of them, in order.

#![cfg(feature = "mistralrs")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd::engine::catalog::Catalog;
use nestd::engine::{self, Engine, Isq, Job, Plan, Pulse, Settings, SimSettings, elastic};
use nestd::stream::{self, Events};
use nestd::types::{
    Error, Event, FinishReason, Finished, GenerateRequest, Message, Part, Role, Sampling, Stopping,
};

/// A folder of one model, which a test may break, and a cache beside it.
struct Fixture {
    dir: tempfile::TempDir,
}

const MODEL: &str = "demo";

fn demo() -> PathBuf {
    std::env::var_os("NESTD_TEST_MODEL").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/hf"),
        PathBuf::from,
    )
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(fixture.model()).unwrap();
        for entry in fs::read_dir(demo()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), fixture.model().join(entry.file_name())).unwrap();
        }
        fixture
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("models").join(MODEL)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.model().join(name)
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// A plan for the size at this place in the list, as the service makes it.
    fn plan(&self, size: usize, isq: Isq) -> Result<Plan, Error> {
        let dir = self.dir.path().join("models");
        let settings = Settings {
            isq,
            context_tokens: 512,
            parallel_requests: 2,
            elastic: elastic::Settings::default(),
            cache_dir: self.cache(),
            sim: SimSettings {
                load_ms: 0,
                tokens_per_s: 1.0,
                prefill_tokens_per_s: 1.0,
                elastic: true,
            },
        };
        let engine = settings.clone();
        let entry = Catalog { dir, sim: false, prefer: None, engine }.find(MODEL)?;
        let info = entry.info?;
        Ok(Plan {
            model: entry.model,
            path: entry.path,
            written: None,
            size: info.sizes[size].name.clone(),
            info,
            settings,
        })
    }

    fn load(&self, size: usize) -> Result<Box<dyn Engine>, Error> {
        engine::load(&self.plan(size, Isq::None)?, &|_| {}, &Pulse::default())
    }

    /// Why the model cannot be loaded.
    fn problem(&self) -> String {
        match self.load(0).map(|_| "it was loaded") {
            Err(Error::ModelInvalid { model, problem }) if model == MODEL => problem,
            other => panic!("{other:?}"),
        }
    }
}

fn message(role: Role, text: &str) -> Message {
    Message { role, parts: vec![Part::Text(text.into())] }
}

fn request(text: &str) -> GenerateRequest {
    GenerateRequest {
        messages: vec![message(Role::User, text)],
        sampling: Sampling { temperature: Some(0.0), ..Sampling::default() },
        stopping: Stopping { max_tokens: 24, ..Stopping::default() },
        ..GenerateRequest::default()
    }
}

fn start(engine: &mut dyn Engine, request: GenerateRequest) -> Events {
    let (sink, events) = stream::channel(1, 1 << 20);
    engine.start(Job { request, account: String::new(), session: None, sink, place: Box::new(()) });
    events
}

fn collect(events: Events) -> Vec<Event> {
    futures::executor::block_on(events.collect())
}

fn text(events: &[Event]) -> String {
    let text =
        |event: &Event| if let Event::Text(text) = event { Some(text.delta.clone()) } else { None };
    events.iter().filter_map(text).collect()
}

fn finished(events: &[Event]) -> &Finished {
    let Some(Event::Finished(finished)) = events.last() else { panic!("{events:?}") };
    finished
}

fn ask(engine: &mut dyn Engine, request: GenerateRequest) -> (String, Finished) {
    let events = collect(start(engine, request));
    (text(&events), finished(&events).clone())
}

/// Memory of this process that no file backs, in MiB.
fn anonymous_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() / 1024
}

/// A fixture without its file of this name.
fn without(name: &str) -> Fixture {
    let fixture = Fixture::new();
    fs::remove_file(fixture.file(name)).unwrap();
    fixture
}

#[test]
fn a_folder_that_cannot_be_used_is_refused_before_it_is_loaded() {
    assert!(without("tokenizer.json").problem().contains("lacks tokenizer.json"));
    assert!(without("config.json").problem().contains("lacks config.json"));
    assert!(without("model.safetensors").problem().contains("lacks model.safetensors"));

    let fixture = Fixture::new();
    let weights = fs::read(fixture.file("model.safetensors")).unwrap();
    fs::write(fixture.file("model.safetensors"), &weights[..weights.len() - 1000]).unwrap();
    let problem = fixture.problem();
    assert!(problem.contains("model.safetensors") && problem.contains("cut off"), "{problem}");

    let fixture = Fixture::new();
    let mut plan = fixture.plan(0, Isq::None).unwrap();
    plan.size = "huge".into();
    let error = engine::load(&plan, &|_| {}, &Pulse::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("\"huge\" is not one of"), "{error}");
}

#[test]
fn what_breaks_in_the_library_is_an_error_and_not_the_end() {
    // Weights of the right shape that are no numbers.
    let fixture = Fixture::new();
    let path = fixture.file("model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(weights[..8].try_into().unwrap())).unwrap();
    weights[8 + header..].fill(0xff);
    fs::write(&path, weights).unwrap();
    let problem = fixture.problem();
    assert!(problem.contains("no number"), "{problem}");

    // Files that the library unwraps.
    for (name, json) in [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", r#"{"chat_template": 5}"#),
        ("tokenizer_config.json", "{}"),
        ("preprocessor_config.json", "[]"),
        ("processor_config.json", "{"),
    ] {
        let fixture = Fixture::new();
        fs::write(fixture.file(name), json).unwrap();
        if name == "tokenizer_config.json" {
            let _ = fs::remove_file(fixture.file("chat_template.jinja"));
        }
        assert!(!fixture.problem().is_empty(), "{name}: {json}");
    }
}

#[test]
fn the_engine_answers_and_gives_its_memory_back() {
    // glibc keeps freed memory unless told not to, as the unit file does; so measure in a process of
    // that kind.
    let setting = "MALLOC_MMAP_THRESHOLD_";
    if std::env::var_os(setting).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_engine_answers_and_gives_its_memory_back", "--nocapture"])
            .env(setting, "131072")
            .env("MALLOC_ARENA_MAX", "2")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let fixture = Fixture::new();
    let at_start = anonymous_mib();
    let mut engine = fixture.load(0).unwrap();
    let loaded = anonymous_mib();
    let estimate = fixture.plan(0, Isq::None).unwrap().info.sizes[0].memory_mib;
    // Not too low, and not a fifth too high.
    assert!((loaded..loaded * 6 / 5).contains(&estimate), "estimated {estimate}, is {loaded}");

    greedy_answers_repeat(&mut *engine);
    prompts_have_one_bos_and_are_counted(&mut *engine);
    answers_end_where_they_shall(&mut *engine);
    seeds_repeat(&mut *engine);
    assert_eq!(engine.loaded().parallel_requests, 1);
    a_reader_that_goes_ends_its_answer(&mut *engine);
    let full = ask(&mut *engine, request("Turn on the kitchen light.")).0;

    let mut after = Vec::new();
    for size in [1, 0, 1, 0, 1] {
        drop(engine);
        after.push(anonymous_mib());
        engine = fixture.load(size).unwrap();
        let again = ask(&mut *engine, request("Turn on the kitchen light.")).0;
        assert!(size != 0 || again == full, "{again:?} {full:?}");
    }
    let name = engine.loaded().size.clone();
    assert_eq!(ask(&mut *engine, request("Hi")).1.sizes, [name]);
    drop(engine);
    after.push(anonymous_mib());
    eprintln!(
        "{at_start} MiB, loaded {loaded} MiB (estimated {estimate}), after each load {after:?}"
    );
    assert!(after.iter().all(|mib| *mib < loaded / 8), "{after:?}");
}

fn greedy_answers_repeat(engine: &mut dyn Engine) {
    let (first, end) = ask(engine, request("What is the capital of France?"));
    let (second, _) = ask(engine, request("What is the capital of France?"));
    assert_eq!(first, second);
    assert!(!first.is_empty());
    assert!(end.usage.completion_tokens > 0);
    assert!(end.timings.ttft_us > 0 && end.timings.decode_tokens_per_s > 0.0);
}

fn prompts_have_one_bos_and_are_counted(engine: &mut dyn Engine) {
    let conversation = vec![
        message(Role::System, "Answer in one word."),
        message(Role::User, "Hello!"),
        message(Role::Assistant, "Hi."),
        message(Role::User, "Grüß Gott 日本"),
    ];
    for messages in [vec![message(Role::User, "Hello!")], conversation] {
        let counter = engine.counter();
        let estimated = (counter.estimate)(&messages).unwrap();
        let exact = counter.exact.unwrap();
        let counted = futures::executor::block_on(exact(messages.clone())).unwrap();
        assert!(estimated > 0 && estimated <= counted, "{estimated} of {counted}");
        let events = collect(start(engine, GenerateRequest { messages, ..request("") }));
        assert_eq!(finished(&events).usage.prompt_tokens, counted);
        let prefill = |done| Event::Prefill { done_tokens: done, total_tokens: counted };
        assert!(events.contains(&prefill(counted)), "{events:?}");
    }
}

fn answers_end_where_they_shall(engine: &mut dyn Engine) {
    let (whole, _) = ask(engine, request("Tell me about yourself."));
    let with = |max_tokens, stop: &[&str]| GenerateRequest {
        stopping: Stopping {
            max_tokens,
            stop: stop.iter().map(|stop| (*stop).into()).collect(),
            deadline_ms: 0,
        },
        ..request("Tell me about yourself.")
    };
    let (short, end) = ask(engine, with(3, &[]));
    assert_eq!((end.reason, end.usage.completion_tokens), (FinishReason::Length, 3));
    assert!(whole.starts_with(&short), "{short:?} {whole:?}");

    // A stop string that spans tokens, and one that never comes.
    let cut: String = whole.chars().skip(4).take(3).collect();
    let before = &whole[..whole.find(&cut).unwrap()];
    let (stopped, end) = ask(engine, with(24, &["never this", &cut]));
    assert_eq!((stopped.as_str(), end.reason), (before, FinishReason::Stop));
    assert_eq!(ask(engine, with(24, &["never this"])).0, whole);

    let events = collect(start(engine, with(600, &[])));
    let Some(Event::Failed(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens })) =
        events.last()
    else {
        panic!("{events:?}")
    };
    assert_eq!((*max_tokens, *context_tokens), (600, 512));
    assert!(*prompt_tokens > 3);
}

fn seeds_repeat(engine: &mut dyn Engine) {
    let drawn = |seed| GenerateRequest {
        sampling: Sampling {
            temperature: Some(2.0),
            seed,
            presence_penalty: Some(0.5),
            frequency_penalty: Some(0.1),
            repetition_penalty: Some(1.1),
            ..Sampling::default()
        },
        // What the model never learned: it is sure of everything else, even at this temperature.
        ..request("qz 7 % wub")
    };
    for seed in [7, 8] {
        assert_eq!(ask(engine, drawn(Some(seed))).0, ask(engine, drawn(Some(seed))).0);
    }
    let differ = |seed: fn(u64) -> Option<u64>, engine: &mut dyn Engine| {
        let answers: HashSet<_> = (0..10).map(|draw| ask(engine, drawn(seed(draw))).0).collect();
        assert!(answers.len() > 1, "{answers:?}");
    };
    differ(Some, engine);
    differ(|_| None, engine);
}

fn a_reader_that_goes_ends_its_answer(engine: &mut dyn Engine) {
    struct Gone(std::sync::mpsc::Sender<()>);
    impl Drop for Gone {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let (gone, place_given_back) = std::sync::mpsc::channel();
    let (sink, mut events) = stream::channel(1, 1 << 20);
    let mut long = request("Count to a thousand.");
    long.stopping.max_tokens = 400;
    engine.start(Job {
        request: long,
        account: String::new(),
        session: None,
        sink,
        place: Box::new(Gone(gone)),
    });
    while !matches!(
        futures::executor::block_on(events.next()),
        Some(Event::Text(_) | Event::Finished(_))
    ) {}
    drop(events);
    place_given_back.recv_timeout(Duration::from_secs(1)).unwrap();
    // The library is free at once: a short answer does not wait for 400 tokens.
    let began = Instant::now();
    let mut short = request("Hi");
    short.stopping.max_tokens = 1;
    ask(engine, short);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}
