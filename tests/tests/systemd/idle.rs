//! What the daemon takes while nobody asks anything.

use std::fs;
use std::time::Duration;

use crate::machine::Machine;

/// A number from a file of the daemon's process in /proc, `name:` before it.
fn number(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How often threads of the process have waited for something, each time to be woken.
fn wakes(process: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let status = tasks.map(|task| task.path().join("status").display().to_string());
    status.map(|status| number(&status, "voluntary_ctxt_switches:")).sum()
}

/// How often in a minute the device is woken for it: what happens within a quarter of a second is one time.
fn per_minute(process: u32) -> usize {
    let mut before = wakes(process);
    let woken = (0..240).filter(|_| {
        std::thread::sleep(Duration::from_millis(250));
        let now = wakes(process);
        std::mem::replace(&mut before, now) != now
    });
    woken.count()
}

#[test]
#[ignore = "tests/systemd.sh runs it"]
fn idle_it_is_small_and_sleeps() {
    let machine = Machine::with_nestd("");
    machine.shell("mkdir /tmp/away; mv /var/lib/nestd/models/* /tmp/away");
    machine.start();
    let process = machine.daemon();
    std::thread::sleep(Duration::from_secs(3));
    let resident_kib = number(&format!("/proc/{process}/status"), "VmRSS:");
    let without = per_minute(process);
    machine.shell("mv /tmp/away/* /var/lib/nestd/models; nestctl load nestd-demo-Q8_0");
    std::thread::sleep(Duration::from_secs(3));
    let with = per_minute(process);
    eprintln!("resident {resident_kib} KiB; wakes in a minute: {without}, with a model {with}");
    assert!(resident_kib < 30 << 10, "{resident_kib} KiB before a model is loaded");
    assert!(without <= 60 && with <= 60, "{without} and {with} in a minute");
}
