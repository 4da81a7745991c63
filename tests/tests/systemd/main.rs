//! The packages on a real systemd: Debian in a container, booted for each test. `tests/systemd.sh` makes the
//! packages and the container's root, and runs these as root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod failures;
mod idle;
mod journal;
mod machine;
mod packages;
mod service;
#[cfg(feature = "tcp")]
mod tcp;
