//! Requests as a client may send them, through prost, the conversion and the checks; and what a client is told
//! of those that are refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use nestd_proto::v1;
use prost::Message;

use super::convert;
use super::error::status;
use crate::types::{Error, Limits, check_messages, check_turns};

const LIMITS: Limits = Limits {
    parallel_requests: 1,
    queued_requests: 1,
    max_tokens: 4096,
    default_max_tokens: 16,
    prompt_bytes: 1 << 20,
};
/// What HTTP/2 clients take of headers if nobody says otherwise.
const HEADERS: usize = 16 << 10;

/// A request, its kind in front.
pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    if let Err(error) = request(*kind, body) {
        tell(&error);
    }
}

fn request(kind: u8, body: &[u8]) -> Result<(), Error> {
    match kind % 9 {
        0 => {
            let mut request = convert::request(read(body)?)?;
            request.check(&[], &LIMITS)?;
            assert!((1..=LIMITS.max_tokens).contains(&request.stopping.max_tokens));
        }
        1 => {
            let v1::CountTokensRequest { messages } = read(body)?;
            let messages = convert::messages(messages)?;
            check_messages(&messages, &LIMITS)?;
            // What was said is told again, as it was.
            let transcript = v1::Transcript { messages: convert::transcript(messages.clone()) };
            let v1::Transcript { messages: told } = read(&transcript.encode_to_vec())?;
            assert_eq!(convert::messages(told), Ok(messages));
        }
        2 => {
            let v1::CreateSessionRequest { messages, options } = read(body)?;
            convert::session_options(options);
            check_turns(&[], &convert::messages(messages)?, &LIMITS)?;
        }
        3 => {
            let v1::AppendRequest { session, messages } = read(body)?;
            check_turns(&[], &convert::messages(messages)?, &LIMITS)?;
            return Err(Error::SessionNotFound { session });
        }
        4 => {
            let v1::ForkSessionRequest { session, options } = read(body)?;
            convert::session_options(options);
            return Err(Error::SessionNotFound { session });
        }
        5 => {
            let v1::PrewarmRequest { session, priority } = read(body)?;
            convert::priority(priority)?;
            return Err(Error::SessionNotFound { session });
        }
        6 => {
            let v1::LoadModelRequest { model, size } = read(body)?;
            tell(&Error::ModelNotFound { model: model.clone() });
            return Err(Error::InsufficientMemory { model, size, need_mib: 1, available_mib: 0 });
        }
        7 => {
            let v1::HoldRequest { min_size, max_size, reason, .. } = read(body)?;
            tell(&Error::invalid(min_size, max_size));
            return Err(Error::NotAllowed { what: reason });
        }
        _ => {
            let _: v1::GetStatusRequest = read(body)?;
            // Those of GetTranscript and Delete are the same.
            let v1::PinRequest { size } = read(body)?;
            return Err(Error::ModelInvalid { model: size.clone(), problem: size });
        }
    }
    Ok(())
}

fn read<T: Message + Default>(body: &[u8]) -> Result<T, Error> {
    T::decode(body).map_err(|error| Error::Internal(error.to_string()))
}

/// The status fits into headers, and is the same when it is read there.
fn tell(error: &Error) {
    let status = status(error);
    let (head, ()) = status.clone().into_http::<()>().into_parts();
    let headers = head.headers.iter();
    let bytes: usize = headers.map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    assert!(bytes < HEADERS, "{bytes} bytes of headers");
    let read = tonic::Status::from_header_map(&head.headers).unwrap();
    assert_eq!(read.code(), status.code());
    assert_eq!(read.message(), status.message());
    assert_eq!(read.details(), status.details());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| v1::Part { kind: Some(v1::part::Kind::Text(text.into())) };
    let media = v1::Media { mime_type: "image/png".into(), data: vec![0] };
    let turn = |role: v1::Role, parts| v1::Message { role: role.into(), parts };
    let messages = vec![
        turn(v1::Role::System, vec![text("Be brief.")]),
        turn(v1::Role::User, vec![text("Hello"), text("\u{1}")]),
    ];
    let mut picture = messages.clone();
    picture[1].parts.push(v1::Part { kind: Some(v1::part::Kind::Image(media)) });
    let generate = v1::GenerateRequest {
        messages: messages.clone(),
        sampling: Some(v1::Sampling {
            temperature: Some(0.5),
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.1),
            seed: Some(7),
            presence_penalty: Some(1.0),
            frequency_penalty: Some(-1.0),
            repetition_penalty: Some(1.5),
        }),
        stopping: Some(v1::Stopping { max_tokens: 9, stop: vec!["\n".into()], deadline_ms: 1 }),
        json_schema: r#"{"type":"object"}"#.into(),
        top_logprobs: Some(2),
        priority: v1::Priority::Background.into(),
        session: "0123456789abcdef".into(),
        tools: vec![],
    };
    let session = || "0123456789abcdef".to_owned();
    let options = Some(v1::SessionOptions { persistent: true, ttl_ms: 1000 });
    let all = [
        generate.encode_to_vec(),
        v1::CountTokensRequest { messages: messages.clone() }.encode_to_vec(),
        v1::CreateSessionRequest { messages: picture, options }.encode_to_vec(),
        v1::AppendRequest { session: session(), messages }.encode_to_vec(),
        v1::ForkSessionRequest { session: session(), options }.encode_to_vec(),
        v1::PrewarmRequest { session: session(), priority: 1 }.encode_to_vec(),
        v1::LoadModelRequest { model: "demo".into(), size: "E2B".into() }.encode_to_vec(),
        v1::HoldRequest {
            min_size: "E2B".into(),
            max_size: "E4B".into(),
            no_background: true,
            reason: "a call".into(),
        }
        .encode_to_vec(),
        v1::PinRequest { size: "E2B".into() }.encode_to_vec(),
    ];
    (0..).zip(all).map(|(kind, body)| [vec![kind], body].concat()).collect()
}
