//! What systemd does when the daemon hangs or dies.

use std::fs;
use std::time::Duration;

use futures::StreamExt;
use nestd_client::ask;
use nestd_client::v1::generate_event::Event;
use nestd_tests::{collect, text, until};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::machine::Machine;
use crate::service::SIM;

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap())
}

/// Stops one thread of a process, as a debugger does, until the process ends.
fn hang(process: u32, name: &str) -> std::thread::JoinHandle<()> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let named = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let task = tasks.into_iter().find(named).expect("the thread is there");
    let task = pid(task.file_name().to_str().unwrap().parse().unwrap());
    let (stopped, wait) = std::sync::mpsc::channel();
    // Only the thread that stopped it is told of it.
    let tracer = std::thread::spawn(move || {
        ptrace::attach(task).unwrap();
        let wait = || waitpid(task, Some(WaitPidFlag::__WALL));
        assert!(matches!(wait(), Ok(WaitStatus::Stopped(..))));
        stopped.send(()).unwrap();
        while !matches!(wait(), Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_)) {}
    });
    wait.recv().unwrap();
    tracer
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn an_engine_that_hangs_is_restarted_and_a_long_prompt_is_not() {
    // 400 words at 50 a second: a prompt of eight seconds, twice the watchdog's time.
    let slow = "sim.prefill_tokens_per_s = 50.0\n";
    let mut machine = Machine::with_nestd(&format!("{SIM}{slow}"));
    let faster = "[Service]\nWatchdogSec=4\n";
    machine.write("/etc/systemd/system/nestd.service.d/10-watchdog.conf", faster);
    machine.run(&["systemctl", "daemon-reload"]);
    machine.start();
    let client = machine.grpc().await;
    let mut request = ask("word ".repeat(400));
    request.stopping.get_or_insert_default().max_tokens = 4;
    collect(client.generate(request).await.unwrap()).await.unwrap();
    // Idle, it owes no sign of life.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(machine.property("NRestarts"), "0");

    let mut answer = client.generate(ask("word ".repeat(1000))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let tracer = hang(machine.daemon(), "nestd-engine");
    machine.until("restarted", |machine| {
        (machine.property("NRestarts") == "1" && machine.state() == "active").then_some(())
    });
    tracer.join().unwrap();
    let end = loop {
        match answer.next().await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Some(Err(_))), "the client is told: {end:?}");
    let journal = machine.journal();
    assert!(journal.contains("the engine hangs"), "{journal}");
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    let again = collect(machine.grpc().await.generate(ask("one two")).await.unwrap()).await;
    assert_eq!(text(&again.unwrap()), "one two");
}

#[tokio::test]
#[ignore = "tests/systemd.sh runs it"]
async fn a_killed_daemon_comes_back_and_its_clients_are_told() {
    let mut machine = Machine::with_nestd(SIM);
    machine.start();
    let (grpc, dbus) = (machine.grpc().await, machine.dbus().await);
    let mut answers = Vec::new();
    for client in [&grpc, &dbus] {
        let mut answer = client.generate(ask("word ".repeat(400))).await.unwrap();
        while !matches!(answer.next().await.unwrap().unwrap().event, Some(Event::Text(_))) {}
        answers.push(answer);
    }
    kill(pid(machine.daemon()), Signal::SIGKILL).unwrap();
    // The socket is systemd's: a request of the same moment waits for the new daemon.
    let asked = tokio::spawn(async move {
        let client = grpc;
        loop {
            if let Ok(events) = client.generate(ask("one two")).await {
                return collect(events).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    for answer in answers {
        let told = tokio::time::timeout(Duration::from_secs(20), collect(answer)).await;
        assert!(told.expect("the stream ends").is_err());
    }
    assert_eq!(text(&asked.await.unwrap().unwrap()), "one two");
    machine.until("restarted", |machine| (machine.property("NRestarts") == "1").then_some(()));
    let again = collect(dbus.generate(ask("three")).await.unwrap()).await.unwrap();
    assert_eq!(text(&again), "three");
}
