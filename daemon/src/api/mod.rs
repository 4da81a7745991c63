//! The two APIs, side by side over one service. Each says who calls, asks [`access`] whether it may,
//! decodes and encodes; neither decides anything.

pub(crate) mod access;
pub mod dbus;
pub mod grpc;

use std::sync::Arc;

pub use access::Gate;

use crate::governor::Governor;
use crate::service::Service;
use crate::types::Error;

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
