//! The pin's file, and the files of the sensors.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use std::fs;
use std::path::Path;

use nestd_policy::snapshot::{Battery, Memory, Pressure};
use tokio::runtime::{Builder, Runtime};

use super::pin;
use super::sensors::{Reading, Settings, live};

/// What is read is written so that it is read again.
pub(crate) fn pin(folder: &Path, bytes: &[u8]) {
    let path = folder.join("pin.toml");
    fs::write(&path, bytes).unwrap();
    let Some(size) = pin::read(&path) else { return };
    assert!(pin::is_size(&size));
    pin::write(&path, Some(&size)).unwrap();
    assert_eq!(pin::read(&path), Some(size));
}

/// Between the contents of two files, which neither kernel nor driver would write.
const NEXT: u8 = 0xff;
const SUPPLIES: [&str; 3] = ["AC", "BAT0", "BAT1"];
const SUPPLY: [&str; 16] = [
    "type",
    "scope",
    "online",
    "present",
    "status",
    "capacity",
    "energy_now",
    "energy_full",
    "charge_now",
    "charge_full",
    "voltage_now",
    "voltage_min_design",
    "power_now",
    "current_now",
    "time_to_empty_now",
    "uevent",
];
const OTHERS: [&str; 16] = [
    "self/cgroup",
    "pressure/memory",
    "fs/cgroup/box/memory.pressure",
    "fs/cgroup/box/memory.max",
    "fs/cgroup/box/memory.high",
    "fs/cgroup/box/memory.current",
    "fs/cgroup/box/memory.stat",
    "fs/cgroup/memory/box/memory.limit_in_bytes",
    "fs/cgroup/memory/box/memory.usage_in_bytes",
    "class/thermal/thermal_zone0/type",
    "class/thermal/thermal_zone0/temp",
    "class/hwmon/hwmon0/name",
    "class/hwmon/hwmon0/temp1_label",
    "class/hwmon/hwmon0/temp1_input",
    "class/hwmon/hwmon0/temp2_input",
    "fs/cgroup/unified/box/memory.max",
];

fn path(index: u8) -> String {
    let index = usize::from(index);
    match index.checked_sub(OTHERS.len()) {
        None => OTHERS[index].to_owned(),
        Some(index) => {
            let supply = SUPPLIES[index / SUPPLY.len() % SUPPLIES.len()];
            format!("class/power_supply/{supply}/{}", SUPPLY[index % SUPPLY.len()])
        }
    }
}

/// Files, each its number and then what is in it. Every sensor says something, and nothing that cannot be.
pub(crate) fn sensors(folder: &Path, bytes: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
    }
    for file in bytes.split(|byte| *byte == NEXT) {
        let Some((index, content)) = file.split_first() else { continue };
        let path = folder.join(path(*index));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            for mut sensor in live(&Settings::below(folder, folder, None)) {
                if let Some(reading) = sensor.next().await {
                    check(&reading);
                }
            }
        });
    });
}

fn check(reading: &Reading) {
    let share = |value: f64| (0.0..=100.0).contains(&value);
    let fits = match reading {
        Reading::Memory(Some(Memory { available_mib, total_mib, .. })) => {
            available_mib <= total_mib
        }
        Reading::Pressure(Some(Pressure { some_avg10, full_avg10, stalled })) => {
            share(*some_avg10) && share(*full_avg10) && !stalled
        }
        Reading::Power(_, Some(Battery { percent, power_w, time_to_empty_s, warning })) => {
            share(*percent)
                && power_w.is_none_or(|watts| watts.abs() <= 3000.0)
                && time_to_empty_s.is_none_or(|seconds| seconds > 0)
                && warning.is_none()
        }
        Reading::Temperature(Some(celsius)) => (-50.0..=200.0).contains(celsius),
        _ => true,
    };
    assert!(fits, "{reading:?}");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let all: Vec<String> = (0..=u8::MAX).map(path).collect();
    let seed = |files: &[(&str, &str)]| {
        let file = |(name, content): &(&str, &str)| {
            let index = all.iter().position(|path| path.ends_with(name)).unwrap();
            [&[u8::try_from(index).unwrap()], content.as_bytes(), &[NEXT]].concat()
        };
        files.iter().flat_map(file).collect::<Vec<u8>>()
    };
    let psi = "some avg10=2.00 avg60=0 total=5\nfull avg10=4.00 total=1\n";
    vec![
        seed(&[
            ("AC/type", "Mains\n"),
            ("AC/online", "0\n"),
            ("BAT0/type", "Battery\n"),
            ("BAT0/status", "Discharging\n"),
            ("BAT0/present", "1\n"),
            ("BAT0/energy_now", "25000000\n"),
            ("BAT0/energy_full", "50000000\n"),
            ("BAT0/power_now", "5000000\n"),
            ("BAT1/type", "Battery\n"),
            ("BAT1/status", "Charging\n"),
            ("BAT1/charge_now", "1000000\n"),
            ("BAT1/charge_full", "4000000\n"),
            ("BAT1/voltage_now", "3800000\n"),
            ("BAT1/current_now", "500000\n"),
        ]),
        seed(&[
            ("BAT0/type", "Battery\n"),
            ("BAT0/capacity", "40\n"),
            ("BAT0/status", "Discharging\n"),
            ("BAT0/time_to_empty_now", "3600\n"),
        ]),
        seed(&[
            ("self/cgroup", "0::/box\n4:memory:/box\n"),
            ("pressure/memory", psi),
            ("box/memory.pressure", psi),
            ("cgroup/box/memory.max", "67108864\n"),
            ("memory.high", "max\n"),
            ("memory.current", "33554432\n"),
            ("memory.stat", "anon 1\ninactive_file 30\nactive_file 20\n"),
            ("memory.limit_in_bytes", "67108864\n"),
            ("memory.usage_in_bytes", "1\n"),
        ]),
        seed(&[
            ("zone0/type", "cpu-thermal\n"),
            ("zone0/temp", "41500\n"),
            ("hwmon0/name", "coretemp\n"),
            ("temp1_label", "Package id 0\n"),
            ("temp1_input", "61000\n"),
            ("temp2_input", "-3000\n"),
        ]),
        b"0::/system.slice/nestd.service\n1:name=systemd:/user.slice/x.scope\n".to_vec(),
    ]
}
