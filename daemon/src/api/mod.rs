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
/// Text of an error: what a client sent may be in it, and it goes into headers of HTTP or a message on the bus,
/// whose sizes are limited. A bus cuts off who sends more than that.
const ERROR_TEXT: usize = 1024;

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

/// Text of an error, cut to its length.
fn bounded(mut text: String) -> String {
    let ends = text.char_indices().map(|(at, _)| at).find(|at| *at > ERROR_TEXT);
    if let Some(end) = ends {
        text.truncate(end);
        text.push('…');
    }
    text
}
