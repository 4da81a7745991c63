//! What the fuzz targets in `fuzz/` run of the client: each takes bytes as a daemon may send them to what
//! decodes them. [`seeds`] are well-formed inputs to begin with; the tests run them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc, reason = "a panic is a find")]

use std::collections::HashMap;
use std::time::Duration;

use nestd_proto::{ERROR_DOMAIN, v1};
use prost::Message;
use tonic::codegen::http::HeaderMap;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::error::Error;
use crate::grpc::Place;
use crate::grpc::channel::check_details;

/// A target with its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const TARGETS: [Target; 2] = [("client_grpc", client_grpc), ("client_dbus", client_dbus)];

/// An answer over gRPC, its kind in front: 0 is a status in headers.
pub fn client_grpc(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    match kind % 10 {
        0 => status(body),
        1 => read(body, |event: v1::GenerateEvent| {
            if let Some(v1::generate_event::Event::Finished(end)) = event.event {
                let _ = end.reason();
            }
        }),
        2 => read(body, |report: v1::StatusReport| {
            let _ = report.state();
        }),
        3 => read::<v1::GovernorReport>(body, drop),
        4 => read::<v1::ListModelsResponse>(body, drop),
        5 => read(body, |transcript: v1::Transcript| {
            let _: Vec<_> = transcript.messages.iter().map(v1::Message::role).collect();
        }),
        6 => read::<v1::ListSessionsResponse>(body, drop),
        7 => read(body, |activity: v1::ListRequestsResponse| {
            let requests = activity.requests.iter();
            let _: Vec<_> = requests.map(|one| (one.state(), one.priority())).collect();
        }),
        8 => read::<v1::HoldEvent>(body, drop),
        _ => {
            read::<v1::CountTokensResponse>(body, drop);
            read::<v1::LoadModelEvent>(body, drop);
            read::<v1::Session>(body, drop);
        }
    }
}

/// What is decoded is written so that it is decoded again.
fn read<T: Message + Default + Clone>(body: &[u8], use_it: fn(T)) {
    let Ok(message) = T::decode(body) else { return };
    let bytes = message.encode_to_vec();
    assert_eq!(T::decode(&*bytes).unwrap().encode_to_vec(), bytes);
    use_it(message);
}

/// Code, message and details, as headers carry them, with zeros between.
fn status(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    let parts = bytes.splitn(3, |byte| *byte == 0);
    for (name, value) in
        ["grpc-status", "grpc-message", "grpc-status-details-bin"].into_iter().zip(parts)
    {
        let Ok(value) = value.try_into() else { return };
        headers.insert(name, value);
    }
    check_details(&mut headers);
    let Some(status) = tonic::Status::from_header_map(&headers) else { return };
    let place = Place::Socket("/run/nestd/nestd.sock".into());
    told(&Error::from_status(&status, &place));
    told(&Error::from_status(&status, &Place::Tcp("https://nest:7878".into())));
}

/// An answer or a signal over D-Bus, its kind in front.
pub fn client_dbus(bytes: &[u8]) {
    if let Some(Err(error)) = crate::dbus::fuzzing::run(bytes) {
        told(&error);
    }
}

/// Every error has a sentence, and says what a program may ask of it.
fn told(error: &Error) {
    let _ = (error.to_string(), error.reason());
    if let Error::Failed(failure) = error
        && let Some(wait) = failure.retry_after
    {
        let said = failure.details.get("retry_after_ms").and_then(|text| text.parse().ok());
        assert_eq!(said, Some(wait.as_millis()));
    }
}

/// Well-formed inputs, each for the target of that name.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let over_grpc = statuses().into_iter().chain(answers());
    let all = over_grpc.map(|seed| ("client_grpc", seed));
    all.chain(crate::dbus::fuzzing::seeds().into_iter().map(|seed| ("client_dbus", seed))).collect()
}

fn statuses() -> Vec<Vec<u8>> {
    let metadata = HashMap::from([("limit".to_owned(), "8".to_owned())]);
    let mut details = ErrorDetails::with_error_info("QUEUE_FULL", ERROR_DOMAIN, metadata);
    details.set_retry_info(Some(Duration::from_millis(250)));
    details.add_bad_request_violation("sampling.top_p", "no");
    let ours = tonic::Status::with_error_details(tonic::Code::ResourceExhausted, "full", details);
    let seed = |status: tonic::Status| {
        let (head, ()) = status.into_http::<()>().into_parts();
        let value = |name: &str| head.headers.get(name).map_or(&[][..], |value| value.as_bytes());
        let (code, message) = (value("grpc-status"), value("grpc-message"));
        [b"\0", code, b"\0", message, b"\0", value("grpc-status-details-bin")].concat()
    };
    vec![seed(ours), seed(tonic::Status::unavailable("gone"))]
}

fn answers() -> Vec<Vec<u8>> {
    use v1::generate_event::Event;
    let token = |id| v1::Logprob { id, text: "Hi".into(), logprob: -0.5 };
    let drawn = v1::TokenLogprobs { token: Some(token(1)), top: vec![token(2), token(1)] };
    let text = v1::Text { delta: "Hi".into(), logprobs: vec![drawn] };
    let event = |event| v1::GenerateEvent { request_id: 7, event: Some(event) }.encode_to_vec();
    let messages = vec![
        crate::message(v1::Role::System, "Be brief."),
        crate::message(v1::Role::User, "Hello"),
    ];
    let session = v1::Session { id: "0123".into(), ttl_ms: 1, messages: 2, ..Default::default() };
    let status = v1::StatusReport {
        version: "0.1.0".into(),
        available_sizes: vec!["E2B".into(), "E4B".into()],
        limits: Some(v1::Limits { context_tokens: 4096, ..Default::default() }),
        ..Default::default()
    };
    let governor = v1::GovernorReport {
        readings: Some(v1::Readings { temp_c: Some(41.5), ..Default::default() }),
        holds: vec![v1::ActiveHold { id: 1, min_size: "E2B".into(), ..Default::default() }],
        ..Default::default()
    };
    let size = v1::Size { name: "E2B".into(), effective_params_b: 1.9, memory_mib: 2000 };
    let model = v1::Model { name: "demo".into(), sizes: vec![size], ..Default::default() };
    let finished = v1::Finished {
        reason: v1::FinishReason::Stop.into(),
        usage: Some(v1::Usage { prompt_tokens: 9, ..Default::default() }),
        timings: Some(v1::Timings { ttft_us: 1500, ..Default::default() }),
        sizes: vec!["E2B".into()],
    };
    let request = v1::ActiveRequest { request_id: 7, client: "uid 7".into(), ..Default::default() };
    let all = [
        (1, event(Event::Text(text))),
        (1, event(Event::Finished(finished))),
        (2, status.encode_to_vec()),
        (3, governor.encode_to_vec()),
        (4, v1::ListModelsResponse { models: vec![model] }.encode_to_vec()),
        (5, v1::Transcript { messages }.encode_to_vec()),
        (6, v1::ListSessionsResponse { sessions: vec![session.clone()] }.encode_to_vec()),
        (
            7,
            v1::ListRequestsResponse { requests: vec![request], ..Default::default() }
                .encode_to_vec(),
        ),
        (8, v1::HoldEvent { id: 1, active_size: "E2B".into() }.encode_to_vec()),
        (9, session.encode_to_vec()),
    ];
    all.into_iter().map(|(kind, body)| [vec![kind], body].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_and_every_cut_of_it_is_taken_or_refused() {
        for (name, seed) in seeds() {
            let (_, run) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
            run(&seed);
            for len in (0..seed.len()).step_by(seed.len() / 16 + 1) {
                run(&seed[..len]);
            }
        }
    }
}
