//! A container with a systemd of its own: systemd-nspawn on a root that nobody changes, with what is written
//! in memory. Nothing of it is registered with the host's systemd, which need not be there.
//!
//! The tests are on the host: they run commands in the container, and reach its sockets and its processes
//! through `/proc/LEADER`, where the leader is its process 1.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nestd_client::{Bus, Client};
use nestd_tests::project;

/// How long a boot, a service or a package may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Seconds after which a command is ended: longer than what systemd waits for, and short of for ever.
const COMMAND: &str = "120";

/// A booted machine. Dropping it ends it.
pub struct Machine {
    nspawn: Child,
    leader: u32,
    /// Dropped last: only empty ones can be removed.
    _groups: Groups,
}

/// The control groups of a machine. Dropping them removes them.
struct Groups(Vec<PathBuf>);

impl Machine {
    /// One without Nestd. The packages are in /packages.
    pub fn boot() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("nestd-test-{}-{number}", std::process::id());
        // A group in each hierarchy that systemd needs: both of a hybrid machine, or the only one.
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = ["unified", "systemd"].map(|hierarchy| root.join(hierarchy));
        let hybrid = hierarchies.iter().all(|hierarchy| hierarchy.is_dir());
        let hierarchies = if hybrid { hierarchies.to_vec() } else { vec![root.to_owned()] };
        let mut groups = Groups(Vec::new());
        let mut join = String::new();
        for group in hierarchies.iter().map(|folder| folder.join(&name)) {
            fs::create_dir(&group)
                .expect("root may make control groups: tests/systemd.sh tells more");
            write!(join, "echo $$ > {}/cgroup.procs; ", group.display()).unwrap();
            groups.0.push(group);
        }
        let nspawn = Command::new("sh")
            .args(["-euc", &format!("{join} exec \"$@\""), "sh", "systemd-nspawn"])
            .arg("--directory")
            .arg(folder("NESTD_TEST_ROOT", "target/nspawn/root"))
            .arg(format!(
                "--bind-ro={}:/packages",
                folder("NESTD_TEST_PACKAGES", "target/debian").display()
            ))
            .args(["--volatile=overlay", "--register=no", "--keep-unit", "--private-network"])
            .args(["--console=pipe", "--quiet", "--boot"])
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("systemd-nspawn starts");
        let mut machine = Self { nspawn, leader: 0, _groups: groups };
        machine.until("its first process", |machine| {
            machine.leader = machine.processes().into_iter().find(|pid| inner(*pid) == 1)?;
            Some(())
        });
        machine.until("booted", |machine| {
            let output = machine.command(&["systemctl", "is-system-running"]).output().ok()?;
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            ["running", "degraded"].contains(&state.as_str()).then_some(())
        });
        machine
    }

    /// One with the packages, on which the service does not run yet. The settings are for /etc/nestd/nestd.toml.
    pub fn with_nestd(settings: &str) -> Self {
        let machine = Self::boot();
        machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n");
        machine.run(&["chmod", "755", "/usr/sbin/policy-rc.d"]);
        machine.write("/etc/nestd/nestd.toml", settings);
        machine.shell("dpkg --install /packages/*.deb");
        // Nor does the installation reload what it would.
        machine.run(&["systemctl", "reload", "dbus"]);
        machine.run(&["systemctl", "start", "nestd.socket", "nestd-metrics.socket"]);
        assert_eq!(machine.state(), "inactive");
        machine
    }

    /// Runs a command, which has to succeed; gives what it wrote.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.journal());
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same with a command line.
    pub fn shell(&self, line: &str) -> String {
        self.run(&["sh", "-euc", line])
    }

    /// Runs a command, however it ends.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("timeout starts")
    }

    /// Runs a command as a user, however it ends.
    pub fn by(&self, user: &str, arguments: &[&str]) -> Output {
        self.output(&[&["runuser", "-u", user, "--"], arguments].concat())
    }

    /// A command in the machine. One that gets stuck ends with status 124.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=10", COMMAND, "nsenter", "--target"])
            .arg(self.leader.to_string())
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }

    /// Writes a file of the machine, with its folder.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A path of the machine as the host sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// Starts the service.
    pub fn start(&self) {
        self.run(&["systemctl", "start", "nestd"]);
    }

    /// A property of the service.
    pub fn property(&self, name: &str) -> String {
        self.run(&["systemctl", "show", "--value", "--property", name, "nestd"]).trim().to_owned()
    }

    /// Whether the service runs, in systemd's words.
    pub fn state(&self) -> String {
        self.property("ActiveState")
    }

    /// The daemon's process, by the host's number.
    pub fn daemon(&self) -> u32 {
        let wanted: u32 = self.property("MainPID").parse().unwrap();
        self.processes().into_iter().find(|pid| inner(*pid) == wanted).expect("the daemon runs")
    }

    /// A client as root on the socket.
    pub async fn grpc(&self) -> Client {
        Client::grpc(self.path("/run/nestd/nestd.sock")).await.expect("the socket accepts")
    }

    /// A client as root on the bus.
    pub async fn dbus(&self) -> Client {
        let socket = self.path("/run/dbus/system_bus_socket");
        let bus = Bus::Address(format!("unix:path={}", socket.display()));
        Client::dbus(&bus).await.expect("the bus accepts")
    }

    /// What the service's journal says, as people read it.
    pub fn journal(&self) -> String {
        let output = self.output(&["journalctl", "--no-pager", "--unit", "nestd"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until that gives something.
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let ended = self.nspawn.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "not {what}: {ended:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All processes of the machine.
    fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.nspawn.id()];
        let mut index = 0;
        while let Some(pid) = found.get(index).copied() {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for task in tasks {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            index += 1;
        }
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.leader != 0 {
            eprintln!("--- the machine's journal\n{}---", self.journal());
        }
        // Without its first process all others are gone, too.
        let first = if self.leader == 0 { self.nspawn.id() } else { self.leader };
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(first).unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        );
        let _ = self.nspawn.wait();
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.0.iter().for_each(|group| remove(group));
    }
}

/// A process's number in the innermost namespace; 0, if it is gone or has no other than ours.
fn inner(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = line.split_whitespace().collect();
    if pids.len() < 2 { 0 } else { pids.last().and_then(|pid| pid.parse().ok()).unwrap_or(0) }
}

fn folder(variable: &str, default: &str) -> PathBuf {
    let folder = std::env::var_os(variable).map_or_else(|| project().join(default), PathBuf::from);
    let missing = "is not there: run tests/systemd.sh, which makes it";
    folder.canonicalize().unwrap_or_else(|_| panic!("{} {missing}", folder.display()))
}

/// A control group without processes, and those below it.
fn remove(group: &Path) {
    let inside = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path());
    }
    let _ = fs::remove_dir(group);
}
