//! How much memory a model may take: what the machine has to spare, or the control group, whichever
//! is less.
//!
//! sysinfo knows the machine; of control groups it reads the hierarchy's root only, where a service
//! has no limit, so the daemon's own group is followed here, in both versions.

use std::fs;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// Memory that could be taken right now, in MiB.
pub(super) fn available_mib() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let machine = system.available_memory();
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|groups| cgroup_available(Path::new("/sys/fs/cgroup"), &groups));
    machine.min(group.unwrap_or(u64::MAX)) / MIB
}

/// The least that the group and its ancestors leave, in bytes; none without a limit. `groups` is the
/// text of /proc/self/cgroup: `hierarchy:controllers:path` lines, v2's with hierarchy 0.
fn cgroup_available(root: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, names) = if controllers.is_empty() {
            let unified = root.join("unified");
            let root = if unified.is_dir() { unified } else { root.to_owned() };
            (root, ["memory.max", "memory.current", "inactive_file"])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            let names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
            (root.join("memory"), names)
        } else {
            continue;
        };
        let mut group: PathBuf = root.join(path.trim_start_matches('/'));
        loop {
            least = least.into_iter().chain(left(&group, names)).min();
            if group == root || !group.pop() {
                break;
            }
        }
    }
    least
}

/// What one group leaves: its limit less what it uses, but for pages that go when memory is needed.
fn left(group: &Path, [limit, used, inactive]: [&str; 3]) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
    };
    let limit = number(limit)?;
    let used = number(used)?;
    let reclaimable = fs::read_to_string(group.join("memory.stat"))
        .ok()
        .and_then(|stat| {
            let line = stat.lines().find(|line| line.split(' ').next() == Some(inactive))?;
            line.split(' ').nth(1)?.parse().ok()
        })
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
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
        let stat = "anon 50\nfile 60\ninactive_file 30\n";
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
        assert_eq!(cgroup_available(root.path(), groups), Some(100));
        fs::write(root.path().join("system.slice/memory.max"), "max\n").unwrap();
        assert_eq!(cgroup_available(root.path(), groups), Some(420));
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
        assert_eq!(cgroup_available(root.path(), groups), Some(600));
    }

    #[test]
    fn garbage_is_no_limit() {
        let root = tempfile::tempdir().unwrap();
        group(root.path(), "x", &[("memory.max", "\u{0}a lot"), ("memory.current", "")]);
        assert_eq!(cgroup_available(root.path(), "0::/x\nnonsense\n\n:::\n"), None);
    }
}
