//! The two APIs, side by side over one service. Each decodes, says who calls, and encodes; neither
//! decides anything.

pub mod dbus;
pub mod grpc;

use crate::types::Error;

/// What the contracts have room for, and a later version brings.
fn later(what: impl Into<String>) -> Error {
    Error::unsupported(what, "this version of nestd does not have it")
}
