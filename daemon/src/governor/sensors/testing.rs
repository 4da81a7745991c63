//! For the tests of the sensors: trees of small files, and a message bus of their own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Long enough for the slowest machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);

/// What has to come, comes.
pub async fn said<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes")
}

/// Waits until the sensor says just this.
pub async fn until(sensor: &mut dyn super::Sensor, wanted: super::Reading) {
    said(async { while sensor.next().await.expect("the sensor goes on") != wanted {} }).await;
}

/// Files in a folder below `root`.
pub fn tree(root: &Path, folder: &str, files: &[(&str, &str)]) {
    fs::create_dir_all(root.join(folder)).unwrap();
    for (name, text) in files {
        fs::write(root.join(folder).join(name), text).unwrap();
    }
}

/// A private dbus-daemon; ends when dropped.
pub struct Bus {
    process: Child,
    folder: tempfile::TempDir,
}

impl Bus {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}/bus</listen>\
             <policy context='default'><allow send_destination='*' eavesdrop='true'/>\
             <allow eavesdrop='true'/><allow own='*'/></policy></busconfig>",
            folder.path().display()
        );
        fs::write(&settings, text).unwrap();
        let process = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg(format!("--config-file={}", settings.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon starts (Debian's package dbus-daemon; ./test.sh installs it)");
        said(async {
            while !folder.path().join("bus").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Self { process, folder }
    }

    pub fn builder(&self) -> zbus::connection::Builder<'static> {
        let address = format!("unix:path={}/bus", self.folder.path().display());
        zbus::connection::Builder::address(address.as_str())
    }

    pub async fn connect(&self) -> zbus::Connection {
        said(self.builder().build()).await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
