//! Which MatFormer size a device can afford: the governor's policy, without the device.
//!
//! Everything here is a function of its arguments: the daemon's governor feeds it with live sensors,
//! `nestctl governor simulate` with a recorded day.
//!
//! | module | what |
//! | --- | --- |
//! | [`snapshot`] | what the sensors say at one moment |
//! | [`level`] | how short something is, with hysteresis |
//! | [`settings`] | the thresholds, and the shipped profiles |
//! | [`ladder`] | the model's sizes, with what each needs |
//! | [`holds`] | what clients and a person ask for |
//! | [`decide`] | the decision |
//! | [`file`] | settings from a profile and a file, without the daemon |
//! | [`replay`] | a recorded day, decided again |
//! | [`trace`] | snapshots over time, as CSV |

pub mod decide;
pub mod file;
pub mod holds;
pub mod ladder;
pub mod level;
mod limits;
pub mod replay;
pub mod settings;
pub mod snapshot;
pub mod trace;
