//! What `ListRequests` of `org.nestd.Manager1` looks like on the bus.

use nestd_proto::v1::{ActiveRequest, ListRequestsResponse, Priority, RequestState};
use zbus::{DeserializeDict, Type};

use super::governor::Values;
use super::{Dbus, foreground};
use crate::Error;

impl Dbus {
    /// See [`crate::Client::requests`].
    pub async fn requests(&self) -> Result<ListRequestsResponse, Error> {
        activity(self.call("ListRequests", &()).await?)
    }
}

/// What the call returns: the requests, and the totals.
pub(super) type Answer = (Vec<Entry>, Totals);

pub(super) fn activity((requests, totals): Answer) -> Result<ListRequestsResponse, Error> {
    Ok(ListRequestsResponse {
        requests: requests.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        uptime_ms: totals.uptime_ms,
        completion_tokens: totals.completion_tokens,
        ended_requests: totals.ended_requests,
        foreground: totals.foreground.map(foreground::lease).transpose()?,
    })
}

#[derive(DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct Totals {
    uptime_ms: u64,
    completion_tokens: u64,
    ended_requests: u64,
    foreground: Option<Values>,
}

#[derive(DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct Entry {
    request_id: u64,
    client: String,
    priority: String,
    served_as: String,
    state: String,
    prompt_tokens: u32,
    completion_tokens: u32,
    age_ms: u64,
    ttft_us: u64,
}

impl TryFrom<Entry> for ActiveRequest {
    type Error = Error;

    fn try_from(entry: Entry) -> Result<Self, Error> {
        let state = match entry.state.as_str() {
            "queued" => RequestState::Queued,
            "prefill" => RequestState::Prefill,
            "decode" => RequestState::Decode,
            other => return Err(Error::Unexpected(format!("a request is in a state {other:?}"))),
        };
        Ok(Self {
            request_id: entry.request_id,
            client: entry.client,
            priority: priority(&entry.priority)?.into(),
            served_as: priority(&entry.served_as)?.into(),
            state: state.into(),
            prompt_tokens: entry.prompt_tokens,
            completion_tokens: entry.completion_tokens,
            age_ms: entry.age_ms,
            ttft_us: entry.ttft_us,
        })
    }
}

fn priority(name: &str) -> Result<Priority, Error> {
    match name {
        "interactive" => Ok(Priority::Interactive),
        "normal" => Ok(Priority::Normal),
        "background" => Ok(Priority::Background),
        other => Err(Error::Unexpected(format!("a request has priority {other:?}"))),
    }
}
