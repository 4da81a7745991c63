//! What the service manager is told (`sd_notify(3)`): the daemon's state, a line for people, signs of life.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// Tells systemd, from a thread of its own: a manager that does not read must not stop the daemon.
pub struct Notifier {
    notices: Sender<Notice>,
    /// The newest line for people, until it is told.
    line: Arc<Mutex<Option<String>>>,
}

/// Few at a time: changes of the state, a sign of life each few seconds, and one line.
enum Notice {
    Ready,
    Reloading,
    Stopping(Duration),
    Alive,
    Line,
}

impl Notifier {
    /// Starts the thread. It ends with the notifier.
    pub fn start() -> std::io::Result<Self> {
        let (notices, receiver) = channel();
        let line = Arc::new(Mutex::new(None));
        let newest = Arc::clone(&line);
        std::thread::Builder::new().name("nestd-notify".into()).spawn(move || {
            while let Ok(notice) = receiver.recv() {
                if let Err(error) = tell(&notice, &newest) {
                    tracing::warn!(%error, "systemd cannot be told");
                }
            }
        })?;
        Ok(Self { notices, line })
    }

    /// Both APIs accept calls, or the settings were read again.
    pub fn ready(&self) {
        self.send(Notice::Ready);
    }

    /// The settings are being read again; [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        self.send(Notice::Reloading);
    }

    /// The daemon has begun to stop, which may take so long.
    pub fn stopping(&self, at_most: Duration) {
        self.send(Notice::Stopping(at_most));
    }

    /// Feeds the watchdog.
    pub fn alive(&self) {
        self.send(Notice::Alive);
    }

    /// What `systemctl status` shows.
    pub fn status(&self, line: String) {
        let waiting = self.line.lock().unwrap_or_else(PoisonError::into_inner).replace(line);
        if waiting.is_none() {
            self.send(Notice::Line);
        }
    }

    fn send(&self, notice: Notice) {
        // The thread outlives the notifier.
        let _ = self.notices.send(notice);
    }
}

fn tell(notice: &Notice, line: &Mutex<Option<String>>) -> std::io::Result<()> {
    match notice {
        Notice::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Notice::Reloading => {
            sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
        }
        Notice::Stopping(at_most) => {
            let us = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
            sd_notify::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(us)])
        }
        Notice::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        Notice::Line => {
            let line = line.lock().unwrap_or_else(PoisonError::into_inner).take();
            line.map_or(Ok(()), |line| sd_notify::notify(&[NotifyState::Status(&line)]))
        }
    }
}

/// How long the manager waits for a sign of life before it ends the daemon (`WatchdogSec=`); None: it
/// does not watch.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
}
