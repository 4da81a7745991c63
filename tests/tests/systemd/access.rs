//! The policy of the bus, the mode of the socket, and polkit.

use std::process::Output;

use crate::machine::Machine;

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[ignore = "tests/systemd.sh runs it"]
fn who_is_in_no_group_reaches_nothing_and_polkit_decides_about_the_rest() {
    let machine = Machine::with_nestd("");
    machine
        .shell("useradd stranger; useradd -G nestd program; useradd -G nestd,nestd-control shell");
    machine.start();

    let bus = (["--dbus", "status"].as_slice(), "the bus does not let this user call nestd");
    for (call, reason) in [bus, (&["status"], "this user may not use /run/nestd/nestd.sock")] {
        let nestctl = |user| machine.by(user, &[&["nestctl"], call].concat());
        let refused = nestctl("stranger");
        assert!(!refused.status.success(), "{call:?}: {refused:?}");
        assert!(told(&refused).contains(reason), "{call:?}: {refused:?}");
        assert!(nestctl("program").status.success(), "{call:?}: {:?}", nestctl("program"));
    }
    // What is no interface of the daemon's is not let through either.
    let foreign = ["busctl", "call", "org.nestd.Nestd1", "/org/nestd/Nestd1", "org.example.X", "Y"];
    assert!(told(&machine.by("program", &foreign)).contains("Access denied"));
    // Nobody else owns the name.
    machine.run(&["systemctl", "stop", "nestd"]);
    let own = ["busctl", "call", "org.freedesktop.DBus", "/org/freedesktop/DBus"];
    let own = [&own[..], &["org.freedesktop.DBus", "RequestName", "su", "org.nestd.Nestd1", "0"]];
    assert!(!machine.by("shell", &own.concat()).status.success());
    machine.start();

    // Both may ask; one may load.
    for user in ["program", "shell"] {
        let answer = machine.by(user, &["nestctl", "--dbus", "ask", "hello"]);
        assert!(answer.status.success(), "{answer:?}");
    }
    let unload = |user| machine.by(user, &["nestctl", "--dbus", "unload"]);
    let refused = unload("program");
    assert_eq!(refused.status.code(), Some(7), "not allowed: {refused:?}");
    let allowed = unload("shell");
    assert!(allowed.status.success(), "{allowed:?}");
}
