//! The two APIs, side by side over one service. Each decodes, says who calls, and encodes; neither
//! decides anything.

pub mod dbus;
pub mod grpc;
