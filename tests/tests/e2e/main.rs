//! End-to-end tests: the real daemon on a private bus and a socket of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod ahead;
mod answers;
mod bench;
mod cancel;
mod contract;
mod elastic;
mod errors;
mod foreground;
mod governor;
mod health;
mod hostile;
mod hostile_dbus;
mod hostile_grpc;
mod ids;
mod logprobs;
mod metrics;
#[cfg(feature = "mistralrs")]
mod mistralrs;
mod models;
mod nestctl;
mod process;
mod quotas;
mod readers;
mod sessions;
mod soak;
mod system_bus;
#[cfg(feature = "tcp")]
mod tcp;
#[path = "../../../daemon/elastic/tests/model/watched.rs"]
mod watched;
