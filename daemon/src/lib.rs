//! Nestd: a daemon that hosts Gemma 3n on an edge device and serves local programs over D-Bus and
//! gRPC.
//!
//! Imports point inward; `tests/layers.rs` checks it.
//!
//! | module | owns | knows |
//! | --- | --- | --- |
//! | [`types`] | messages, events, errors, models, status | nothing |
//! | [`metrics`] | what is counted: requests, times, tokens, switches | types |
//! | [`stream`] | a request's bounded event buffer | types, metrics |
//! | [`engine`] | the model in memory, on its own thread; which models there are | types, stream |
//! | [`service`] | the daemon's state: queue, loads, drain | types, metrics, stream, engine |
//! | [`governor`] | what the device can afford: sensors, decisions, holds | types, stream, service |
//! | [`api`] | D-Bus and gRPC, side by side, and what Prometheus scrapes | types, metrics, stream, service, governor |
//! | [`config`] | the settings and where they come from | types, engine, governor (their settings) |
//! | [`systemd`] | readiness, watchdog, given sockets, status line, journal | nothing |
//! | [`app`] | the process: wiring, signals, exit | everybody |

pub mod api;
pub mod app;
pub mod config;
pub mod engine;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod governor;
pub mod metrics;
pub mod service;
pub mod stream;
pub mod systemd;
pub mod types;
