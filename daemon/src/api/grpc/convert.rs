//! From nestd.v1 messages to the daemon's types, and back. Nothing from a client is trusted: an enum
//! value that is not known, an empty part, or an option of a later version is refused by name.

use nestd_proto::v1;

use crate::api::{later, micros, millis};
use crate::service::{ActiveRequest, Activity, App, Lease, Listed, Report};
use crate::types::{
    Error, Event, FinishReason, Finished, GenerateRequest, Logprob, Message, Part, Priority, Role,
    Sampling, SessionInfo, SessionOptions, Stage, State, Stopping, Text,
};

pub(super) fn request(request: v1::GenerateRequest) -> Result<GenerateRequest, Error> {
    if !request.tools.is_empty() {
        return Err(later("tools"));
    }
    let sampling = request.sampling.unwrap_or_default();
    let stopping = request.stopping.unwrap_or_default();
    Ok(GenerateRequest {
        messages: messages(request.messages)?,
        sampling: Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
        },
        stopping: Stopping {
            max_tokens: stopping.max_tokens,
            stop: stopping.stop,
            deadline_ms: stopping.deadline_ms,
        },
        priority: priority(request.priority)?,
        top_logprobs: request.top_logprobs,
        json_schema: Some(request.json_schema).filter(|schema| !schema.is_empty()),
        session: request.session,
        prewarm: false,
    })
}

pub(super) fn priority(priority: i32) -> Result<Priority, Error> {
    match v1::Priority::try_from(priority) {
        Ok(v1::Priority::Unspecified | v1::Priority::Normal) => Ok(Priority::Normal),
        Ok(v1::Priority::Interactive) => Ok(Priority::Interactive),
        Ok(v1::Priority::Background) => Ok(Priority::Background),
        Err(_) => Err(Error::invalid("priority", format!("{priority} is not a priority"))),
    }
}

/// A conversation, as a client would write it.
pub(super) fn transcript(messages: Vec<Message>) -> Vec<v1::Message> {
    let role = |role| match role {
        Role::System => v1::Role::System,
        Role::User => v1::Role::User,
        Role::Assistant => v1::Role::Assistant,
    };
    let part = |Part::Text(text)| v1::Part { kind: Some(v1::part::Kind::Text(text)) };
    let message = |Message { role: who, parts }: Message| v1::Message {
        role: role(who).into(),
        parts: parts.into_iter().map(part).collect(),
    };
    messages.into_iter().map(message).collect()
}

pub(super) fn session_options(options: Option<v1::SessionOptions>) -> SessionOptions {
    let v1::SessionOptions { persistent, ttl_ms } = options.unwrap_or_default();
    SessionOptions { persistent, ttl_ms }
}

pub(super) fn session(info: SessionInfo) -> v1::Session {
    let SessionInfo { id, persistent, ttl_ms, idle_ms, messages, answering } = info;
    v1::Session { id, persistent, ttl_ms, idle_ms, messages, answering }
}

pub(super) fn messages(messages: Vec<v1::Message>) -> Result<Vec<Message>, Error> {
    messages.into_iter().enumerate().map(|(index, message)| decode(index, message)).collect()
}

fn decode(index: usize, message: v1::Message) -> Result<Message, Error> {
    let role = match v1::Role::try_from(message.role) {
        Ok(v1::Role::System) => Role::System,
        Ok(v1::Role::User) => Role::User,
        Ok(v1::Role::Assistant) => Role::Assistant,
        Ok(v1::Role::Tool) => {
            return Err(later(format!("messages[{index}].role tool")));
        }
        Ok(v1::Role::Unspecified) | Err(_) => {
            return Err(Error::invalid(
                format!("messages[{index}].role"),
                format!("{} is not a role", message.role),
            ));
        }
    };
    let part = |(part, value): (usize, v1::Part)| {
        let path = format!("messages[{index}].parts[{part}]");
        let kind = match value.kind {
            Some(v1::part::Kind::Text(text)) => return Ok(Part::Text(text)),
            None => return Err(Error::invalid(path, "has no value")),
            Some(v1::part::Kind::Image(_)) => "image",
            Some(v1::part::Kind::Audio(_)) => "audio",
            Some(v1::part::Kind::Video(_)) => "video",
            Some(v1::part::Kind::ToolResult(_)) => "tool_result",
        };
        Err(later(format!("{path}.{kind}")))
    };
    let parts = message.parts.into_iter().enumerate().map(part).collect::<Result<_, _>>()?;
    Ok(Message { role, parts })
}

/// An event as the stream carries it; an error ends the stream as a status.
pub(super) fn event(event: Event) -> Result<v1::generate_event::Event, Error> {
    use v1::generate_event::Event as Out;
    Ok(match event {
        Event::Queued { position } => Out::Queued(v1::Queued { position }),
        Event::Loading { fraction } => Out::Loading(v1::Loading { fraction }),
        Event::Prefill { done_tokens, total_tokens } => {
            Out::Prefill(v1::Prefill { done_tokens, total_tokens })
        }
        Event::Text(text) => Out::Text(piece(text)),
        Event::SizeChanged { from, to, reason } => {
            Out::SizeChanged(v1::SizeChanged { from, to, reason })
        }
        Event::Finished(end) => Out::Finished(finished(end)),
        Event::Failed(error) => return Err(error),
    })
}

fn piece(text: Text) -> v1::Text {
    let one = |Logprob { id, text, logprob }| v1::Logprob { id, text, logprob };
    let logprobs = text.logprobs.into_iter().map(|drawn| v1::TokenLogprobs {
        token: Some(one(drawn.token)),
        top: drawn.top.into_iter().map(one).collect(),
    });
    v1::Text { delta: text.delta, logprobs: logprobs.collect() }
}

fn finished(end: Finished) -> v1::Finished {
    let reason = match end.reason {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Cancelled => v1::FinishReason::Cancelled,
        FinishReason::Deadline => v1::FinishReason::Deadline,
    };
    v1::Finished {
        reason: reason.into(),
        usage: Some(v1::Usage {
            prompt_tokens: end.usage.prompt_tokens,
            cached_tokens: end.usage.cached_tokens,
            completion_tokens: end.usage.completion_tokens,
        }),
        timings: Some(v1::Timings {
            queue_us: end.timings.queue_us,
            ttft_us: end.timings.ttft_us,
            prefill_tokens_per_s: end.timings.prefill_tokens_per_s,
            decode_tokens_per_s: end.timings.decode_tokens_per_s,
        }),
        sizes: end.sizes,
    }
}

pub(super) fn report(report: Report) -> v1::StatusReport {
    let Report { status, limits, running, queued } = report;
    let state = match status.state {
        State::NoModel => v1::State::NoModel,
        State::Loading => v1::State::Loading,
        State::Ready => v1::State::Ready,
        State::Parked => v1::State::Parked,
        State::Draining => v1::State::Draining,
    };
    let context_tokens = status.loaded.as_ref().map_or(0, |loaded| loaded.context_tokens);
    let model = status.model().to_owned();
    let (engine, active_size, available_sizes) = match status.loaded {
        Some(loaded) => (loaded.engine.name().to_owned(), loaded.size, loaded.sizes),
        None => Default::default(),
    };
    v1::StatusReport {
        version: env!("CARGO_PKG_VERSION").into(),
        state: state.into(),
        model,
        engine,
        active_size,
        available_sizes,
        loading_fraction: status.loading_fraction,
        problem: status.problem,
        limits: Some(v1::Limits {
            context_tokens,
            max_tokens: limits.max_tokens,
            default_max_tokens: limits.default_max_tokens,
            parallel_requests: limits.parallel_requests,
            queued_requests: limits.queued_requests,
            prompt_bytes: limits.prompt_bytes,
        }),
        running_requests: running,
        queued_requests: queued,
    }
}

pub(super) fn activity(activity: Activity) -> v1::ListRequestsResponse {
    let Activity { requests, foreground, uptime, completion_tokens, ended_requests } = activity;
    let row = |request: ActiveRequest| {
        let ActiveRequest { id, client, priority, served_as, glance } = request;
        let state = match glance.stage {
            Stage::Queued => v1::RequestState::Queued,
            Stage::Prefill => v1::RequestState::Prefill,
            Stage::Decode => v1::RequestState::Decode,
        };
        v1::ActiveRequest {
            request_id: id,
            client: client.to_string(),
            priority: urgency(priority).into(),
            served_as: urgency(served_as).into(),
            state: state.into(),
            prompt_tokens: glance.usage.prompt_tokens,
            completion_tokens: glance.usage.completion_tokens,
            age_ms: millis(glance.age),
            ttft_us: glance.ttft.map_or(0, micros),
        }
    };
    v1::ListRequestsResponse {
        requests: requests.into_iter().map(row).collect(),
        uptime_ms: millis(uptime),
        completion_tokens,
        ended_requests,
        foreground: foreground.map(lease),
    }
}

fn urgency(priority: Priority) -> v1::Priority {
    match priority {
        Priority::Interactive => v1::Priority::Interactive,
        Priority::Normal => v1::Priority::Normal,
        Priority::Background => v1::Priority::Background,
    }
}

fn lease(lease: Lease) -> v1::ForegroundLease {
    let Lease { id, client, app: App { uid, unit, connection, certificate }, reason } = lease;
    let app = v1::App { uid, unit, connection, certificate };
    v1::ForegroundLease { id, client, app: Some(app), reason }
}

/// The app that a request is about; one of which nothing is said is refused further in.
pub(super) fn app(app: Option<v1::App>) -> App {
    let v1::App { uid, unit, connection, certificate } = app.unwrap_or_default();
    App { uid, unit, connection, certificate }
}

pub(super) fn model(listed: Listed) -> v1::Model {
    let (engine, sizes, context_tokens, problem) = match listed.info {
        Ok(info) => {
            let sizes = info.sizes.into_iter().map(|size| v1::Size {
                name: size.name,
                effective_params_b: size.effective_params_b,
                memory_mib: size.memory_mib,
            });
            (info.engine.name().to_owned(), sizes.collect(), info.context_tokens, String::new())
        }
        Err(error) => (String::new(), Vec::new(), 0, error.told()),
    };
    v1::Model { name: listed.model, engine, sizes, context_tokens, loaded: listed.loaded, problem }
}
