//! Memory that really runs short: a control group with a limit, and a process that fills it.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers groups: tests run side by side.
static GROUPS: AtomicU32 = AtomicU32::new(0);

/// A control group of the test's own; dropping it moves nobody and removes it when it is empty.
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// A group with a memory limit, of either version; None where this user may not make one.
    #[must_use]
    pub fn with_limit(mib: u64) -> Option<Self> {
        let roots =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        roots.into_iter().find_map(|(root, limit)| {
            let number = GROUPS.fetch_add(1, Ordering::Relaxed);
            let path = Path::new(root).join(format!("nestd-test-{}-{number}", std::process::id()));
            fs::create_dir(&path).ok()?;
            let group = Self { path };
            fs::write(group.path.join(limit), (mib << 20).to_string()).ok()?;
            Some(group)
        })
    }

    /// Moves a process into the group.
    pub fn take(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("the group takes it");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// A process that fills memory until it is dropped.
pub struct Balloon(Child);

impl Balloon {
    /// Fills so much, in the group if there is one.
    #[must_use]
    pub fn of(mib: u64, group: Option<&Group>) -> Self {
        // It fills when it is told to, so that it is in the group by then.
        let program =
            format!("input(); x = bytearray({mib} << 20); print(len(x), flush=True); input()");
        let mut process = Command::new("/usr/bin/python3")
            .args(["-c", &program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        if let Some(group) = group {
            group.take(process.id());
        }
        let input = process.stdin.as_mut().expect("a pipe");
        input.write_all(b"\n").expect("it reads");
        let output = process.stdout.as_mut().expect("a pipe");
        BufReader::new(output).read_line(&mut String::new()).expect("it answers");
        Self(process)
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that reads a file again and again that does not fit into its group, until it is dropped: it waits
/// for memory.
pub struct Reader {
    process: Child,
    _file: tempfile::NamedTempFile,
}

impl Reader {
    /// Reads a file of so much, in the group.
    #[must_use]
    pub fn of(mib: u64, group: &Group) -> Self {
        // On a disk: what is in memory anyhow cannot be read from elsewhere.
        let mut file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        let block: Vec<u8> = (0..1_u32 << 20).map(|byte| (byte % 251) as u8).collect();
        for _ in 0..mib {
            file.write_all(&block).expect("the disk has room");
        }
        file.as_file().sync_all().expect("the disk takes it");
        let path = file.path().display();
        let program = format!(
            "import os; input(); f = os.open('{path}', os.O_RDONLY)\n\
             os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)\n\
             while True:\n for n in range({mib}): os.pread(f, 1 << 20, n << 20)"
        );
        let mut process = Command::new("/usr/bin/python3")
            .args(["-c", &program])
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        group.take(process.id());
        let input = process.stdin.as_mut().expect("a pipe");
        input.write_all(b"\n").expect("it reads");
        Self { process, _file: file }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
