//! Calls as a client may send them, through zbus, the conversion and the checks; and the errors of those that
//! are refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]
#![allow(unsafe_code, reason = "a message with a body of any bytes")]

use std::collections::HashMap;

use zbus::wire::Endian;
use zbus::{DBusError, Message, OwnedVariant, Variant};

use super::convert::{self, Decoded, Messages, Options};
use super::error::Failure;
use crate::types::{Error, GenerateRequest, Limits, check_turns};

const LIMITS: Limits = Limits {
    parallel_requests: 1,
    queued_requests: 1,
    max_tokens: 4096,
    default_max_tokens: 16,
    prompt_bytes: 1 << 20,
};
/// An error is for a person to read, whatever was sent.
const REPLY: usize = 16 << 10;
/// The arguments of each kind of call.
const SIGNATURES: [&str; 7] =
    ["a(sa(sv))a{sv}", "a(sa(sv))", "a{sv}", "a{sv}", "sa{sv}", "a{sv}", "s"];

/// A call, its kind in front; kinds from 128 on are big-endian.
pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let endian = if *kind < 128 { Endian::Little } else { Endian::Big };
    let kind = usize::from(kind % 128) % SIGNATURES.len();
    let message = Message::method_call("/", "Call").sender(":1.7").endian(endian);
    // SAFETY: a bus carries such a message, too: a body is looked at when it is decoded.
    let Ok(message) = (unsafe { message.build_raw_body(body, SIGNATURES[kind], vec![]) }) else {
        return;
    };
    let Ok(Err(error)) = call(kind, &message.body()) else { return };
    let reply = Failure::from(error).create_reply(&message.header()).unwrap();
    assert!(reply.data().len() < REPLY, "{} bytes", reply.data().len());
    let body = reply.body();
    let (text, details): (String, HashMap<String, OwnedVariant>) = body.deserialize().unwrap();
    // A bus cuts off who sends these.
    assert!(!text.contains('\0'));
    let nul = |value: &Variant<'_>| matches!(value, Variant::Str(text) if text.contains('\0'));
    assert!(!details.values().any(|value| nul(value)));
}

/// As the interfaces decode it. The outer error is zbus's own.
fn call(kind: usize, body: &zbus::message::Body) -> zbus::Result<Result<(), Error>> {
    Ok(match kind {
        0 => {
            let (messages, options): (Messages, Options) = body.deserialize()?;
            generate(messages, options)
        }
        1 => {
            let messages: Messages = body.deserialize()?;
            append(messages)
        }
        2 => convert::session_options(body.deserialize()?).map(drop),
        3 => convert::prewarm_options(body.deserialize()?).map(drop),
        4 => {
            let (model, options): (String, Options) = body.deserialize()?;
            convert::load_options(options).and(Err(Error::ModelNotFound { model }))
        }
        5 => convert::wish(body.deserialize()?).map(drop),
        _ => Err(Error::SessionNotFound { session: body.deserialize()? }),
    })
}

fn generate(messages: Messages, options: Options) -> Result<(), Error> {
    let Decoded { sampling, stopping, json_schema, top_logprobs, priority, session, .. } =
        convert::options(options)?;
    let messages = convert::messages(messages)?;
    let mut request = GenerateRequest {
        messages,
        sampling,
        stopping,
        priority,
        top_logprobs,
        json_schema,
        session,
        prewarm: false,
    };
    request.check(&[], &LIMITS)
}

fn append(messages: Messages) -> Result<(), Error> {
    let messages = convert::messages(messages)?;
    // What was said is told again, as it was.
    assert_eq!(convert::messages(convert::transcript(&messages)).as_ref(), Ok(&messages));
    check_turns(&[], &messages, &LIMITS)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let turn = |role: &str, text: &str| {
        (role.to_owned(), vec![("text".to_owned(), convert::string(text))])
    };
    let messages = vec![turn("system", "Be brief."), turn("user", "Hello")];
    let options = |pairs: &[(&str, Variant<'_>)]| -> Options {
        let owned =
            |(key, value): &(&str, Variant<'_>)| ((*key).to_owned(), value.try_to_owned().unwrap());
        pairs.iter().map(owned).collect()
    };
    let token = ("handle_token", Variant::from("c0"));
    let sampling = options(&[
        ("temperature", 0.5.into()),
        ("top_k", 40_u32.into()),
        ("top_p", 0.9.into()),
        ("min_p", 0.1.into()),
        ("seed", 7_u64.into()),
        ("presence_penalty", 1.0.into()),
        ("frequency_penalty", (-1.0).into()),
        ("repetition_penalty", 1.5.into()),
        ("max_tokens", 9_u32.into()),
        ("stop", vec!["\n"].into()),
        ("deadline_ms", 1_u64.into()),
        ("json_schema", "{}".into()),
        ("top_logprobs", 2_u32.into()),
        ("priority", "background".into()),
        ("session", "0123456789abcdef".into()),
        token.clone(),
    ]);
    let session = options(&[("persistent", true.into()), ("ttl_ms", 1000_u64.into())]);
    let prewarm = options(&[("priority", "interactive".into()), token.clone()]);
    let load = options(&[("size", "E2B".into()), token]);
    let wish = options(&[
        ("min_size", "E2B".into()),
        ("max_size", "E4B".into()),
        ("no_background", true.into()),
        ("reason", "a call".into()),
    ]);
    vec![
        body(0, &(&messages, sampling)),
        body(1, &(messages,)),
        body(2, &(session,)),
        body(3, &(prewarm,)),
        body(4, &("demo", load)),
        body(5, &(wish,)),
        body(6, &("0123456789abcdef",)),
    ]
}

fn body<T: serde::Serialize + zbus::DynamicType>(kind: u8, arguments: &T) -> Vec<u8> {
    let message =
        Message::method_call("/", "Call").endian(Endian::Little).build(arguments).unwrap();
    assert_eq!(message.body().signature().to_string_no_parens(), SIGNATURES[usize::from(kind)]);
    [&[kind], message.body().data().bytes()].concat()
}
