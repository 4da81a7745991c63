//! A private message bus: dbus-daemon with the policy of a session bus, but for
//! any user, on a socket of its own. Messages may be as long as on a system bus.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running bus. Dropping it ends it.
pub struct Bus {
    process: Child,
    address: String,
}

impl Bus {
    /// Starts a bus with its socket in `folder`.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        let socket = folder.join("bus");
        let settings = folder.join("bus.conf");
        std::fs::write(
            &settings,
            format!(
                "<busconfig><type>session</type><listen>unix:path={}</listen>\
                 <policy context='default'><allow send_destination='*' eavesdrop='true'/>\
                 <allow eavesdrop='true'/><allow own='*'/><allow user='*'/></policy>\
                 <limit name='max_message_size'>33554432</limit></busconfig>",
                socket.display()
            ),
        )
        .expect("the folder is writable");
        let process = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg(format!("--config-file={}", settings.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon starts (Debian's package dbus-daemon; ./test.sh installs it)");
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < Duration::from_secs(10), "dbus-daemon makes no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, address: format!("unix:path={}", socket.display()) }
    }

    /// The address to connect to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends the bus while others are on it.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.kill();
    }
}
