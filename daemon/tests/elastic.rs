//! The elastic engine by itself, its steps counted.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod engines;

use std::path::Path;

use nestd::engine::{Engine, Step, elastic};
use nestd::stream::Events;
use nestd::types::{
    Error, Event, FinishReason, GenerateRequest, Message, Part, Priority, Role, Stopping, Usage,
};

use engines::{load_with, request, seen, start, start_for};

/// The demo model, with room for caches.
fn load() -> Box<dyn Engine> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let settings = elastic::Settings { prefix_cache_mib: 64, ..elastic::Settings::default() };
    load_with("nestd-demo-Q8_0", &dir, settings)
}

fn asks(messages: &[(Role, &str)], max_tokens: u32) -> GenerateRequest {
    let message = |(role, text): &(Role, &str)| Message {
        role: *role,
        parts: vec![Part::Text((*text).into())],
    };
    GenerateRequest {
        messages: messages.iter().map(message).collect(),
        stopping: Stopping { max_tokens, ..Stopping::default() },
        ..GenerateRequest::default()
    }
}

/// Steps until nothing is left to do; what the request took.
fn whole(engine: &mut dyn Engine, events: &mut Events) -> Usage {
    while engine.step() == Step::Ready {}
    match seen(events).2 {
        Some(Event::Finished(end)) => end.usage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_one_user_said_is_no_other_user_s_cache() {
    let mut engine = load();
    let mut cached = |account: &str, request: GenerateRequest| {
        let mut events = start_for(account, None, &mut *engine, 1, request);
        whole(&mut *engine, &mut events).cached_tokens
    };
    let said =
        [(Role::User, "My name is Iris, and I live in a small house by the sea with my dogs.")];
    assert_eq!(cached("uid 1", asks(&said, 4)), 0);
    assert_eq!(cached("uid 2", asks(&said, 4)), 0, "another's conversation");
    assert!(cached("uid 1", asks(&said, 4)) > 16, "one's own");

    let system =
        "You are the assistant of a pair of glasses. Answer in one short sentence, and be kind.";
    let with =
        |system: &str, question: &str| asks(&[(Role::System, system), (Role::User, question)], 4);
    assert_eq!(cached("uid 1", with(system, "What is 7 plus 8?")), 0);
    let standing = cached("uid 2", with(system, "Turn on the kitchen light"));
    assert!(standing > 16, "standing instructions are everybody's: {standing}");
    let same = cached("uid 3", with(system, "What is 7 plus 8?"));
    assert_eq!(same, standing, "and nothing after them");
    let guess = system.replace("be kind", "be brief");
    assert_eq!(cached("uid 4", with(&guess, "What is 7 plus 8?")), 0, "nor a part of them");
}

#[test]
fn a_session_that_was_only_prewarmed_leaves_its_instructions_to_all() {
    let mut engine = load();
    let system =
        "You are the assistant of a pair of glasses. Answer in one short sentence, and be kind.";
    let prewarm = GenerateRequest { prewarm: true, ..asks(&[(Role::System, system)], 0) };
    let mut events = start_for("uid 1", Some(1), &mut *engine, 1, prewarm);
    let read = whole(&mut *engine, &mut events).prompt_tokens;
    engine.forget(1);
    let request = asks(&[(Role::System, system), (Role::User, "What is 7 plus 8?")], 4);
    let mut events = start_for("uid 2", Some(2), &mut *engine, 2, request);
    assert_eq!(whole(&mut *engine, &mut events).cached_tokens, read);
}

#[test]
fn a_prompt_is_read_however_many_urgent_ones_there_are() {
    for priority in [Priority::Normal, Priority::Background] {
        let mut engine = load();
        let one = |words, priority| {
            let mut one = request(words, priority);
            one.stopping.max_tokens = 1;
            one
        };
        // As soon as one is answered, there is the next; each is another, so that no cache spares reading it.
        let mut words = 150;
        let mut urgent = |engine: &mut dyn Engine| {
            words += 1;
            let mut next = one(words, Priority::Interactive);
            next.messages[0].parts[0] = Part::Text(format!("{words} {}", "word ".repeat(words)));
            start(engine, 1, next)
        };
        let mut others: Vec<_> = (0..3).map(|_| urgent(&mut *engine)).collect();
        let mut events = start(&mut *engine, 2, one(30, priority));
        let (mut steps, mut answered) = (0, 0);
        loop {
            assert_eq!(engine.step(), Step::Ready);
            if matches!(seen(&mut events).2, Some(Event::Finished(_))) {
                break;
            }
            for other in &mut others {
                if matches!(seen(other).2, Some(Event::Finished(_))) {
                    answered += 1;
                    *other = urgent(&mut *engine);
                }
            }
            steps += 1;
            assert!(steps < 1000, "{priority:?} waits after {answered} others");
        }
        assert!(answered > 0, "{answered}: urgent ones go first all the same");
    }
}

#[test]
fn what_was_read_for_a_request_that_was_cancelled_is_kept() {
    let mut engine = load();
    let mut ask = |steps: usize| {
        let mut events =
            start_for("uid 1", Some(1), &mut *engine, 1, request(300, Priority::Normal));
        for _ in 0..steps {
            engine.step();
        }
        events.stopper().cancel();
        engine.step();
        match seen(&mut events).2 {
            Some(Event::Finished(end)) if end.reason == FinishReason::Cancelled => end.usage,
            other => panic!("{other:?}"),
        }
    };
    let first = ask(2);
    assert_eq!((first.cached_tokens, first.completion_tokens), (0, 0));
    let second = ask(9);
    assert!(second.cached_tokens > 200 && second.completion_tokens >= 3, "{second:?}");
    let third = ask(1);
    assert_eq!(third.cached_tokens, third.prompt_tokens - 1);
}

#[test]
fn a_prompt_without_a_token_is_refused() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/nestd-demo-Q8_0.gguf");
    let mut file = std::fs::read(shipped).unwrap();
    let find = |file: &[u8], what: &[u8]| {
        file.windows(what.len()).position(|window| window == what).unwrap()
    };
    // No BOS, and a template that is a comment.
    let bos = find(&file, b"tokenizer.ggml.bos_token_id");
    file[bos..bos + 3].copy_from_slice(b"no_");
    let key = b"tokenizer.chat_template";
    let at = find(&file, key) + key.len() + 4;
    let len = usize::try_from(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())).unwrap();
    file[at + 8..at + 8 + len].fill(b' ');
    file[at + 8..at + 10].copy_from_slice(b"{#");
    file[at + 6 + len..at + 8 + len].copy_from_slice(b"#}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("silent.gguf"), file).unwrap();
    let mut engine = load_with("silent", folder.path(), elastic::Settings::default());
    for prewarm in [false, true] {
        let request = GenerateRequest { prewarm, ..asks(&[(Role::User, "hello")], 4) };
        let mut events = start(&mut *engine, 1, request);
        assert_eq!(engine.step(), Step::Idle);
        let last = seen(&mut events).2;
        assert!(matches!(last, Some(Event::Failed(Error::InvalidArgument { .. }))), "{last:?}");
    }
}
