//! The two APIs, side by side over one service, and the metrics. Each says who calls, asks [`access`]
//! whether it may, decodes and encodes; none decides anything.

pub(crate) mod access;
pub mod dbus;
pub mod grpc;
pub mod metrics;
mod socket;

use std::sync::Arc;
use std::time::Duration;

pub use access::Gate;

use crate::governor::Governor;
use crate::service::Service;
use crate::types::Error;

/// The key of a request's number in what tells its end.
const REQUEST_ID: &str = "request_id";

/// What a message may have beside its text.
const OVERHEAD_BYTES: usize = 1 << 20;

/// What both APIs stand on.
#[derive(Clone)]
pub struct Core {
    /// Models and requests.
    pub service: Arc<Service>,
    /// The size, and what the device can afford.
    pub governor: Arc<Governor>,
    /// Who may do what.
    pub gate: Arc<Gate>,
}

impl Core {
    /// A request's message is its text, at most this much over it: the limits that are in force.
    fn message_bytes(&self) -> usize {
        self.service.prompt_bytes() as usize + OVERHEAD_BYTES
    }
}

/// What the contracts have room for, and a later version brings.
fn later(what: impl Into<String>) -> Error {
    Error::unsupported(what, "this version of nestd does not have it")
}

/// As the contracts' fields have it.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
