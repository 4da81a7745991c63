//! One look at the daemon: everything that `nestctl top` shows.

use std::time::{Duration, Instant};

use nestd_client::v1::{
    ActiveRequest, GovernorReport, ListRequestsResponse, RequestState, StatusReport,
};
use nestd_client::{Client, Error};
use serde_json::{Value, json};

use crate::args::Global;
use crate::problem::Problem;
use crate::{connect, foreground, governor, json};

/// A daemon that takes longer is as good as gone, for now.
const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon, which may go and come back.
pub struct Daemon<'a> {
    global: &'a Global,
    client: Option<Client>,
}

/// What the daemon said of itself at one moment.
pub struct Look {
    pub at: Instant,
    pub status: StatusReport,
    pub governor: GovernorReport,
    pub activity: ListRequestsResponse,
}

impl<'a> Daemon<'a> {
    pub fn new(global: &'a Global) -> Self {
        Self { global, client: None }
    }

    /// Looks; connects first if that has to be done (again).
    pub async fn look(&mut self) -> Result<Look, Problem> {
        let look = async {
            let client = match self.client.take() {
                Some(client) => client,
                None => connect(self.global).await?,
            };
            let (status, governor, activity) =
                futures::try_join!(client.status(), client.governor(), client.requests())?;
            self.client = Some(client);
            Ok(Look { at: Instant::now(), status, governor, activity })
        };
        let late = || Error::Disconnected(format!("nestd has not answered for {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| Err(late().into()))
    }
}

impl Look {
    /// The object that `--json` prints.
    pub fn json(&self) -> Value {
        json!({
            "status": json::report(&self.status),
            "governor": governor::value(&self.governor),
            "requests": self.activity.requests.iter().map(request).collect::<Vec<_>>(),
            "foreground": self.activity.foreground.as_ref().map(foreground::value),
            "uptime_ms": self.activity.uptime_ms,
            "completion_tokens": self.activity.completion_tokens,
            "ended_requests": self.activity.ended_requests,
        })
    }
}

fn request(request: &ActiveRequest) -> Value {
    json!({
        "request_id": request.request_id,
        "client": request.client,
        "priority": json::priority(request.priority()),
        "served_as": json::priority(request.served_as()),
        "state": state(request),
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.completion_tokens,
        "age_ms": request.age_ms,
        "ttft_us": request.ttft_us,
    })
}

/// The word for a request's state.
pub fn state(request: &ActiveRequest) -> &'static str {
    match request.state() {
        RequestState::Unspecified => "unknown",
        RequestState::Queued => "queued",
        RequestState::Prefill => "prefill",
        RequestState::Decode => "decode",
    }
}
