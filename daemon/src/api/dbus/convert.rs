//! From D-Bus values to the daemon's types, and back. Nothing from a client is trusted: a key, a kind
//! or a role that is not known is refused by name, and so is a value of another type.

use std::borrow::Cow;
use std::collections::HashMap;

use zbus::{OwnedVariant, Str, Variant};

use crate::api::{later, micros, millis};
use crate::governor::Wish;
use crate::service::{ActiveRequest, Activity, App, Lease, Listed, Report};
use crate::types::{
    EngineKind, Error, Finished, Logprob, Message, Part, Priority, Role, Sampling, SessionInfo,
    SessionOptions, State, Status, Stopping, TokenLogprobs,
};

/// A conversation: `a(sa(sv))`.
pub(super) type Messages = Vec<(String, Vec<(String, OwnedVariant)>)>;
/// `a{sv}` from a client.
pub(super) type Options = HashMap<String, OwnedVariant>;
/// `a{sv}` to a client.
pub(super) type Dict = HashMap<&'static str, OwnedVariant>;

pub(super) fn messages(messages: Messages) -> Result<Vec<Message>, Error> {
    messages.into_iter().enumerate().map(decode).collect()
}

/// A conversation, as a client would write it.
pub(super) fn transcript(messages: &[Message]) -> Messages {
    let part = |Part::Text(text): &Part| ("text".to_owned(), string(text));
    let turn =
        |m: &Message| (m.role.name().to_owned(), m.parts.iter().map(part).collect::<Vec<_>>());
    messages.iter().map(turn).collect()
}

fn decode(
    (index, (role, parts)): (usize, (String, Vec<(String, OwnedVariant)>)),
) -> Result<Message, Error> {
    let role = match role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => return Err(later(format!("messages[{index}].role tool"))),
        _ => {
            return Err(Error::invalid(
                format!("messages[{index}].role"),
                format!("{role:?} is not \"system\", \"user\" or \"assistant\""),
            ));
        }
    };
    let part = |(part, (kind, value)): (usize, (String, OwnedVariant))| {
        let path = format!("messages[{index}].parts[{part}]");
        match kind.as_str() {
            "text" => Ok(Part::Text(take(&path, value)?)),
            "image" | "audio" | "video" | "tool_result" => Err(later(format!("{path}.{kind}"))),
            _ => Err(Error::invalid(path, format!("{kind:?} is not a kind of part"))),
        }
    };
    let parts = parts.into_iter().enumerate().map(part).collect::<Result<_, _>>()?;
    Ok(Message { role, parts })
}

/// What the options of Generate say.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    pub(super) sampling: Sampling,
    pub(super) stopping: Stopping,
    pub(super) json_schema: Option<String>,
    pub(super) top_logprobs: Option<u32>,
    pub(super) priority: Priority,
    pub(super) session: String,
    pub(super) handle_token: Option<String>,
}

pub(super) fn options(options: Options) -> Result<Decoded, Error> {
    let mut decoded = Decoded::default();
    let Decoded { sampling, stopping, json_schema, top_logprobs, priority, session, handle_token } =
        &mut decoded;
    for (key, value) in options {
        match key.as_str() {
            "temperature" => sampling.temperature = Some(take(&key, value)?),
            "top_k" => sampling.top_k = Some(take(&key, value)?),
            "top_p" => sampling.top_p = Some(take(&key, value)?),
            "min_p" => sampling.min_p = Some(take(&key, value)?),
            "seed" => sampling.seed = Some(take(&key, value)?),
            "presence_penalty" => sampling.presence_penalty = Some(take(&key, value)?),
            "frequency_penalty" => sampling.frequency_penalty = Some(take(&key, value)?),
            "repetition_penalty" => sampling.repetition_penalty = Some(take(&key, value)?),
            "max_tokens" => stopping.max_tokens = take(&key, value)?,
            "stop" => stopping.stop = take(&key, value)?,
            "deadline_ms" => stopping.deadline_ms = take(&key, value)?,
            "json_schema" => {
                *json_schema =
                    Some(take(&key, value)?).filter(|schema: &String| !schema.is_empty());
            }
            "top_logprobs" => *top_logprobs = Some(take(&key, value)?),
            "handle_token" => *handle_token = Some(take(&key, value)?),
            "priority" => *priority = urgency(&take::<String>(&key, value)?)?,
            "session" => *session = take(&key, value)?,
            "tools" => return Err(later(key)),
            _ => return Err(unknown(key)),
        }
    }
    Ok(decoded)
}

/// What the options of `CreateSession` and `Fork` say.
pub(super) fn session_options(options: Options) -> Result<SessionOptions, Error> {
    let mut session = SessionOptions::default();
    for (key, value) in options {
        match key.as_str() {
            "persistent" => session.persistent = take(&key, value)?,
            "ttl_ms" => session.ttl_ms = take(&key, value)?,
            _ => return Err(unknown(key)),
        }
    }
    Ok(session)
}

/// What the options of `Prewarm` say: the priority, and the handle token.
pub(super) fn prewarm_options(options: Options) -> Result<(Priority, Option<String>), Error> {
    let (mut priority, mut handle_token) = (Priority::default(), None);
    for (key, value) in options {
        match key.as_str() {
            "priority" => priority = urgency(&take::<String>(&key, value)?)?,
            "handle_token" => handle_token = Some(take(&key, value)?),
            _ => return Err(unknown(key)),
        }
    }
    Ok((priority, handle_token))
}

fn urgency(name: &str) -> Result<Priority, Error> {
    Priority::ALL.into_iter().find(|priority| priority.name() == name).ok_or_else(|| {
        let names = Priority::ALL.map(|priority| format!("{:?}", priority.name()));
        Error::invalid("priority", format!("{name:?} is not one of {}", names.join(", ")))
    })
}

/// What the options of `LoadModel` say: the size, and the handle token.
pub(super) fn load_options(options: Options) -> Result<(String, Option<String>), Error> {
    let (mut size, mut handle_token) = (String::new(), None);
    for (key, value) in options {
        match key.as_str() {
            "size" => size = take(&key, value)?,
            "handle_token" => handle_token = Some(take(&key, value)?),
            _ => return Err(unknown(key)),
        }
    }
    Ok((size, handle_token))
}

/// What the options of `Hold` say.
pub(super) fn wish(options: Options) -> Result<Wish, Error> {
    let mut wish = Wish::default();
    for (key, value) in options {
        match key.as_str() {
            "min_size" => wish.min_size = take(&key, value)?,
            "max_size" => wish.max_size = take(&key, value)?,
            "no_background" => wish.no_background = take(&key, value)?,
            "reason" => wish.reason = take(&key, value)?,
            _ => return Err(unknown(key)),
        }
    }
    Ok(wish)
}

/// What the options of `HoldForeground` say: the app, and why.
pub(super) fn app(options: Options) -> Result<(App, String), Error> {
    let (mut app, mut reason) = (App::default(), String::new());
    for (key, value) in options {
        match key.as_str() {
            "uid" => app.uid = Some(take(&key, value)?),
            "unit" => app.unit = take(&key, value)?,
            "connection" => app.connection = take(&key, value)?,
            "certificate" => app.certificate = take(&key, value)?,
            "reason" => reason = take(&key, value)?,
            _ => return Err(unknown(key)),
        }
    }
    Ok((app, reason))
}

fn unknown(key: String) -> Error {
    Error::invalid(key, "is not an option of this call")
}

/// A value of the type that its key wants.
fn take<T: TryFrom<OwnedVariant> + zbus::Type>(key: &str, value: OwnedVariant) -> Result<T, Error> {
    let given = value.value_signature().to_string();
    T::try_from(value).map_err(|_| {
        Error::invalid(
            key,
            format!("has the D-Bus type {given:?}, and wants {:?}", T::SIGNATURE.to_string()),
        )
    })
}

/// Text as D-Bus takes it: a bus cuts off whoever sends a NUL in a string, and a model may make one.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{FFFD}").into() } else { text.into() }
}

/// A string as a variant.
pub(super) fn string(text: &str) -> OwnedVariant {
    OwnedVariant::from(Str::from(clean(text).into_owned()))
}

fn array(items: &[String]) -> OwnedVariant {
    let items: Vec<_> = items.iter().map(|item| clean(item).into_owned()).collect();
    owned(Variant::from(items))
}

fn dict(values: Dict) -> OwnedVariant {
    owned(Variant::from(values))
}

/// A value without file descriptors, the one thing that cannot be copied.
fn owned(value: Variant<'_>) -> OwnedVariant {
    OwnedVariant::try_from(value).unwrap_or_else(|_| string(""))
}

/// A token: its number, its text, the logarithm of its probability.
pub(super) type Token = (u32, String, f64);

/// `a((usd)a(usd))`: the tokens of an answer, each with the likeliest in its place.
pub(super) fn logprobs(drawn: &[TokenLogprobs]) -> Vec<(Token, Vec<Token>)> {
    let token = |one: &Logprob| (one.id, clean(&one.text).into_owned(), one.logprob);
    drawn.iter().map(|one| (token(&one.token), one.top.iter().map(token).collect())).collect()
}

pub(super) fn finished(end: &Finished) -> Dict {
    HashMap::from([
        ("reason", string(end.reason.name())),
        ("prompt_tokens", end.usage.prompt_tokens.into()),
        ("cached_tokens", end.usage.cached_tokens.into()),
        ("completion_tokens", end.usage.completion_tokens.into()),
        ("queue_us", end.timings.queue_us.into()),
        ("ttft_us", end.timings.ttft_us.into()),
        ("prefill_tokens_per_s", end.timings.prefill_tokens_per_s.into()),
        ("decode_tokens_per_s", end.timings.decode_tokens_per_s.into()),
        ("sizes", array(&end.sizes)),
    ])
}

pub(super) fn state(status: &Status) -> &'static str {
    match status.state {
        State::NoModel => "no-model",
        State::Loading => "loading",
        State::Ready => "ready",
        State::Parked => "parked",
        State::Draining => "draining",
    }
}

/// The properties of Manager1 that may change, by name.
pub(super) fn properties(
    status: &Status,
    foreground: Option<&Lease>,
) -> [(&'static str, OwnedVariant); 7] {
    let loaded = status.loaded.as_ref();
    [
        ("State", string(state(status))),
        ("Model", string(status.model())),
        ("Engine", string(loaded.map_or("", |loaded| loaded.engine.name()))),
        ("ActiveSize", string(loaded.map_or("", |loaded| &loaded.size))),
        ("AvailableSizes", array(loaded.map_or(&[], |loaded| &loaded.sizes))),
        ("Problem", string(&status.problem)),
        ("Foreground", dict(foreground.map(lease).unwrap_or_default())),
    ]
}

/// A lease of the foreground, with what is given of its app.
pub(super) fn lease(lease: &Lease) -> Dict {
    let Lease { id, client, app: App { uid, unit, connection, certificate }, reason } = lease;
    let mut told = HashMap::from([
        ("id", (*id).into()),
        ("client", string(client)),
        ("reason", string(reason)),
    ]);
    told.extend(uid.map(|uid| ("uid", uid.into())));
    let names = [("unit", unit), ("connection", connection), ("certificate", certificate)];
    let given = names.into_iter().filter(|(_, name)| !name.is_empty());
    told.extend(given.map(|(key, name)| (key, string(name))));
    told
}

pub(super) fn report(report: &Report) -> Dict {
    let Report { status, limits, running, queued } = report;
    let loaded = status.loaded.as_ref();
    HashMap::from([
        ("version", string(env!("CARGO_PKG_VERSION"))),
        ("state", string(state(status))),
        ("model", string(status.model())),
        ("engine", string(loaded.map_or("", |loaded| loaded.engine.name()))),
        ("active_size", string(loaded.map_or("", |loaded| &loaded.size))),
        ("available_sizes", array(loaded.map_or(&[], |loaded| &loaded.sizes))),
        ("problem", string(&status.problem)),
        ("loading_fraction", status.loading_fraction.into()),
        ("context_tokens", loaded.map_or(0, |loaded| loaded.context_tokens).into()),
        ("max_tokens", limits.max_tokens.into()),
        ("default_max_tokens", limits.default_max_tokens.into()),
        ("parallel_requests", limits.parallel_requests.into()),
        ("queued_requests", limits.queued_requests.into()),
        ("prompt_bytes", limits.prompt_bytes.into()),
        ("running", (*running).into()),
        ("queued", (*queued).into()),
    ])
}

/// The rows of `ListRequests`, and its totals.
pub(super) fn activity(activity: &Activity) -> (Vec<Dict>, Dict) {
    let row = |request: &ActiveRequest| {
        let ActiveRequest { id, client, priority, served_as, glance } = request;
        HashMap::from([
            ("request_id", (*id).into()),
            ("client", string(&client.to_string())),
            ("priority", string(priority.name())),
            ("served_as", string(served_as.name())),
            ("state", string(glance.stage.name())),
            ("prompt_tokens", glance.usage.prompt_tokens.into()),
            ("completion_tokens", glance.usage.completion_tokens.into()),
            ("age_ms", millis(glance.age).into()),
            ("ttft_us", glance.ttft.map_or(0, micros).into()),
        ])
    };
    let mut totals = HashMap::from([
        ("uptime_ms", millis(activity.uptime).into()),
        ("completion_tokens", activity.completion_tokens.into()),
        ("ended_requests", activity.ended_requests.into()),
    ]);
    totals.extend(activity.foreground.as_ref().map(|held| ("foreground", dict(lease(held)))));
    (activity.requests.iter().map(row).collect(), totals)
}

pub(super) fn model(listed: &Listed) -> Dict {
    let info = listed.info.as_ref();
    let problem = info.err().map(Error::told).unwrap_or_default();
    let sizes: Vec<(String, f64, u64)> = info.map_or_else(
        |_| Vec::new(),
        |info| {
            let sizes = info.sizes.iter();
            sizes
                .map(|s| (clean(&s.name).into_owned(), s.effective_params_b, s.memory_mib))
                .collect()
        },
    );
    HashMap::from([
        ("name", string(&listed.model)),
        ("engine", string(info.map_or("", |info| EngineKind::name(info.engine)))),
        ("context_tokens", info.map_or(0, |info| info.context_tokens).into()),
        ("loaded", listed.loaded.into()),
        ("problem", string(&problem)),
        ("sizes", owned(Variant::new(sizes))),
    ])
}

pub(super) fn session(info: &SessionInfo) -> Dict {
    HashMap::from([
        ("id", string(&info.id)),
        ("persistent", info.persistent.into()),
        ("ttl_ms", info.ttl_ms.into()),
        ("idle_ms", info.idle_ms.into()),
        ("messages", info.messages.into()),
        ("answering", info.answering.into()),
    ])
}

/// An outcome that is an error.
pub(super) fn failed(name: &str, message: &str, details: &Dict) -> Dict {
    HashMap::from([
        ("error", string(name)),
        ("message", string(message)),
        ("details", owned(Variant::from(details.clone()))),
    ])
}
