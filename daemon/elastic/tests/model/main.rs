//! The engine on the demo model: its answers beside the reference's, and files that are not as they
//! should be.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

mod ahead;
mod demo;
mod fault;
mod greedy;
mod hostile;
mod nest;
mod parity;
mod tiled;
mod watched;
