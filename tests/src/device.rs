//! A device of files: the sysfs and procfs that a governor reads, with batteries and limits of the test's own.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::Builder;

/// A fake device. Without anything in it, it has no sensor but the machine's memory.
pub struct Device {
    root: TempDir,
}

impl Default for Device {
    fn default() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        for folder in ["sys/class/power_supply", "sys/class/thermal", "proc/self"] {
            fs::create_dir_all(root.path().join(folder)).expect("the folder is writable");
        }
        Self { root }
    }
}

impl Device {
    /// A device that runs on a battery with this charge.
    #[must_use]
    pub fn on_battery(percent: u32) -> Self {
        let device = Self::default();
        device.mains(false);
        device.battery(percent);
        device
    }

    /// Has a daemon read this device, often, and follow it with short dwells.
    #[must_use]
    pub fn governs(&self, builder: Builder) -> Builder {
        let path = |folder: &str| format!("'{}'", self.root.path().join(folder).display());
        builder
            .set("governor.enabled", "true")
            .set("governor.sys", &path("sys"))
            .set("governor.proc", &path("proc"))
            .set("governor.poll_s", "0.1")
            .set("governor.battery", "'sysfs'")
            .set("governor.dwell_s", "0.5")
            .set("governor.idle_unload_s", "0")
    }

    /// Writes a file below sysfs, as it is.
    pub fn sys(&self, path: &str, text: impl AsRef<[u8]>) {
        self.write(&format!("sys/{path}"), text.as_ref());
    }

    /// The battery's charge, or anything in its place.
    pub fn charge(&self, text: impl AsRef<[u8]>) {
        self.sys("class/power_supply/BAT0/capacity", text);
    }

    /// A battery with this charge that empties.
    pub fn battery(&self, percent: u32) {
        self.sys("class/power_supply/BAT0/type", "Battery\n");
        self.sys("class/power_supply/BAT0/status", "Discharging\n");
        self.charge(format!("{percent}\n"));
    }

    /// Takes the battery out.
    pub fn pull_battery(&self) {
        fs::remove_dir_all(self.root.path().join("sys/class/power_supply/BAT0"))
            .expect("the battery is there");
    }

    /// Whether mains are connected.
    pub fn mains(&self, online: bool) {
        self.sys("class/power_supply/AC/type", "Mains\n");
        self.sys("class/power_supply/AC/online", if online { "1\n" } else { "0\n" });
    }

    /// The temperature.
    pub fn temperature(&self, celsius: u32) {
        self.sys("class/thermal/thermal_zone0/type", "skin\n");
        self.sys("class/thermal/thermal_zone0/temp", format!("{}\n", celsius * 1000));
    }

    /// A control group with a limit that leaves this much, in MiB.
    pub fn memory_left(&self, mib: u64) {
        let group = "fs/cgroup/nestd";
        self.sys(&format!("{group}/memory.max"), format!("{}\n", 4096_u64 << 20));
        self.sys(&format!("{group}/memory.current"), format!("{}\n", (4096 - mib) << 20));
        self.sys(&format!("{group}/memory.stat"), "inactive_file 0\n");
        self.write("proc/self/cgroup", b"0::/nestd\n");
    }

    /// Replaced as a whole, as sysfs does it: a reader never sees half a value.
    fn write(&self, path: &str, text: &[u8]) {
        let path = self.root.path().join(path);
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        fs::create_dir_all(folder).expect("the folder is writable");
        let fresh = self.root.path().join("fresh");
        fs::write(&fresh, text).expect("the folder is writable");
        fs::rename(&fresh, &path).expect("the folder is writable");
    }
}
