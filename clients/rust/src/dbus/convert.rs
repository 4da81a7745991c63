//! What the vocabulary of `nestd.v1` looks like on the bus, as `org.nestd.Manager1.xml` and
//! `org.nestd.Request1.xml` write it: messages as `a(sa(sv))`, options and reports as `a{sv}`, events as
//! signals.

use std::collections::{BTreeMap, HashMap};

use nestd_proto::{
    dbus::ERROR_PREFIX,
    v1::{
        self, ErrorReason, FinishReason, Finished, GenerateRequest, Limits, Loading, Logprob,
        Message, Model, Part, Prefill, Priority, Queued, Role, Size, SizeChanged, State,
        StatusReport, Text, Timings, TokenLogprobs, Usage, generate_event::Event, part::Kind,
    },
};
use zbus::{DeserializeDict, OwnedVariant, SerializeDict, Type, Variant, names::MemberName};

use crate::Error;

/// Role and parts, each with its kind and value.
pub type Turn = (String, Vec<(String, OwnedVariant)>);

/// A conversation as `a(sa(sv))`. Roles and kinds that the bus has no word for go as they are, so that
/// the daemon refuses them with its own words.
pub fn messages(messages: &[Message]) -> Result<Vec<Turn>, Error> {
    messages.iter().enumerate().map(|(index, message)| turn(index, message)).collect()
}

fn turn(index: usize, message: &Message) -> Result<Turn, Error> {
    let role = match Role::try_from(message.role) {
        Ok(Role::Unspecified) => String::new(),
        Ok(Role::System) => "system".into(),
        Ok(Role::User) => "user".into(),
        Ok(Role::Assistant) => "assistant".into(),
        Ok(Role::Tool) => "tool".into(),
        Err(_) => message.role.to_string(),
    };
    let parts = message.parts.iter().enumerate().map(|(part_index, part)| {
        let (kind, value) = match &part.kind {
            Some(Kind::Text(text)) => ("text", text.as_str()),
            Some(Kind::Image(_)) => ("image", ""),
            Some(Kind::Audio(_)) => ("audio", ""),
            Some(Kind::Video(_)) => ("video", ""),
            Some(Kind::ToolResult(_)) => ("tool_result", ""),
            None => ("", ""),
        };
        carried(value, || format!("messages[{index}].parts[{part_index}].{kind}"))?;
        Ok((kind.to_owned(), Variant::from(value).try_into_owned()?))
    });
    Ok((role, parts.collect::<Result<_, Error>>()?))
}

/// A conversation from the bus.
pub fn transcript(turns: Vec<Turn>) -> Result<Vec<Message>, Error> {
    let part = |(kind, value): (String, OwnedVariant)| match kind.as_str() {
        "text" => Ok(Part { kind: Some(Kind::Text(value.try_into()?)) }),
        kind => Err(Error::Unexpected(format!("the daemon gave a part of the kind {kind:?}"))),
    };
    let message = |(role, parts): Turn| {
        let role = match role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            role => return Err(Error::Unexpected(format!("the daemon gave the role {role:?}"))),
        };
        let parts = parts.into_iter().map(part).collect::<Result<_, _>>()?;
        Ok(Message { role: role.into(), parts })
    };
    turns.into_iter().map(message).collect()
}

/// The options of `CreateSession` and `Fork`.
#[derive(SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct SessionOptions {
    persistent: Option<bool>,
    ttl_ms: Option<u64>,
}

impl From<v1::SessionOptions> for SessionOptions {
    fn from(options: v1::SessionOptions) -> Self {
        Self { persistent: some(options.persistent), ttl_ms: some(options.ttl_ms) }
    }
}

/// The options of `Prewarm`.
#[derive(SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct PrewarmOptions {
    priority: Option<String>,
    handle_token: String,
}

impl PrewarmOptions {
    pub fn new(priority: Priority, handle_token: &str) -> Self {
        Self { priority: urgency(priority.into()), handle_token: handle_token.to_owned() }
    }
}

/// An entry of `ListSessions`.
#[derive(DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct SessionEntry {
    id: String,
    persistent: bool,
    ttl_ms: u64,
    idle_ms: u64,
    messages: u32,
    answering: bool,
}

impl From<SessionEntry> for v1::Session {
    fn from(entry: SessionEntry) -> Self {
        let SessionEntry { id, persistent, ttl_ms, idle_ms, messages, answering } = entry;
        Self { id, persistent, ttl_ms, idle_ms, messages, answering }
    }
}

/// What the daemon says of a session that is not there.
pub fn no_session(session: &str) -> Error {
    let message = format!("there is no session {session:?} of this caller");
    let details = BTreeMap::from([("session".to_owned(), session.to_owned())]);
    Error::failed(ErrorReason::SessionNotFound, message, details)
}

fn urgency(priority: i32) -> Option<String> {
    match Priority::try_from(priority) {
        Ok(Priority::Unspecified) => None,
        Ok(Priority::Interactive) => Some("interactive".into()),
        Ok(Priority::Normal) => Some("normal".into()),
        Ok(Priority::Background) => Some("background".into()),
        Err(_) => Some(priority.to_string()),
    }
}

/// Refuses a string that the bus would not carry: it drops a connection that sends a NUL.
pub fn carried(value: &str, field: impl FnOnce() -> String) -> Result<(), Error> {
    if !value.contains('\0') {
        return Ok(());
    }
    let field = field();
    let message = format!("{field}: D-Bus cannot carry the character U+0000");
    let details = BTreeMap::from([("field".to_owned(), field)]);
    Err(Error::failed(ErrorReason::InvalidArgument, message, details))
}

/// The options of `Generate` and `GenerateToFd`. What this version of the daemon refuses by name is sent
/// all the same.
#[derive(Default, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Options {
    temperature: Option<f64>,
    top_k: Option<u32>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    seed: Option<u64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    max_tokens: Option<u32>,
    stop: Option<Vec<String>>,
    deadline_ms: Option<u64>,
    session: Option<String>,
    priority: Option<String>,
    tools: Option<Vec<(String, String, String)>>,
    json_schema: Option<String>,
    top_logprobs: Option<u32>,
    handle_token: String,
}

impl Options {
    pub fn new(request: GenerateRequest, handle_token: String) -> Result<Self, Error> {
        let sampling = request.sampling.unwrap_or_default();
        let stopping = request.stopping.unwrap_or_default();
        let tools = request.tools.into_iter();
        let tools = tools.map(|tool| (tool.name, tool.description, tool.parameters_json_schema));
        for (index, stop) in stopping.stop.iter().enumerate() {
            carried(stop, || format!("stopping.stop[{index}]"))?;
        }
        carried(&request.session, || "session".into())?;
        carried(&request.json_schema, || "json_schema".into())?;
        Ok(Self {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            max_tokens: some(stopping.max_tokens),
            stop: some(stopping.stop),
            deadline_ms: some(stopping.deadline_ms),
            session: some(request.session),
            priority: urgency(request.priority),
            tools: some(tools.collect()),
            json_schema: some(request.json_schema),
            top_logprobs: request.top_logprobs,
            handle_token,
        })
    }

    pub fn token(&self) -> &str {
        &self.handle_token
    }
}

/// The options of `LoadModel`.
#[derive(SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct LoadOptions {
    size: Option<String>,
    handle_token: String,
}

impl LoadOptions {
    pub fn new(size: &str, handle_token: &str) -> Result<Self, Error> {
        carried(size, || "size".into())?;
        Ok(Self { size: some(size.to_owned()), handle_token: handle_token.to_owned() })
    }
}

/// A value that was set: proto3 leaves the others at their default.
fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// What `GetStatus` returns.
#[derive(DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Status {
    version: String,
    state: String,
    model: String,
    engine: String,
    active_size: String,
    available_sizes: Vec<String>,
    problem: String,
    loading_fraction: f64,
    context_tokens: u32,
    max_tokens: u32,
    default_max_tokens: u32,
    parallel_requests: u32,
    queued_requests: u32,
    prompt_bytes: u32,
    running: u32,
    queued: u32,
}

impl TryFrom<Status> for StatusReport {
    type Error = Error;

    fn try_from(status: Status) -> Result<Self, Error> {
        let state = match status.state.as_str() {
            "no-model" => State::NoModel,
            "loading" => State::Loading,
            "ready" => State::Ready,
            "parked" => State::Parked,
            "draining" => State::Draining,
            other => return Err(Error::Unexpected(format!("nestd is in a state {other:?}"))),
        };
        Ok(Self {
            version: status.version,
            state: state.into(),
            model: status.model,
            engine: status.engine,
            active_size: status.active_size,
            available_sizes: status.available_sizes,
            loading_fraction: status.loading_fraction,
            problem: status.problem,
            limits: Some(Limits {
                context_tokens: status.context_tokens,
                max_tokens: status.max_tokens,
                default_max_tokens: status.default_max_tokens,
                parallel_requests: status.parallel_requests,
                queued_requests: status.queued_requests,
                prompt_bytes: status.prompt_bytes,
            }),
            running_requests: status.running,
            queued_requests: status.queued,
        })
    }
}

/// An element of what `ListModels` returns.
#[derive(DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ModelEntry {
    name: String,
    engine: String,
    context_tokens: u32,
    loaded: bool,
    problem: String,
    sizes: Vec<(String, f64, u64)>,
}

impl From<ModelEntry> for Model {
    fn from(entry: ModelEntry) -> Self {
        let size =
            |(name, effective_params_b, memory_mib)| Size { name, effective_params_b, memory_mib };
        Self {
            name: entry.name,
            engine: entry.engine,
            sizes: entry.sizes.into_iter().map(size).collect(),
            context_tokens: entry.context_tokens,
            loaded: entry.loaded,
            problem: entry.problem,
        }
    }
}

/// What Finished carries; a load's has the reason alone.
#[derive(Default, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
struct Outcome {
    reason: String,
    prompt_tokens: Option<u32>,
    cached_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    queue_us: Option<u64>,
    ttft_us: Option<u64>,
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    sizes: Option<Vec<String>>,
}

impl TryFrom<Outcome> for Finished {
    type Error = Error;

    fn try_from(outcome: Outcome) -> Result<Self, Error> {
        let reason = match outcome.reason.as_str() {
            "stop" => FinishReason::Stop,
            "length" => FinishReason::Length,
            "cancelled" => FinishReason::Cancelled,
            "deadline" => FinishReason::Deadline,
            other => return Err(Error::Unexpected(format!("a request finished with {other:?}"))),
        };
        Ok(Self {
            reason: reason.into(),
            usage: Some(Usage {
                prompt_tokens: outcome.prompt_tokens.unwrap_or_default(),
                cached_tokens: outcome.cached_tokens.unwrap_or_default(),
                completion_tokens: outcome.completion_tokens.unwrap_or_default(),
            }),
            timings: Some(Timings {
                queue_us: outcome.queue_us.unwrap_or_default(),
                ttft_us: outcome.ttft_us.unwrap_or_default(),
                prefill_tokens_per_s: outcome.prefill_tokens_per_s.unwrap_or_default(),
                decode_tokens_per_s: outcome.decode_tokens_per_s.unwrap_or_default(),
            }),
            sizes: outcome.sizes.unwrap_or_default(),
        })
    }
}

/// A token: its number, its text, the logarithm of its probability.
type Token = (u32, String, f64);

fn logprob((id, text, logprob): Token) -> Logprob {
    Logprob { id, text, logprob }
}

/// The event that a signal of `org.nestd.Request1` is. `None` for one that a later version brings.
pub fn event(signal: &zbus::Message) -> Result<Option<Event>, Error> {
    let header = signal.header();
    let body = signal.body();
    let event = match header.member().map_or("", MemberName::as_str) {
        "Queued" => Event::Queued(Queued { position: body.deserialize()? }),
        "Loading" => Event::Loading(Loading { fraction: body.deserialize()? }),
        "Prefill" => {
            let (done_tokens, total_tokens) = body.deserialize()?;
            Event::Prefill(Prefill { done_tokens, total_tokens })
        }
        "Text" => Event::Text(Text { delta: body.deserialize()?, logprobs: vec![] }),
        "TextLogprobs" => {
            let (delta, logprobs): (_, Vec<(Token, Vec<Token>)>) = body.deserialize()?;
            let drawn = |(token, top): (Token, Vec<Token>)| TokenLogprobs {
                token: Some(logprob(token)),
                top: top.into_iter().map(logprob).collect(),
            };
            Event::Text(Text { delta, logprobs: logprobs.into_iter().map(drawn).collect() })
        }
        "SizeChanged" => {
            let (from, to, reason) = body.deserialize()?;
            Event::SizeChanged(SizeChanged { from, to, reason })
        }
        "Finished" => Event::Finished(body.deserialize::<Outcome>()?.try_into()?),
        "Failed" => {
            let (name, message, details): (String, String, HashMap<String, OwnedVariant>) =
                body.deserialize()?;
            return Err(failure(&name, message, &details));
        }
        _ => return Ok(None),
    };
    Ok(Some(event))
}

/// A failure by its error's name, with the prefix or without.
fn failure(name: &str, message: String, details: &HashMap<String, OwnedVariant>) -> Error {
    let short = name.strip_prefix(ERROR_PREFIX).unwrap_or(name);
    Error::from_named(&format!("{ERROR_PREFIX}{short}"), message, details)
}

/// What the end of a stream means whose daemon left the bus: it was told to, or it was not.
pub fn gone(state: Option<i32>) -> Error {
    if state == Some(State::Draining.into()) {
        return Error::failed(ErrorReason::ShuttingDown, "the daemon is stopping", BTreeMap::new());
    }
    Error::disconnected()
}

#[cfg(test)]
mod tests;
