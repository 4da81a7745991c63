//! How much memory a model may take: what the machine has to spare, or the control group, whichever
//! is less.
//!
//! sysinfo knows the machine; of control groups it reads the hierarchy's root only, where a service
//! has no limit, so the daemon's own group is followed here, in both versions. Loads ask it, and the
//! governor's sensor does.

use std::fs;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// What a control group and its ancestors leave, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The least that could be taken without going over a limit.
    pub available: u64,
    /// The lowest limit.
    pub total: u64,
}

/// What a group's files are called.
struct Names {
    /// Beyond each of which the group cannot go, or is slowed down until it does not.
    limits: &'static [&'static str],
    used: &'static str,
    /// Pages of files, in memory.stat.
    of_files: [&'static str; 2],
}

const V2: Names = Names {
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    of_files: ["inactive_file", "active_file"],
};

const V1: Names = Names {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    of_files: ["total_inactive_file", "total_active_file"],
};

/// Memory that could be taken right now, in MiB.
pub(super) fn available_mib() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = system.available_memory();
    let group = group(Path::new("/proc"), Path::new("/sys"));
    machine.min(group.map_or(u64::MAX, |group| group.available)) / MIB
}

/// The daemon's own memory that is not pages of files, in MiB.
pub(super) fn anonymous_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// What the daemon's own control group leaves; none without a limit. The arguments are the roots of
/// procfs and sysfs.
#[must_use]
pub fn group(proc: &Path, sys: &Path) -> Option<Group> {
    let groups = fs::read_to_string(proc.join("self/cgroup")).ok()?;
    tightest(&sys.join("fs/cgroup"), &groups)
}

/// The group of v2 that the text of /proc/self/cgroup names, below the root of control groups.
#[must_use]
pub fn unified(root: &Path, groups: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(unified_root(root).join(path.trim_start_matches('/')))
}

/// Where v2 is mounted: beside v1 it has a folder of its own.
fn unified_root(root: &Path) -> PathBuf {
    let unified = root.join("unified");
    if unified.is_dir() { unified } else { root.to_owned() }
}

/// The tightest of the group and its ancestors. `groups` is the text of /proc/self/cgroup:
/// `hierarchy:controllers:path` lines, v2's with hierarchy 0.
fn tightest(root: &Path, groups: &str) -> Option<Group> {
    let mut least: Option<Group> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, names) = if controllers.is_empty() {
            (unified_root(root), &V2)
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("memory"), &V1)
        } else {
            continue;
        };
        let mut group: PathBuf = root.join(path.trim_start_matches('/'));
        loop {
            if let Some(left) = left(&group, names) {
                least = Some(least.map_or(left, |least| Group {
                    available: least.available.min(left.available),
                    total: least.total.min(left.total),
                }));
            }
            if group == root || !group.pop() {
                break;
            }
        }
    }
    least
}

/// What one group leaves: its limit less what it uses, but for pages of files, which go when memory is
/// needed: mapped weights among them, as in the machine's `MemAvailable`.
fn left(group: &Path, names: &Names) -> Option<Group> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
    };
    let total = names.limits.iter().copied().filter_map(number).min()?;
    let used = number(names.used)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let pages = stat.lines().filter_map(|line| line.split_once(' '));
    let reclaimable = pages
        .filter(|(name, _)| names.of_files.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .fold(0, u64::saturating_add);
    Some(Group { available: total.saturating_sub(used.saturating_sub(reclaimable)), total })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(path)).unwrap();
        for (name, text) in files {
            fs::write(root.join(path).join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_ancestor_of_v2_counts() {
        let root = tempfile::tempdir().unwrap();
        let stat = "anon 50\nfile 60\ninactive_file 30\nactive_file 20\n";
        group(
            root.path(),
            "system.slice",
            &[("memory.max", "1000\n"), ("memory.current", "900\n")],
        );
        group(
            root.path(),
            "system.slice/nestd.service",
            &[("memory.max", "500\n"), ("memory.current", "110\n"), ("memory.stat", stat)],
        );
        let groups = "0::/system.slice/nestd.service\n";
        let left = |available, total| Some(Group { available, total });
        assert_eq!(tightest(root.path(), groups), left(100, 500));
        assert_eq!(
            unified(root.path(), groups),
            Some(root.path().join("system.slice/nestd.service"))
        );
        fs::write(root.path().join("system.slice/memory.max"), "max\n").unwrap();
        assert_eq!(tightest(root.path(), groups), left(440, 500));
        fs::write(root.path().join("system.slice/nestd.service/memory.high"), "300\n").unwrap();
        assert_eq!(tightest(root.path(), groups), left(240, 300));
    }

    #[test]
    fn v1_is_read_below_its_controller() {
        let root = tempfile::tempdir().unwrap();
        group(
            root.path(),
            "memory/box",
            &[("memory.limit_in_bytes", "700"), ("memory.usage_in_bytes", "100")],
        );
        let groups = "5:cpu,cpuacct:/x\n4:memory:/box\n";
        assert_eq!(tightest(root.path(), groups), Some(Group { available: 600, total: 700 }));
    }

    #[test]
    fn garbage_is_no_limit() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "x", &[("memory.max", "\u{0}a lot"), ("memory.current", "")]);
        assert_eq!(tightest(root.path(), "0::/x\nnonsense\n\n:::\n"), None);
    }
}
