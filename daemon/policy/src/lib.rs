//! Which MatFormer size a device can afford: the governor's policy, without the device.
//!
//! Everything here is a function of its arguments: the daemon's governor feeds it with live sensors,
//! `nestctl governor simulate` with a recorded day.
//!
//! | module | what |
//! | --- | --- |
//! | [`snapshot`] | what the sensors say at one moment |
//! | [`trace`] | snapshots over time, as CSV |

pub mod snapshot;
pub mod trace;
