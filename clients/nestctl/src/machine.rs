//! The memory that this machine has left for a model: what could be taken right now, of the machine or
//! of the control group that this process is in, whichever is less. Both versions of control groups
//! are read, as the daemon does it.

use std::fs;
use std::path::Path;

/// Bytes that could be taken right now; None where the system does not say.
pub fn available_memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|groups| group_leaves(Path::new("/sys/fs/cgroup"), &groups));
    machine.into_iter().chain(group).min()
}

/// The most that this process has had in memory, in bytes, mapped files included.
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kib(&status, "VmHWM:")
}

fn available(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// The number of KiB behind a name, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Files of a group: its limit, what is used, and the key in memory.stat for pages that go when memory
/// is needed.
type Names = [&'static str; 3];
const V1: Names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"];
const V2: Names = ["memory.max", "memory.current", "inactive_file"];

/// The least that the group and those around it leave; None without a limit. `groups` is the text of
/// /proc/self/cgroup, a line `hierarchy:controllers:path` for each, without controllers in version 2.
fn group_leaves(root: &Path, groups: &str) -> Option<u64> {
    let all = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let path = Path::new(path.trim_start_matches('/'));
        if controllers.is_empty() {
            let mixed = root.join("unified");
            let root = if mixed.is_dir() { mixed } else { root.to_owned() };
            Some(tightest(&root, path, V2))
        } else {
            let memory = controllers.split(',').any(|controller| controller == "memory");
            memory.then(|| tightest(&root.join("memory"), path, V1))
        }
    });
    all.flatten().min()
}

fn tightest(root: &Path, group: &Path, names: Names) -> Option<u64> {
    group.ancestors().filter_map(|group| leaves(&root.join(group), names)).min()
}

fn leaves(group: &Path, [limit, used, inactive]: Names) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, used) = (number(limit)?, number(used)?);
    let inactive = read("memory.stat").and_then(|stat| {
        let mut words = stat.lines().map(|line| line.split_once(' '));
        words.find_map(|line| line.filter(|(name, _)| *name == inactive)?.1.trim().parse().ok())
    });
    Some(limit.saturating_sub(used.saturating_sub(inactive.unwrap_or(0))))
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
    fn available_memory_is_read_in_kib() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 << 10));
        assert_eq!(available("MemAvailable: much\n"), None);
        assert!(available_memory().is_some() && peak_memory().is_some());
    }

    #[test]
    fn the_tightest_group_of_either_version_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        group(root, "a", &[("memory.max", "1000\n"), ("memory.current", "900\n")]);
        let stat = "anon 50\ninactive_file 30\n";
        group(
            root,
            "a/b",
            &[("memory.max", "500"), ("memory.current", "110"), ("memory.stat", stat)],
        );
        assert_eq!(group_leaves(root, "0::/a/b\n"), Some(100));
        fs::write(root.join("a/memory.max"), "max\n").unwrap();
        assert_eq!(group_leaves(root, "0::/a/b\n"), Some(420));
        let v1 = [("memory.limit_in_bytes", "70"), ("memory.usage_in_bytes", "10")];
        group(root, "memory/box", &v1);
        assert_eq!(group_leaves(root, "0::/a/b\n5:cpu:/x\n4:memory,foo:/box\n"), Some(60));
        assert_eq!(group_leaves(root, "nonsense\n\n:::\n"), None);
    }
}
