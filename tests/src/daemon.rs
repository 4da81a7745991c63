//! The real daemon with settings of the test's own.

use std::fmt::Write;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nestd_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::Bus;

/// How long the daemon may take to start or to stop, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a daemon is started with.
#[derive(Default)]
pub struct Builder {
    settings: String,
    without_bus: bool,
    on_system_bus: bool,
    for_any_user: bool,
}

/// A running daemon, with its bus and its folder.
pub struct Daemon {
    process: Child,
    notified: UnixDatagram,
    bus: Option<Bus>,
    folder: TempDir,
}

impl Builder {
    /// A daemon on the simulator at 50 tokens a second.
    #[must_use]
    pub fn sim() -> Self {
        Self::default()
            .set("sim.enabled", "true")
            .set("sim.tokens_per_s", "50.0")
            .set("sim.prefill_tokens_per_s", "100000.0")
            .set("model.name", "'sim'")
    }

    /// Adds a setting; the value is TOML. The last one of a key counts.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        writeln!(self.settings, "{key} = {value}").expect("a string takes all");
        self
    }

    /// Turns the D-Bus API off.
    #[must_use]
    pub fn without_bus(mut self) -> Self {
        self.without_bus = true;
        self
    }

    /// Has the daemon take the test's bus for the system bus, on which it asks polkit.
    #[must_use]
    pub fn on_system_bus(mut self) -> Self {
        self.on_system_bus = true;
        self
    }

    /// Lets other users reach the socket and the bus.
    #[must_use]
    pub fn for_any_user(mut self) -> Self {
        self.for_any_user = true;
        self.set("grpc.socket_mode", "'0666'")
    }

    /// Starts the daemon, and waits until it says that it is ready.
    #[must_use]
    pub fn start(self) -> Daemon {
        let mut daemon = self.launch();
        daemon.wait_for("READY=1");
        daemon
    }

    /// Starts the daemon, and returns at once.
    #[must_use]
    pub fn launch(self) -> Daemon {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if self.for_any_user {
            let open = Permissions::from_mode(0o755);
            std::fs::set_permissions(folder.path(), open).expect("it is the test's own");
        }
        let bus = (!self.without_bus).then(|| Bus::start(folder.path()));
        let address =
            if self.on_system_bus { "system" } else { bus.as_ref().map_or("off", Bus::address) };
        let models = folder.path().join("models");
        std::fs::create_dir(&models).expect("the folder is writable");
        let defaults = [
            ("grpc.socket", folder.path().join("nestd.sock")),
            ("metrics.listen", folder.path().join("metrics.sock")),
            ("model.dir", models),
            ("model.cache_dir", folder.path().join("cache")),
            ("elastic.spill_dir", folder.path().join("kv")),
            ("sessions.dir", folder.path().join("sessions")),
            ("governor.state_file", folder.path().join("state/governor.toml")),
        ];
        let mut lines: Vec<String> =
            defaults.iter().map(|(key, path)| format!("{key} = '{}'", path.display())).collect();
        lines.push(format!("dbus.bus = '{address}'"));
        // A busy test machine is no device; tests of the governor say what it shall see.
        lines.push("governor.enabled = false".into());
        // Who runs the tests may do everything.
        lines.push(format!("access.control = ['{}']", nix::unistd::geteuid()));
        // A key that the test sets stands alone: TOML has no last one that counts.
        for line in self.settings.lines() {
            let key = line.split(" = ").next().unwrap_or_default();
            lines.retain(|known| known.split(" = ").next() != Some(key));
            lines.push(line.to_owned());
        }
        std::fs::write(folder.path().join("nestd.toml"), lines.join("\n")).expect("it is writable");

        let notified = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        notified
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket has a time limit");
        let process = command(folder.path()).spawn().expect("the daemon starts");
        Daemon { process, notified, bus, folder }
    }
}

/// The daemon's command line and environment; its log goes to a file.
fn command(folder: &Path) -> Command {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log"));
    let mut command = Command::new(crate::program("nestd"));
    command
        .arg("--config")
        .arg(folder.join("nestd.toml"))
        .env("NOTIFY_SOCKET", folder.join("notify"))
        // Where the test's bus is.
        .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", folder.join("bus").display()))
        .stderr(log.expect("the folder is writable"));
    command
}

impl Daemon {
    /// Reads notifications until one holds this line; gives the lines of all.
    pub fn wait_for(&mut self, wanted: &str) -> Vec<String> {
        self.notifications(wanted).concat()
    }

    /// The same, with the lines of each notification together.
    pub fn notifications(&mut self, wanted: &str) -> Vec<Vec<String>> {
        let mut told: Vec<Vec<String>> = Vec::new();
        let mut buffer = [0; 4096];
        let began = Instant::now();
        while !told.last().is_some_and(|lines| lines.iter().any(|line| line.starts_with(wanted))) {
            // Asked first: what it said before it ended is there then.
            let runs = self.runs();
            if let Ok(size) = self.notified.recv(&mut buffer) {
                let text = String::from_utf8_lossy(buffer.get(..size).unwrap_or_default());
                told.push(text.lines().map(str::to_owned).collect());
            } else {
                let waits = runs && began.elapsed() < PATIENCE;
                assert!(waits, "no {wanted}; told {told:?}; log:\n{}", self.log());
            }
        }
        told
    }

    /// Throws away what the daemon told the service manager: who sends waits when nobody reads.
    pub fn pass_over_notifications(&self) {
        while self.notified.recv(&mut [0; 4096]).is_ok() {}
    }

    /// The daemon's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The gRPC socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join("nestd.sock")
    }

    /// The bus.
    pub fn bus(&mut self) -> &mut Bus {
        self.bus.as_mut().expect("the test has a bus")
    }

    /// The socket of the metrics.
    #[must_use]
    pub fn metrics_socket(&self) -> PathBuf {
        self.folder().join("metrics.sock")
    }

    /// The address of the bus.
    #[must_use]
    pub fn bus_address(&self) -> String {
        self.bus.as_ref().expect("the test has a bus").address().to_owned()
    }

    /// A client on the socket.
    pub async fn grpc(&self) -> Client {
        Client::grpc(self.socket()).await.expect("the socket accepts")
    }

    /// A client on the bus, with a connection of its own.
    pub async fn dbus(&self) -> Client {
        let bus = nestd_client::Bus::Address(self.bus_address());
        Client::dbus(&bus).await.expect("the bus accepts")
    }

    /// A client on each transport.
    pub async fn both(&self) -> [(&'static str, Client); 2] {
        [("gRPC", self.grpc().await), ("D-Bus", self.dbus().await)]
    }

    /// Everything that was logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// Waits until the log holds this. The test's own tasks go on meanwhile: a client that was dropped leaves
    /// the bus in one of them.
    pub async fn wait_log(&self, wanted: &str) {
        let began = Instant::now();
        while !self.log().contains(wanted) {
            assert!(began.elapsed() < PATIENCE, "no {wanted:?} in the log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Changes a setting, and waits until the daemon has read it.
    pub fn change(&self, key: &str, value: &str) {
        let folder = self.folder().join("nestd.toml.d");
        std::fs::create_dir_all(&folder).expect("the folder is writable");
        let number = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        let file = folder.join(format!("{number:03}.toml"));
        std::fs::write(file, format!("{key} = {value}\n")).expect("the folder is writable");
        let reloads = || self.log().matches("reloaded").count();
        let before = reloads();
        self.signal(Signal::SIGHUP);
        let began = Instant::now();
        while reloads() == before {
            assert!(began.elapsed() < PATIENCE, "not reloaded:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("the daemon runs");
    }

    /// Waits for the daemon's end.
    pub fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("the daemon is our child") {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the daemon does not end; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the daemon runs.
    pub fn runs(&mut self) -> bool {
        self.process.try_wait().expect("the daemon is our child").is_none()
    }

    /// Runs another daemon with the same settings, for tests of its refusal.
    #[must_use]
    pub fn second(&self) -> std::process::Output {
        command(self.folder()).stderr(std::process::Stdio::piped()).output().expect("it starts")
    }

    /// File descriptors that the daemon holds.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// Threads of the daemon.
    #[must_use]
    pub fn threads(&self) -> usize {
        let folder = format!("/proc/{}/task", self.process.id());
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// Resident memory in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}---", self.log());
        }
    }
}
