//! The packages' life: installed, replaced under a running daemon, removed, purged.

use nestd_client::ask;
use nestd_client::v1::State;
use nestd_tests::{collect, text, until};

use crate::machine::Machine;
use crate::service::SIM;

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn installed_it_answers_and_purged_it_is_gone() {
    let machine = Machine::boot();
    // dpkg's list and logs, and what systemd keeps of the user, may stay.
    let list =
        "find / /run -xdev -iname '*nestd*' -print | grep -v -e ^/var/log -e ^/run/systemd | sort";
    let before = machine.shell(list);
    machine.shell("dpkg --install /packages/*.deb");
    assert_eq!(machine.state(), "active");
    let answer = machine.run(&["nestctl", "ask", "Turn on the lights in the kitchen"]);
    assert!(!answer.trim().is_empty());
    machine.run(&["nestctl", "size", "--auto"]);
    let installed = machine.shell(list);
    for path in ["/usr/bin/nestd", "/usr/share/polkit-1/actions/org.nestd.policy", "/run/nestd"] {
        assert!(installed.lines().any(|line| line == path), "{path}: {installed}");
    }
    machine.run(&["dpkg", "--remove", "nestd", "nestctl", "nestd-model-demo"]);
    assert_eq!(machine.output(&["pgrep", "-x", "nestd"]).status.code(), Some(1));
    assert!(machine.path("/var/lib/nestd").exists(), "what it knows stays");
    machine.shell("dpkg --install /packages/*.deb");
    assert_eq!(machine.run(&["nestctl", "ask", "Turn on the lights in the kitchen"]), answer);
    machine.run(&["dpkg", "--purge", "nestd", "nestctl", "nestd-model-demo"]);
    assert_eq!(machine.shell(list), before);
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn an_upgrade_lets_the_running_answer_end_and_new_clients_wait() {
    let machine = Machine::with_nestd(SIM);
    machine.shell(
        "rm /usr/sbin/policy-rc.d; cd /tmp; dpkg-deb -R /packages/nestd_*.deb new; \
         sed -i 's/^Version: .*/&+next/' new/DEBIAN/control; dpkg-deb -Znone -b new next.deb",
    );
    machine.start();
    let client = machine.grpc().await;
    let words = "word ".repeat(200).trim_end().to_owned();
    let answer = client.generate(ask(words.clone())).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let answer = tokio::spawn(collect(answer));
    let pid = machine.property("MainPID");
    let mut install = machine.command(&["dpkg", "--install", "/tmp/next.deb"]);
    let install = tokio::task::spawn_blocking(move || install.output().unwrap());
    until(&client, |status| status.state() == State::Draining).await;
    // Who comes now waits for the new daemon, in the socket that systemd keeps.
    let late = collect(machine.grpc().await.generate(ask("so late")).await.unwrap()).await;
    assert_eq!(text(&late.unwrap()), "so late");
    assert_eq!(text(&answer.await.unwrap().unwrap()), words);
    let install = install.await.unwrap();
    assert!(install.status.success(), "{install:?}");
    assert_eq!(machine.state(), "active");
    assert_ne!(machine.property("MainPID"), pid);
}

#[test]
#[ignore = "tests/systemd.sh runs it"]
fn a_purge_empties_folders_on_other_disks() {
    let machine = Machine::boot();
    let folders = ["/var/lib/nestd", "/var/cache/nestd"];
    for [mounted, linked] in [folders, [folders[1], folders[0]]] {
        machine.shell(&format!(
            "mkdir {mounted} /data; mount -t tmpfs none {mounted}; ln -s /data {linked}"
        ));
        machine.shell("dpkg --install /packages/nestd_*.deb");
        machine.shell(
            "cd /var/lib/nestd; mkdir -p sessions; touch sessions/kept governor.toml; \
             touch /var/cache/nestd/made",
        );
        machine.run(&["dpkg", "--purge", "nestd"]);
        let left = machine.shell("find /var/lib/nestd/ /var/cache/nestd/ -mindepth 1");
        assert_eq!(left, "", "{mounted} was mounted, {linked} a link");
        machine.shell(&format!("umount {mounted}; rmdir {mounted} /data; rm {linked}"));
    }
}
