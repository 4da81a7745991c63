//! Memory of the machine, from sysinfo, and of the daemon's control group, whichever leaves less.
//!
//! The governor's task owns it. It looks at every poll, and every second while little is left, and speaks
//! when something moved by a hundredth of what there is, or by an eighth of what is left. sysinfo always looks at the real /proc; only the control group has a root given.

use std::path::PathBuf;
use std::time::Duration;

use futures::future::BoxFuture;
use nestd_policy::snapshot::Memory;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate};

use super::{Every, Reading, Settings};
use crate::service::memory::group;

const MIB: u64 = 1 << 20;
/// A move smaller than this is noise, and so is one below a hundredth of the total.
const NOISE_MIB: u64 = 16;
/// How often to look while less than a tenth of the total is left: more is given up every two seconds then,
/// and each time on a new reading.
const SHORT: Duration = Duration::from_secs(1);

/// The sensor.
pub struct Sensor {
    system: sysinfo::System,
    proc: PathBuf,
    sys: PathBuf,
    every: Every,
    /// What was said last.
    told: Option<Reading>,
}

impl Sensor {
    /// Looks below the settings' roots.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            system: sysinfo::System::new(),
            proc: settings.proc.clone(),
            sys: settings.sys.clone(),
            every: Every::new(settings.poll),
            told: None,
        }
    }

    fn read(&mut self) -> Option<Memory> {
        self.system.refresh_memory();
        let resident = sysinfo::get_current_pid().ok().and_then(|pid| {
            let what = ProcessRefreshKind::nothing().with_memory();
            self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
            self.system.process(pid).map(sysinfo::Process::memory)
        });
        let (mut available, mut total) =
            (self.system.available_memory(), self.system.total_memory());
        if total == 0 {
            return None;
        }
        if let Some(group) = group(&self.proc, &self.sys) {
            available = available.min(group.available);
            total = total.min(group.total);
        }
        Some(Memory {
            available_mib: available.min(total) / MIB,
            total_mib: total / MIB,
            swap_used_mib: self.system.used_swap() / MIB,
            resident_mib: resident.unwrap_or_default() / MIB,
        })
    }
}

/// Whether it is worth telling.
fn moved(before: Option<Memory>, now: Option<Memory>) -> bool {
    let (Some(before), Some(now)) = (before, now) else { return before != now };
    let noise = NOISE_MIB.max(now.total_mib / 100);
    // What is left is compared with thresholds that may be far below a hundredth of the total.
    let left = before.available_mib.min(now.available_mib);
    let noise_left = NOISE_MIB.max((now.total_mib / 100).min(left / 8));
    before.total_mib != now.total_mib
        || before.available_mib.abs_diff(now.available_mib) > noise_left
        || before.swap_used_mib.abs_diff(now.swap_used_mib) > noise
        || before.resident_mib.abs_diff(now.resident_mib) > noise
}

impl super::Sensor for Sensor {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            loop {
                self.every.tick().await;
                let now = self.read();
                if now.is_some_and(|now| now.available_mib < now.total_mib / 10) {
                    self.every.again_in(SHORT.min(self.every.period));
                }
                let before = match &self.told {
                    Some(Reading::Memory(before)) => Some(*before),
                    _ => None,
                };
                if before.is_none_or(|before| moved(before, now)) {
                    let reading = Reading::Memory(now);
                    self.told = Some(reading.clone());
                    return Some(reading);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{said, tree};
    use super::super::{Sensor as _, Settings};
    use super::*;
    use std::path::Path;

    #[test]
    fn noise_is_not_told() {
        let at =
            |available_mib| Some(Memory { available_mib, total_mib: 4000, ..Memory::default() });
        assert!(!moved(at(1000), at(1040)));
        assert!(moved(at(1000), at(959)));
        assert!(moved(at(1000), None));
        // On a large machine, a hundredth is more than what is critical.
        let large =
            |available_mib| Some(Memory { available_mib, total_mib: 32_000, ..Memory::default() });
        assert!(moved(large(320), large(120)));
        assert!(!moved(large(16_000), large(15_700)));
        assert!(!moved(None, None));
    }

    fn limit(root: &Path, limit_mib: u64) {
        let bytes = (limit_mib * MIB).to_string();
        let files = [("memory.max", bytes.as_str()), ("memory.current", "0\n")];
        tree(root, "sys/fs/cgroup/box", &files);
    }

    #[tokio::test]
    async fn the_group_makes_the_machine_smaller() {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), "proc/self", &[("cgroup", "0::/box\n")]);
        limit(root.path(), 64);
        let (proc, sys) = (root.path().join("proc"), root.path().join("sys"));
        let mut settings = Settings::below(&proc, &sys, None);
        settings.poll = Duration::ZERO;
        let mut sensor = Sensor::new(&settings);
        let Some(Reading::Memory(Some(memory))) = said(sensor.next()).await else { panic!() };
        assert!(memory.total_mib == 64 && memory.available_mib <= 64, "{memory:?}");
        limit(root.path(), 32);
        let Some(Reading::Memory(Some(memory))) = said(sensor.next()).await else { panic!() };
        assert_eq!(memory.total_mib, 32);
    }
}
