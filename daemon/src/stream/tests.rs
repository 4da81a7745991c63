use futures::StreamExt;

use super::*;
use crate::types::Logprob;

#[tokio::test]
async fn unread_text_is_joined_and_whole() {
    let (sink, events) = channel(7, 100);
    sink.queued(2);
    sink.queued(1);
    sink.prefill(0, 4, 1);
    sink.prefill(2, 4, 1);
    sink.prefill(4, 4, 1);
    sink.size("E4B");
    sink.text("Hel", 1);
    sink.text("lo", 1);
    sink.finish(FinishReason::Stop);
    let events: Vec<_> = events.collect().await;
    assert_eq!(events[0], Event::Queued { position: 1 });
    assert_eq!(events[1], Event::Prefill { done_tokens: 0, total_tokens: 4 });
    assert_eq!(events[2], Event::Prefill { done_tokens: 4, total_tokens: 4 });
    assert_eq!(events[3], Event::Text(Text { delta: "Hello".into(), logprobs: vec![] }));
    let Event::Finished(finished) = &events[4] else { panic!("{events:?}") };
    assert_eq!(finished.usage, Usage { prompt_tokens: 4, cached_tokens: 1, completion_tokens: 2 });
    assert_eq!(finished.sizes, ["E4B"]);
    assert_eq!(events.len(), 5);
}

#[tokio::test]
async fn the_recorder_has_the_answer_before_the_reader_has_the_end() {
    let (sink, events) = channel(1, 100);
    let recorded = Arc::new(Mutex::new(None));
    let record = Arc::clone(&recorded);
    sink.record(Box::new(move |end, answer| {
        *record.lock().unwrap() = Some((end.clone(), answer));
    }));
    sink.text("Hel", 1);
    sink.text("lo", 1);
    assert_eq!(*recorded.lock().unwrap(), None);
    sink.finish(FinishReason::Length);
    let last = events.collect::<Vec<_>>().await.pop().unwrap();
    assert_eq!(*recorded.lock().unwrap(), Some((last, "Hello".into())));
}

#[tokio::test]
async fn what_was_computed_is_charged_once_before_the_reader_has_the_end() {
    for (tokens, expected) in [(0, (30, 0)), (3, (80, 3))] {
        let (sink, events) = channel(1, 100);
        let charged = Arc::new(Mutex::new(Vec::new()));
        let account = Arc::clone(&charged);
        sink.charge(Box::new(move |prompt, completion| {
            account.lock().unwrap().push((prompt, completion));
        }));
        sink.prefill(20, 100, 20);
        sink.prefill(50, 100, 20);
        sink.text("", tokens);
        assert!(charged.lock().unwrap().is_empty());
        events.stopper().cancel();
        drop(sink);
        assert_eq!(*charged.lock().unwrap(), [expected]);
    }
}

#[tokio::test]
async fn a_reader_that_lags_is_told() {
    let (sink, events) = channel(1, 10);
    sink.text("0123456789", 1);
    assert!(!sink.cancelled().is_cancelled());
    sink.text("0", 1);
    assert!(sink.cancelled().is_cancelled());
    drop(sink);
    let last = events.collect::<Vec<_>>().await.pop();
    assert_eq!(last, Some(Event::Failed(Error::Lagged { buffer_bytes: 10 })));
}

#[tokio::test]
async fn unread_logprobs_are_joined_and_count() {
    let token = |id| Logprob { id, text: "word".into(), logprob: -0.5 };
    let drawn = |id| vec![TokenLogprobs { token: token(id), top: vec![token(id), token(7)] }];
    let one = Text { delta: String::new(), logprobs: drawn(0) }.bytes();
    assert!(one > 3 * 16);
    let (sink, mut events) = channel(1, 2 * one + 4);
    sink.text_with("", 1, drawn(1));
    sink.text_with("both", 1, drawn(2));
    assert!(!sink.cancelled().is_cancelled());
    let Some(Event::Text(text)) = events.next().await else { panic!("no text") };
    assert_eq!((text.delta.as_str(), text.logprobs), ("both", [drawn(1), drawn(2)].concat()));
    // What was read makes room.
    sink.text_with("ab", 1, drawn(3));
    sink.text_with("cd", 1, drawn(4));
    assert!(!sink.cancelled().is_cancelled());
    sink.text("e", 1);
    assert!(sink.cancelled().is_cancelled());
}

#[tokio::test]
async fn the_first_cause_counts() {
    let (sink, events) = channel(1, 10);
    events.stopper().deadline();
    events.stopper().cancel();
    drop(sink);
    let events: Vec<_> = events.collect().await;
    let [Event::Finished(finished)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(finished.reason, FinishReason::Deadline);
}

#[tokio::test]
async fn dropping_the_reader_cancels() {
    let (sink, events) = channel(1, 10);
    drop(events);
    assert!(sink.cancelled().is_cancelled());
}

#[tokio::test]
async fn a_sink_that_is_lost_is_an_internal_error() {
    let (sink, events) = channel(1, 10);
    drop(sink);
    let events: Vec<_> = events.collect().await;
    assert!(matches!(events[..], [Event::Failed(Error::Internal(_))]));
}
