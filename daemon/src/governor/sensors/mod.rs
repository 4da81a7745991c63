//! What the device says: each sensor behind one trait, each optional, each with its root or bus given.
//!
//! [`watch`] gives every sensor a task and puts their readings together. A sensor that is not there
//! leaves its part of the [`Snapshot`] empty; one that goes away empties it again.

use futures::future::BoxFuture;
use tokio::sync::watch;

use nestd_policy::snapshot::{Battery, Memory, PowerProfile, Pressure, Snapshot};

/// One source of readings.
pub trait Sensor: Send + 'static {
    /// For the log.
    fn name(&self) -> &'static str;

    /// The next reading: the first at once, each later one when there is something new. None: there
    /// will never be another, and what was said last no longer holds. Dropping the future loses no
    /// reading.
    fn next(&mut self) -> BoxFuture<'_, Option<Reading>>;
}

/// A sensor's part of the snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// `Snapshot::memory`
    Memory(Option<Memory>),
    /// `Snapshot::pressure`
    Pressure(Option<Pressure>),
    /// `Snapshot::on_ac` and `Snapshot::battery`
    Power(Option<bool>, Option<Battery>),
    /// `Snapshot::temperature_c`
    Temperature(Option<f64>),
    /// `Snapshot::power_profile`
    PowerProfile(Option<PowerProfile>),
    /// `Snapshot::sleeping`
    Sleeping(bool),
    /// The whole of it: a recording.
    All(Snapshot),
}
