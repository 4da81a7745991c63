//! End-to-end tests: the real daemon on a private bus and a socket of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod answers;
mod cancel;
mod contract;
mod elastic;
mod errors;
mod governor;
mod hostile;
#[cfg(feature = "mistralrs")]
mod mistralrs;
mod models;
mod nestctl;
mod process;
mod readers;
mod system_bus;
#[cfg(feature = "tcp")]
mod tcp;
