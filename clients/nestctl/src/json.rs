//! The shapes that `--json` prints, as docs/nestctl.md lists them: the messages of `nestd.v1` with
//! their field names, and enums as the words that D-Bus has for them.

use nestd_client::v1::{
    FinishReason, Finished, GenerateEvent, Limits, Logprob, Model, Priority, State, StatusReport,
    Text, Timings, TokenLogprobs, Usage, generate_event::Event,
};
use serde_json::{Map, Value, json};

/// The word for a state.
pub fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::NoModel => "no-model",
        State::Loading => "loading",
        State::Ready => "ready",
        State::Parked => "parked",
        State::Draining => "draining",
    }
}

/// The word for why an answer ended.
pub fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Unspecified => "unknown",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Deadline => "deadline",
    }
}

/// The word for a priority.
pub fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::Unspecified => "unknown",
        Priority::Interactive => "interactive",
        Priority::Normal => "normal",
        Priority::Background => "background",
    }
}

/// A `StatusReport`.
pub fn report(report: &StatusReport) -> Value {
    let Limits {
        context_tokens,
        max_tokens,
        default_max_tokens,
        parallel_requests,
        queued_requests,
        prompt_bytes,
    } = report.limits.unwrap_or_default();
    json!({
        "version": report.version,
        "state": state(report.state()),
        "model": report.model,
        "engine": report.engine,
        "active_size": report.active_size,
        "available_sizes": report.available_sizes,
        "loading_fraction": report.loading_fraction,
        "problem": report.problem,
        "limits": {
            "context_tokens": context_tokens,
            "max_tokens": max_tokens,
            "default_max_tokens": default_max_tokens,
            "parallel_requests": parallel_requests,
            "queued_requests": queued_requests,
            "prompt_bytes": prompt_bytes,
        },
        "running_requests": report.running_requests,
        "queued_requests": report.queued_requests,
    })
}

/// A `Model`.
pub fn model(model: &Model) -> Value {
    let sizes = model.sizes.iter().map(|size| {
        json!({
            "name": size.name,
            "effective_params_b": size.effective_params_b,
            "memory_mib": size.memory_mib,
        })
    });
    json!({
        "name": model.name,
        "engine": model.engine,
        "sizes": sizes.collect::<Vec<_>>(),
        "context_tokens": model.context_tokens,
        "loaded": model.loaded,
        "problem": model.problem,
    })
}

/// A `GenerateEvent`: the request's number, and the event under its name.
pub fn event(event: &GenerateEvent) -> Value {
    let mut object = Map::new();
    object.insert("request_id".into(), event.request_id.into());
    let (name, value) = match &event.event {
        None => return object.into(),
        Some(Event::Queued(queued)) => ("queued", json!({ "position": queued.position })),
        Some(Event::Loading(loading)) => ("loading", json!({ "fraction": loading.fraction })),
        Some(Event::Prefill(prefill)) => (
            "prefill",
            json!({ "done_tokens": prefill.done_tokens, "total_tokens": prefill.total_tokens }),
        ),
        Some(Event::Text(text)) => ("text", self::text(text)),
        Some(Event::SizeChanged(change)) => (
            "size_changed",
            json!({ "from": change.from, "to": change.to, "reason": change.reason }),
        ),
        Some(Event::Finished(end)) => ("finished", finished(end)),
    };
    object.insert(name.into(), value);
    object.into()
}

/// A `Text`; with log-probabilities where they were asked for.
fn text(text: &Text) -> Value {
    if text.logprobs.is_empty() {
        return json!({ "delta": text.delta });
    }
    let one = |one: &Logprob| json!({ "id": one.id, "text": one.text, "logprob": one.logprob });
    let drawn = |drawn: &TokenLogprobs| {
        let top: Vec<Value> = drawn.top.iter().map(one).collect();
        json!({ "token": drawn.token.as_ref().map(one), "top": top })
    };
    let logprobs: Vec<Value> = text.logprobs.iter().map(drawn).collect();
    json!({ "delta": text.delta, "logprobs": logprobs })
}

/// A `Finished`.
pub fn finished(end: &Finished) -> Value {
    let Usage { prompt_tokens, cached_tokens, completion_tokens } = end.usage.unwrap_or_default();
    let Timings { queue_us, ttft_us, prefill_tokens_per_s, decode_tokens_per_s } =
        end.timings.unwrap_or_default();
    json!({
        "reason": reason(end.reason()),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "completion_tokens": completion_tokens,
        },
        "timings": {
            "queue_us": queue_us,
            "ttft_us": ttft_us,
            "prefill_tokens_per_s": prefill_tokens_per_s,
            "decode_tokens_per_s": decode_tokens_per_s,
        },
        "sizes": end.sizes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_number_and_its_name() {
        let text = GenerateEvent {
            request_id: 7,
            event: Some(Event::Text(Text { delta: "a\x1b\n".into(), logprobs: vec![] })),
        };
        assert_eq!(event(&text), json!({ "request_id": 7, "text": { "delta": "a\x1b\n" } }));
    }

    #[test]
    fn logprobs_are_where_they_were_asked_for() {
        let one = |id, logprob| Logprob { id, text: "a".into(), logprob };
        let drawn = TokenLogprobs { token: Some(one(3, -0.5)), top: vec![one(4, -0.25)] };
        let value = text(&Text { delta: String::new(), logprobs: vec![drawn] });
        let token = json!({ "id": 3, "text": "a", "logprob": -0.5 });
        let top = json!([{ "id": 4, "text": "a", "logprob": -0.25 }]);
        let logprobs = json!([{ "token": token, "top": top }]);
        assert_eq!(value, json!({ "delta": "", "logprobs": logprobs }));
    }

    #[test]
    fn the_end_has_everything_even_if_nothing_was_sent() {
        let value = finished(&Finished::default());
        assert_eq!(value["usage"]["prompt_tokens"], 0);
        assert_eq!(value["reason"], "unknown");
    }
}
