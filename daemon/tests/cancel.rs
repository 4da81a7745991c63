//! What an engine still does for a request that was cancelled, counted in its steps: nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod engines;

use nestd::engine::Step;
use nestd::types::{Event, FinishReason, Priority};

use engines::{load, request, seen, start};

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
