//! Answers and signals as a daemon may send them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]
#![allow(unsafe_code, reason = "a message with a body of any bytes")]

use std::collections::HashMap;

use nestd_proto::v1::{Model, Session, StatusReport};
use zbus::wire::Endian;
use zbus::{Message, OwnedObjectPath, Variant, message::Body};

use super::{activity, convert, governor, session};
use crate::Error;

/// What each kind is: a signal, an answer by the name of its method, or an error; and its arguments.
const KINDS: [(&str, &str); 16] = [
    ("Queued", "u"),
    ("Loading", "d"),
    ("Prefill", "uu"),
    ("Text", "s"),
    ("TextLogprobs", "sa((usd)a(usd))"),
    ("SizeChanged", "sss"),
    ("Finished", "a{sv}"),
    ("Failed", "ssa{sv}"),
    ("GetStatus", "a{sv}"),
    ("ListModels", "aa{sv}"),
    ("ListSessions", "aa{sv}"),
    ("GetTranscript", "a(sa(sv))"),
    ("ListRequests", "aa{sv}a{sv}"),
    ("GetAll", "a{sv}"),
    ("CreateSession", "o"),
    ("Error", "sa{sv}"),
];

/// The first of those that is no signal.
const ANSWERS: usize = 8;

/// A body, its kind in front; kinds from 128 on are big-endian.
pub(crate) fn run(bytes: &[u8]) -> Option<Result<(), Error>> {
    let (kind, body) = bytes.split_first()?;
    let endian = if *kind < 128 { Endian::Little } else { Endian::Big };
    let kind = usize::from(kind % 128) % KINDS.len();
    let (name, signature) = KINDS[kind];
    let message = match kind {
        0..ANSWERS => Message::signal("/r", "org.nestd.Request1", name),
        _ => Message::error(&call().header(), "org.nestd.Error.QueueFull"),
    };
    // SAFETY: a bus carries such a message, too: a body is looked at when it is decoded.
    let message =
        unsafe { message.sender(":1.7").endian(endian).build_raw_body(body, signature, vec![]) };
    let message = message.ok()?;
    Some(match name {
        _ if kind < ANSWERS => convert::event(&message).map(drop),
        "Error" => Err(zbus::Error::from(message).into()),
        name => answer(name, &message.body()),
    })
}

/// As the calls decode it.
fn answer(name: &str, body: &Body) -> Result<(), Error> {
    match name {
        "GetStatus" => {
            StatusReport::try_from(body.deserialize::<convert::Status>()?)?;
        }
        "ListModels" => {
            let models: Vec<convert::ModelEntry> = body.deserialize()?;
            let _: Vec<Model> = models.into_iter().map(Model::from).collect();
        }
        "ListSessions" => {
            let sessions: Vec<convert::SessionEntry> = body.deserialize()?;
            let _: Vec<Session> = sessions.into_iter().map(Session::from).collect();
        }
        "GetTranscript" => {
            let messages = convert::transcript(body.deserialize()?)?;
            let again = convert::transcript(convert::messages(&messages)?)?;
            assert_eq!(again, messages);
        }
        "ListRequests" => {
            activity::activity(body.deserialize::<activity::Answer>()?)?;
        }
        "GetAll" => {
            governor::report(body.deserialize::<governor::Values>()?)?;
        }
        _ => {
            session::id(&body.deserialize::<OwnedObjectPath>()?)?;
        }
    }
    Ok(())
}

fn call() -> Message {
    Message::method_call("/", "Call").destination(":1.2").sender(":1.3").build(&()).unwrap()
}

type Dict = HashMap<&'static str, Variant<'static>>;

fn dict<const N: usize>(pairs: [(&'static str, Variant<'static>); N]) -> Dict {
    pairs.into_iter().collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let finished = dict([
        ("reason", "length".into()),
        ("prompt_tokens", 9_u32.into()),
        ("ttft_us", 1500_u64.into()),
        ("decode_tokens_per_s", 12.5.into()),
        ("sizes", vec!["E2B"].into()),
    ]);
    let details = dict([("limit", 8_u32.into()), ("retry_after_ms", 250_u64.into())]);
    let token = |id: u32| (id, "Hi", -0.5);
    let totals = dict([
        ("uptime_ms", 1_u64.into()),
        ("completion_tokens", 1_u64.into()),
        ("ended_requests", 1_u64.into()),
    ]);
    let transcript = vec![("user", vec![("text", Variant::from("Hello"))]), ("assistant", vec![])];
    vec![
        body(0, &(3_u32,)),
        body(1, &(0.5,)),
        body(2, &(1_u32, 2_u32)),
        body(3, &("Hi",)),
        body(4, &("Hi", vec![(token(1), vec![token(2), token(1)])])),
        body(5, &("E4B", "E2B", "memory")),
        body(6, &(finished,)),
        body(7, &("Lagged", "too slow", &details)),
        body(8, &(status(),)),
        body(9, &(vec![model()],)),
        body(10, &(vec![session()],)),
        body(11, &(transcript,)),
        body(12, &(vec![request()], totals)),
        body(13, &(properties(),)),
        body(14, &(OwnedObjectPath::try_from("/org/nestd/Nestd1/session/0123").unwrap(),)),
        body(15, &("all taken", details)),
    ]
}

fn status() -> Dict {
    dict([
        ("version", "0.1.0".into()),
        ("state", "ready".into()),
        ("model", "demo".into()),
        ("engine", "elastic".into()),
        ("active_size", "E4B".into()),
        ("available_sizes", vec!["E4B", "E2B"].into()),
        ("problem", "".into()),
        ("loading_fraction", 0.0.into()),
        ("context_tokens", 8192_u32.into()),
        ("max_tokens", 100_u32.into()),
        ("default_max_tokens", 50_u32.into()),
        ("parallel_requests", 2_u32.into()),
        ("queued_requests", 8_u32.into()),
        ("prompt_bytes", 1024_u32.into()),
        ("running", 1_u32.into()),
        ("queued", 3_u32.into()),
    ])
}

fn model() -> Dict {
    dict([
        ("name", "demo".into()),
        ("engine", "elastic".into()),
        ("context_tokens", 8192_u32.into()),
        ("loaded", true.into()),
        ("problem", "".into()),
        ("sizes", vec![("E4B", 4.0, 7_u64)].into()),
    ])
}

fn session() -> Dict {
    dict([
        ("id", "0123".into()),
        ("persistent", true.into()),
        ("ttl_ms", 1_u64.into()),
        ("idle_ms", 1_u64.into()),
        ("messages", 2_u32.into()),
        ("answering", false.into()),
    ])
}

fn request() -> Dict {
    dict([
        ("request_id", 7_u64.into()),
        ("client", "uid 7".into()),
        ("priority", "normal".into()),
        ("served_as", "normal".into()),
        ("state", "decode".into()),
        ("prompt_tokens", 1_u32.into()),
        ("completion_tokens", 1_u32.into()),
        ("age_ms", 1_u64.into()),
        ("ttft_us", 1_u64.into()),
    ])
}

fn properties() -> Dict {
    let mut all = dict([
        ("Holds", vec![(1_u64, "uid 7", "E2B", "", false, "a call")].into()),
        ("LastChange", ("E4B", "E2B", "memory", 5_u64).into()),
        ("Enabled", true.into()),
        ("BackgroundAllowed", true.into()),
        ("MaxContextTokens", 8192_u32.into()),
        ("MaxParallelRequests", 2_u32.into()),
        ("TempC", 41.5.into()),
        ("MemTotalMib", 4000_u64.into()),
        ("OnAc", false.into()),
    ]);
    let texts = [
        "Profile",
        "ActiveSize",
        "SelectedSize",
        "Level",
        "Cause",
        "Reason",
        "NextThreshold",
        "Shed",
        "Pin",
        "Problem",
    ];
    all.extend(texts.map(|name| (name, Variant::from("x"))));
    all
}

fn body<T: serde::Serialize + zbus::wire::DynamicType>(kind: u8, arguments: &T) -> Vec<u8> {
    let message =
        Message::method_call("/", "Call").endian(Endian::Little).build(arguments).unwrap();
    let (_, signature) = KINDS[usize::from(kind)];
    assert_eq!(message.body().signature().to_string_no_parens(), signature);
    [&[kind], message.body().data().bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_taken() {
        let taken = seeds().iter().map(|seed| run(seed).unwrap().is_ok()).collect::<Vec<_>>();
        let failures = [7, 15];
        let wanted: Vec<_> = (0..KINDS.len()).map(|kind| !failures.contains(&kind)).collect();
        assert_eq!(taken, wanted);
    }
}
