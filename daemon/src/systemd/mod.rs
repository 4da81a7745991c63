//! The daemon as a service of systemd: what the manager is told, the sockets that it gives, and the log.
//!
//! Without systemd (no `NOTIFY_SOCKET`, no `LISTEN_FDS`, no `JOURNAL_STREAM`) nothing is told, the daemon
//! makes its sockets itself, and the log goes to stderr.

mod log;
mod notify;
mod sockets;

pub use log::{Log, tell_fatal};
pub use notify::{Notifier, watchdog};
pub use sockets::Sockets;
