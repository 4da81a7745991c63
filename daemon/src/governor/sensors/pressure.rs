//! Memory pressure: how long programs wait for memory, of the machine and of the daemon's group.
//!
//! The governor's task owns it. It sleeps on the kernel's trigger and on what systemd gave
//! (<https://systemd.io/MEMORY_PRESSURE>), and looks by itself every two seconds only while programs
//! wait. A kernel without pressure stall information has no such sensor.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use nestd_policy::snapshot::Pressure;
use tokio::time::{Instant, sleep_until};

use super::trigger::Trigger;
use super::{Every, Reading, SHORTEST, Settings, files};
use crate::service::memory::unified;

/// How often to look while programs wait.
const BUSY: Duration = Duration::from_secs(2);
/// At most one stall is told in this time.
const QUIET: Duration = Duration::from_secs(1);
/// A lower share than this is calm, in percent.
const CALM: f64 = 0.1;

/// What systemd gave to be told of memory pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// A PSI file, a FIFO or a socket.
    pub path: PathBuf,
    /// What to write into it before waiting.
    pub write: Vec<u8>,
}

impl Watch {
    /// `MEMORY_PRESSURE_WATCH` and `MEMORY_PRESSURE_WRITE` of the environment.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let write = std::env::var_os("MEMORY_PRESSURE_WRITE");
        Self::parse(std::env::var_os("MEMORY_PRESSURE_WATCH")?, write)
    }

    /// The same, of these values. None: switched off, or not to be understood.
    #[must_use]
    pub fn parse(path: OsString, write: Option<OsString>) -> Option<Self> {
        let path = PathBuf::from(path);
        if !path.is_absolute() || path == *"/dev/null" {
            return None;
        }
        let write = match write {
            None => Vec::new(),
            Some(write) => STANDARD.decode(write.to_str()?.trim()).ok()?,
        };
        Some(Self { path, write })
    }
}

/// The sensor.
pub struct Sensor {
    proc: PathBuf,
    sys: PathBuf,
    poll: Duration,
    watch: Option<Watch>,
    /// Opened at the first call; one that breaks is taken out.
    triggers: Option<Vec<Trigger>>,
    every: Every,
    quiet_until: Instant,
    /// What was said last.
    told: Option<Reading>,
}

impl Sensor {
    /// Looks below the settings' roots.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            proc: settings.proc.clone(),
            sys: settings.sys.clone(),
            poll: settings.poll.max(SHORTEST),
            watch: settings.pressure_watch.clone(),
            triggers: None,
            every: Every::new(settings.poll),
            quiet_until: Instant::now(),
            told: None,
        }
    }

    /// The PSI files: the machine's, and the group's where there is one.
    fn paths(&self) -> Vec<PathBuf> {
        let groups = fs::read_to_string(self.proc.join("self/cgroup")).unwrap_or_default();
        let group = unified(&self.sys.join("fs/cgroup"), &groups);
        let group = group.map(|group| group.join("memory.pressure"));
        std::iter::once(self.proc.join("pressure/memory")).chain(group).collect()
    }

    async fn open(&self) -> Vec<Trigger> {
        let mut triggers: Vec<_> = self.paths().iter().filter_map(|p| Trigger::kernel(p)).collect();
        if let Some(watch) = &self.watch {
            match Trigger::systemd(watch).await {
                Some(trigger) => triggers.push(trigger),
                None => {
                    tracing::warn!(path = %watch.path.display(), "cannot watch memory pressure");
                }
            }
        }
        triggers
    }

    fn read(&self) -> Option<Pressure> {
        let all = self.paths().into_iter().filter_map(|path| parse(&files::text(&path)?));
        all.reduce(|one, other| Pressure {
            some_avg10: one.some_avg10.max(other.some_avg10),
            full_avg10: one.full_avg10.max(other.full_avg10),
            stalled: false,
        })
    }

    /// A reading after an event, or without.
    fn look(&mut self, stalled: bool, watched: bool) -> Reading {
        let read = self.read();
        let busy = stalled || read.is_some_and(|pressure| pressure.some_avg10 >= CALM);
        self.every.again_in(match (busy, watched) {
            (true, _) => BUSY.min(self.poll),
            (false, true) => self.poll.saturating_mul(6),
            (false, false) => self.poll,
        });
        if stalled {
            self.quiet_until = Instant::now() + QUIET;
        }
        Reading::Pressure(match read {
            None if stalled => Some(Pressure { stalled, ..Pressure::default() }),
            read => read.map(|pressure| Pressure { stalled, ..pressure }),
        })
    }
}

/// Completes when one of them fires or breaks; which, and whether it is still good.
async fn fired(triggers: &[Trigger], not_before: Instant) -> (usize, bool) {
    if triggers.is_empty() {
        return std::future::pending().await;
    }
    sleep_until(not_before).await;
    let (good, index, _) = select_all(triggers.iter().map(|t| t.wait().boxed())).await;
    (index, good)
}

/// The text of a PSI file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, then `full` likewise.
fn parse(text: &str) -> Option<Pressure> {
    let share = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = line.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?;
        value.parse().ok().filter(|share| (0.0..=100.0).contains(share))
    };
    Some(Pressure {
        some_avg10: share("some ")?,
        full_avg10: share("full ").unwrap_or_default(),
        stalled: false,
    })
}

impl super::Sensor for Sensor {
    fn name(&self) -> &'static str {
        "pressure"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            if self.triggers.is_none() {
                let triggers = self.open().await;
                if triggers.is_empty() && self.read().is_none() {
                    return None;
                }
                self.triggers = Some(triggers);
            }
            loop {
                let triggers = self.triggers.get_or_insert_default();
                let stalled = tokio::select! {
                    () = self.every.tick() => false,
                    (index, good) = fired(triggers, self.quiet_until) => {
                        if !good {
                            triggers.remove(index);
                        }
                        good
                    }
                };
                let watched = !triggers.is_empty();
                let reading = self.look(stalled, watched);
                if self.told.as_ref() != Some(&reading) {
                    self.told = Some(reading.clone());
                    return Some(reading);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::super::testing::{said, tree, until};
    use super::super::{Sensor as _, Settings};
    use super::*;

    const CALMED: &str = "some avg10=0.00 avg60=1.00 avg300=0.00 total=5\n\
                          full avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";

    fn settings(root: &std::path::Path) -> Settings {
        let mut settings = Settings::below(&root.join("proc"), &root.join("sys"), None);
        settings.poll = Duration::from_millis(100);
        settings
    }

    fn reading(some_avg10: f64, full_avg10: f64, stalled: bool) -> Reading {
        Reading::Pressure(Some(Pressure { some_avg10, full_avg10, stalled }))
    }

    #[test]
    fn garbage_is_no_pressure() {
        assert_eq!(parse(CALMED), Some(Pressure::default()));
        for text in ["", "some", "some avg10=", "some avg10=NaN", "some avg10=-1", "full avg10=1"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("some avg10=1e9\n"), None);
        assert_eq!(parse("some avg10=7.5\nfull avg10=x").map(|p| p.some_avg10), Some(7.5));
    }

    #[tokio::test]
    async fn the_higher_of_machine_and_group_counts_and_files_may_go() {
        let root = tempfile::tempdir().unwrap();
        let group = "some avg10=20.00 avg60=0 total=5\nfull avg10=3.00 total=1\n";
        let machine = "some avg10=2.00 avg60=0 total=5\nfull avg10=4.00 total=1\n";
        tree(root.path(), "proc/self", &[("cgroup", "0::/box\n")]);
        tree(root.path(), "proc/pressure", &[("memory", machine)]);
        tree(root.path(), "sys/fs/cgroup/box", &[("memory.pressure", group)]);
        let mut sensor = Sensor::new(&settings(root.path()));
        assert_eq!(said(sensor.next()).await, Some(reading(20.0, 4.0, false)));
        fs::remove_file(root.path().join("sys/fs/cgroup/box/memory.pressure")).unwrap();
        until(&mut sensor, reading(2.0, 4.0, false)).await;
        fs::remove_file(root.path().join("proc/pressure/memory")).unwrap();
        until(&mut sensor, Reading::Pressure(None)).await;
        tree(root.path(), "proc/pressure", &[("memory", CALMED)]);
        until(&mut sensor, reading(0.0, 0.0, false)).await;
        let untouched = fs::read_to_string(root.path().join("proc/pressure/memory")).unwrap();
        assert_eq!(untouched, CALMED);
    }

    #[tokio::test]
    async fn without_files_there_is_no_sensor() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(said(Sensor::new(&settings(root.path())).next()).await, None);
    }

    #[tokio::test]
    async fn a_word_from_systemd_is_a_stall_for_a_while() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), "proc/pressure", &[("memory", CALMED)]);
        let path = root.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut settings = settings(root.path());
        settings.pressure_watch = Some(Watch { path: path.clone(), write: b"x".to_vec() });
        let mut sensor = Sensor::new(&settings);
        until(&mut sensor, reading(0.0, 0.0, false)).await;
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"stall").unwrap();
        until(&mut sensor, reading(0.0, 0.0, true)).await;
        until(&mut sensor, reading(0.0, 0.0, false)).await;
    }

    #[tokio::test]
    async fn a_socket_is_written_to_and_may_close() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), "proc/pressure", &[("memory", CALMED)]);
        let path = root.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut settings = settings(root.path());
        settings.pressure_watch = Some(Watch { path, write: b"hello".to_vec() });
        let mut sensor = Sensor::new(&settings);
        until(&mut sensor, reading(0.0, 0.0, false)).await;
        let mut stream = listener.accept().unwrap().0;
        let mut heard = [0; 5];
        std::io::Read::read_exact(&mut stream, &mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        stream.write_all(b"!").unwrap();
        until(&mut sensor, reading(0.0, 0.0, true)).await;
        drop(stream);
        until(&mut sensor, reading(0.0, 0.0, false)).await;
        // It is looked at again a while after the last stall, and then left out.
        for share in (1..100).cycle() {
            if sensor.triggers.as_ref().unwrap().is_empty() {
                break;
            }
            let text = format!("some avg10={share} total=1\n");
            tree(root.path(), "proc/pressure", &[("memory", &text)]);
            until(&mut sensor, reading(f64::from(share), 0.0, false)).await;
        }
    }

    #[test]
    fn what_systemd_says_is_checked() {
        let watch =
            |path: &str, write: Option<&str>| Watch::parse(path.into(), write.map(OsString::from));
        assert_eq!(watch("/dev/null", None), None);
        assert_eq!(watch("", None), None);
        assert_eq!(watch("relative", None), None);
        assert_eq!(watch("/x", Some("not base64")), None);
        assert_eq!(watch("/x", Some("c29tZQA=")).unwrap().write, b"some\0");
        assert_eq!(watch("/x", None).unwrap().write, b"");
    }
}
