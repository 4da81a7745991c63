//! The size follows the device, and running answers lose nothing: the real daemon on a device of files.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::v1::{
    ErrorReason, GovernorReport, HoldRequest, Priority, State, generate_event::Event,
};
use nestd_client::{Client, ask};
use nestd_tests::{
    Balloon, Builder, Daemon, Device, Group, Reader, collect, finished, text, until,
};

/// Waits until the governor's report is as wanted.
pub async fn told(client: &Client, wanted: impl Fn(&GovernorReport) -> bool) -> GovernorReport {
    let began = Instant::now();
    loop {
        let report = client.governor().await.unwrap();
        if wanted(&report) {
            return report;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "the report stays {report:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn at(client: &Client, size: &str, cause: &str) -> GovernorReport {
    told(client, |report| report.active_size == size && report.cause == cause).await
}

fn sim(device: &Device) -> Daemon {
    device.governs(Builder::sim()).start()
}

#[tokio::test]
async fn the_size_follows_the_battery_in_the_middle_of_an_answer() {
    let device = Device::on_battery(90);
    let daemon = sim(&device);
    for (name, client) in daemon.both().await {
        device.charge("90");
        at(&client, "large", "plenty").await;
        let words = "word ".repeat(100);
        let answer = client.generate(ask(words.clone())).await.unwrap();
        until(&client, |status| status.running_requests == 1).await;
        device.charge("20\n");
        let report = at(&client, "small", "battery").await;
        assert_eq!(report.level, "saving", "{name}");
        assert!(report.reason.contains("20 %"), "{name}: {}", report.reason);
        assert!(report.next_threshold.contains("battery above 55 %"), "{name}: {report:?}");
        let change = report.last_change.unwrap();
        assert_eq!((change.from.as_str(), change.to.as_str()), ("large", "small"), "{name}");
        let events = collect(answer).await.unwrap();
        assert_eq!(text(&events), words, "{name}: all tokens there");
        assert_eq!(finished(&events).sizes, ["large", "small"], "{name}");
        let changed = events.iter().find_map(|event| match event {
            Event::SizeChanged(change) => Some(change.reason.clone()),
            _ => None,
        });
        assert!(changed.unwrap().contains("battery"), "{name}");
    }
}

#[tokio::test]
async fn a_battery_is_drained_plugged_in_pulled_out_and_lies() {
    let device = Device::on_battery(100);
    let daemon = sim(&device);
    let client = daemon.grpc().await;
    at(&client, "large", "plenty").await;
    // None of it costs an answer that runs a token.
    let words = "word ".repeat(300);
    let drained = client.generate(ask(words.clone())).await.unwrap();
    for percent in (3..100).rev().step_by(7) {
        device.charge(percent.to_string());
    }
    device.charge("3");
    let report = at(&client, "small", "battery").await;
    assert_eq!((report.level.as_str(), report.background_allowed), ("critical", false));
    let mut background = ask("later");
    background.priority = Priority::Background.into();
    let refused = client.generate(background).await.err().unwrap();
    assert_eq!(refused.reason(), Some(ErrorReason::Busy));
    assert!(refused.to_string().contains("battery is at 3 %"), "{refused}");

    device.charge("5");
    device.mains(true);
    let report = at(&client, "large", "plenty").await;
    assert_eq!(report.readings.unwrap().on_ac, Some(true));
    device.mains(false);
    at(&client, "small", "battery").await;
    device.pull_battery();
    let report = at(&client, "large", "plenty").await;
    assert_eq!(report.readings.unwrap().battery_percent, None);
    device.battery(20);
    at(&client, "small", "battery").await;
    let lied_to = client.generate(ask(words.clone())).await.unwrap();
    for lie in ["", "lots", "-7", "100000", "NaN", "\u{0}"] {
        device.charge(lie);
        told(&client, |report| report.readings.as_ref().unwrap().battery_percent.is_none()).await;
        device.charge("20");
        at(&client, "small", "battery").await;
    }
    device.charge([0xff, 0xfe]);
    told(&client, |report| report.readings.as_ref().unwrap().battery_percent.is_none()).await;
    for answer in [drained, lied_to] {
        let events = collect(answer).await.unwrap();
        assert_eq!(text(&events), words, "all tokens there");
        assert!(finished(&events).sizes.len() == 2, "{:?}", finished(&events).sizes);
    }
}

#[tokio::test]
async fn heat_and_memory_are_reasons_too() {
    let device = Device::default();
    device.temperature(40);
    device.memory_left(2000);
    let daemon = sim(&device);
    let client = daemon.dbus().await;
    at(&client, "large", "plenty").await;
    device.temperature(72);
    let report = at(&client, "small", "temperature").await;
    assert!(report.reason.contains("72 °C"), "{}", report.reason);
    device.temperature(40);
    at(&client, "large", "plenty").await;

    // Memory in danger: all is given up in turn, and the model comes back with the next request.
    let answer = client.generate(ask("word ".repeat(60))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    device.memory_left(100);
    let report = at(&client, "small", "memory-pressure").await;
    assert!(report.reason.contains("100 MiB"), "{}", report.reason);
    assert!(["size", "background", "model"].contains(&report.shed.as_str()), "{}", report.shed);
    assert_eq!(text(&collect(answer).await.unwrap()), "word ".repeat(60), "all tokens there");
    let status = until(&client, |status| status.state() == State::Parked).await;
    assert!(status.problem.contains("comes back"), "{}", status.problem);
    device.memory_left(2000);
    told(&client, |report| report.level == "full").await;
    let events = collect(client.generate(ask("hello again")).await.unwrap()).await.unwrap();
    assert_eq!(text(&events), "hello again");
    assert!(events.iter().any(|event| matches!(event, Event::Loading(_))), "{events:?}");
    at(&client, "large", "plenty").await;
}

#[tokio::test]
async fn a_hold_lives_as_long_as_its_connection() {
    let device = Device::on_battery(90);
    let daemon = sim(&device);
    let watcher = daemon.grpc().await;
    for (name, client) in daemon.both().await {
        device.charge("90");
        at(&watcher, "large", "plenty").await;
        let small = HoldRequest {
            max_size: "small".into(),
            no_background: true,
            reason: "the compositor needs it".into(),
            ..HoldRequest::default()
        };
        let mut hold = client.hold(small).await.unwrap();
        let id = hold.next().await.unwrap().unwrap().id;
        let report = at(&watcher, "small", "hold").await;
        assert!(report.reason.contains("compositor"), "{name}: {}", report.reason);
        assert_eq!(report.holds[0].id, id, "{name}");
        assert!(!report.background_allowed, "{name}");

        // The smallest maximum is stronger than the largest minimum.
        let large = HoldRequest { min_size: "large".into(), ..HoldRequest::default() };
        let other = watcher.hold(large).await.unwrap();
        told(&watcher, |report| report.holds.len() == 2).await;
        assert_eq!(watcher.governor().await.unwrap().active_size, "small", "{name}");
        drop(hold);
        at(&watcher, "large", "plenty").await;
        // And the minimum than the battery.
        device.charge("20");
        let report = told(&watcher, |report| report.cause == "hold").await;
        assert_eq!((report.active_size.as_str(), report.level.as_str()), ("large", "saving"));
        drop(other);
        at(&watcher, "small", "battery").await;
        told(&watcher, |report| report.holds.is_empty()).await;

        for (wrong, field) in [
            (HoldRequest { min_size: "huge".into(), ..HoldRequest::default() }, "min_size"),
            (HoldRequest::default(), "min_size"),
            (
                HoldRequest {
                    no_background: true,
                    reason: "x".repeat(300),
                    ..HoldRequest::default()
                },
                "reason",
            ),
        ] {
            let refused = match client.hold(wrong).await {
                Err(error) => error,
                Ok(mut hold) => hold.next().await.unwrap().unwrap_err(),
            };
            assert_eq!(refused.reason(), Some(ErrorReason::InvalidArgument), "{name}: {refused}");
            assert!(refused.to_string().starts_with(field), "{name}: {refused}");
        }
    }
    // A client that leaves without a word.
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let options = HashMap::from([("max_size", zbus::Variant::from("small"))]);
    let (name, path) = ("org.nestd.Nestd1", "/org/nestd/Nestd1");
    bus.call_method(Some(name), path, Some("org.nestd.Governor1"), "Hold", &options).await.unwrap();
    told(&watcher, |report| report.holds.len() == 1).await;
    bus.close().await.unwrap();
    told(&watcher, |report| report.holds.is_empty()).await;
}

#[tokio::test]
async fn one_user_cannot_hold_without_end() {
    let device = Device::default();
    let daemon = sim(&device);
    // Over as many connections as it likes.
    let clients = daemon.both().await;
    let wish = || HoldRequest { no_background: true, ..HoldRequest::default() };
    let mut held = Vec::new();
    for (_, client) in clients.iter().cycle().take(16) {
        held.push(client.hold(wish()).await.unwrap());
    }
    for (name, client) in &clients {
        let refused = client.hold(wish()).await.map(drop).unwrap_err();
        assert_eq!(refused.reason(), Some(ErrorReason::Busy), "{name}");
    }
    drop(held);
    told(&clients[0].1, |report| report.holds.is_empty()).await;
}

#[tokio::test]
async fn a_hold_that_nobody_waits_for_any_more_ends() {
    let device = Device::default();
    let daemon = sim(&device);
    for (_, client) in daemon.both().await {
        for number in 0..50 {
            let wish = HoldRequest { no_background: true, ..HoldRequest::default() };
            // Given up somewhere on the way.
            let _ =
                tokio::time::timeout(Duration::from_micros(number * 40), client.hold(wish)).await;
        }
        told(&client, |report| report.holds.is_empty()).await;
    }
}

#[tokio::test]
async fn a_pin_survives_a_restart_and_a_hold_does_not() {
    let device = Device::on_battery(90);
    let folder = tempfile::tempdir().unwrap();
    let state = format!("'{}'", folder.path().join("state.toml").display());
    let start = || device.governs(Builder::sim()).set("governor.state_file", &state).start();
    let daemon = start();
    let client = daemon.dbus().await;
    let hold = HoldRequest { no_background: true, ..HoldRequest::default() };
    let _hold = client.hold(hold).await.unwrap();
    client.pin("small").await.unwrap();
    let report = at(&client, "small", "pin").await;
    assert_eq!((report.pin.as_str(), report.holds.len()), ("small", 1));
    let wrong = client.pin("huge").await.unwrap_err();
    assert_eq!(wrong.reason(), Some(ErrorReason::InvalidArgument), "{wrong}");
    drop(daemon);

    let daemon = start();
    let client = daemon.grpc().await;
    let report = at(&client, "small", "pin").await;
    assert_eq!((report.pin.as_str(), report.holds.len()), ("small", 0));
    client.pin("").await.unwrap();
    at(&client, "large", "plenty").await;
    // A load that names a size pins it, or the governor would change it at once.
    let load: Vec<_> = client.load("", "small").await.unwrap().collect().await;
    assert!(load.iter().all(Result::is_ok), "{load:?}");
    let report = at(&client, "small", "pin").await;
    assert_eq!(report.pin, "small");
}

#[tokio::test]
async fn an_idle_model_leaves_and_comes_back_with_the_next_request() {
    let device = Device::default();
    let builder = device.governs(Builder::sim()).set("sim.load_ms", "300");
    let daemon = builder.set("governor.idle_unload_s", "1").start();
    for (name, client) in daemon.both().await {
        let status = until(&client, |status| status.state() == State::Parked).await;
        assert!(status.problem.contains("nobody asked for 1 s"), "{name}: {}", status.problem);
        let events = collect(client.generate(ask("hello")).await.unwrap()).await.unwrap();
        assert_eq!(text(&events), "hello", "{name}");
        let loading = events.iter().filter(|event| matches!(event, Event::Loading(_)));
        assert!(loading.count() > 0, "{name}: {events:?}");
    }
}

#[tokio::test]
async fn sizes_that_take_a_load_let_answers_end_and_others_wait() {
    let device = Device::on_battery(90);
    let builder = device.governs(Builder::sim()).set("sim.elastic", "false");
    let daemon = builder.set("sim.load_ms", "500").start();
    let client = daemon.grpc().await;
    at(&client, "large", "plenty").await;
    let running = client.generate(ask("word ".repeat(50))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    device.charge("20");
    told(&client, |report| report.selected_size == "small").await;
    until(&client, |status| status.state() == State::Loading).await;
    // Back and forth while it loads: one load follows the other, never beside it.
    let waiting = client.generate(ask("hello")).await.unwrap();
    device.charge("90");
    let events = collect(waiting).await.unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::Loading(_))), "{events:?}");
    assert_eq!(text(&events), "hello");
    assert_eq!(text(&collect(running).await.unwrap()), "word ".repeat(50));
    at(&client, "large", "plenty").await;
    let loads = daemon.log().matches(" loaded ").count();
    assert!(loads <= 3, "{loads} loads:\n{}", daemon.log());
}

#[tokio::test]
async fn what_is_not_there_has_no_property_and_changes_are_signalled() {
    let device = Device::on_battery(90);
    let daemon = sim(&device);
    let client = daemon.dbus().await;
    at(&client, "large", "plenty").await;
    let address = daemon.bus_address();
    let bus = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
    let object =
        zbus::Proxy::new(&bus, "org.nestd.Nestd1", "/org/nestd/Nestd1", "org.nestd.Governor1")
            .await
            .unwrap();
    let percent: f64 = object.get_property("BatteryPercent").await.unwrap();
    assert!((percent - 90.0).abs() < 0.1);
    let absent = object.get_property::<f64>("TempC").await.unwrap_err();
    assert!(absent.to_string().contains("no such sensor"), "{absent}");
    let mut signals = object.receive_signal("SizeChanged").await.unwrap();
    device.charge("20");
    let signal = tokio::time::timeout(Duration::from_secs(10), signals.next()).await.unwrap();
    let body = signal.unwrap().body();
    let (from, to, reason, _us): (String, String, String, u64) = body.deserialize().unwrap();
    assert_eq!((from.as_str(), to.as_str()), ("large", "small"));
    assert!(reason.contains("battery"), "{reason}");
    // The proxy keeps what PropertiesChanged says: the battery is gone.
    device.pull_battery();
    told(&client, |report| report.readings.as_ref().unwrap().battery_percent.is_none()).await;
    let gone = async {
        while object.get_property::<f64>("BatteryPercent").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn a_recorded_day_governs_in_place_of_the_sensors() {
    let device = Device::default();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let header = "t_s,battery_percent,on_ac,mem_available_mib,mem_total_mib,psi_some_avg10,\
                  psi_full_avg10,temp_c,power_profile";
    let rows = "0,90,false,8000,8000,0,0,30,balanced\n100,20,false,8000,8000,0,0,30,balanced\n\
                10000,20,false,8000,8000,0,0,30,balanced\n";
    std::fs::write(trace.path(), format!("{header}\n{rows}")).unwrap();
    let daemon = device
        .governs(Builder::sim())
        .set("governor.replay", &format!("'{}'", trace.path().display()))
        .set("governor.replay_speed", "100.0")
        .start();
    let client = daemon.grpc().await;
    let report = at(&client, "small", "battery").await;
    assert_eq!(report.readings.unwrap().power_profile.as_deref(), Some("balanced"));
}

#[tokio::test]
async fn a_governor_that_is_off_says_so() {
    let daemon = Builder::sim().start();
    for (name, client) in daemon.both().await {
        assert!(!client.governor().await.unwrap().enabled, "{name}");
        let hold = HoldRequest { no_background: true, ..HoldRequest::default() };
        let refused = client.hold(hold).await.err().unwrap();
        assert_eq!(refused.reason(), Some(ErrorReason::Unsupported), "{name}: {refused}");
        let refused = client.pin("small").await.unwrap_err();
        assert_eq!(refused.reason(), Some(ErrorReason::Unsupported), "{name}: {refused}");
    }
}

/// Who lets programs wait for memory lets those of other tests wait, too.
static SQUEEZE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_real_squeeze_of_memory_is_noticed_and_running_answers_end() {
    let _alone = SQUEEZE.lock().await;
    // In a control group where this user may make one; else in the machine's memory, with the thresholds
    // put just below what is available.
    let group = Group::with_limit(1000);
    let (balloon, critical) = match group {
        Some(_) => (850, 200),
        None => (800, available_mib().saturating_sub(400)),
    };
    let device = Device::default();
    let mut builder = device
        .governs(Builder::sim())
        .set("governor.sys", "'/sys'")
        .set("governor.proc", "'/proc'")
        .set("governor.available_critical_enter", &format!("{critical}.0"))
        .set("governor.available_critical_leave", &format!("{}.0", critical + 100));
    // What else the test machine does is no matter here.
    for (key, value) in
        [("saving_enter", 97), ("saving_leave", 96), ("critical_enter", 99), ("critical_leave", 98)]
    {
        builder = builder.set(&format!("governor.pressure_{key}"), &format!("{value}.0"));
    }
    let daemon = builder.start();
    if let Some(group) = &group {
        group.take(daemon.pid());
    }
    let client = daemon.grpc().await;
    at(&client, "large", "plenty").await;
    let words = "word ".repeat(200);
    let answer = client.generate(ask(words.clone())).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let balloon = Balloon::of(balloon, group.as_ref());
    // It fills step by step, and a look in between finds less short.
    told(&client, |report| report.level == "critical").await;
    let report = at(&client, "small", "memory-pressure").await;
    assert!(report.readings.unwrap().mem_available_mib.unwrap() <= critical, "{}", report.reason);
    let events = collect(answer).await.unwrap();
    assert_eq!(text(&events), words, "all tokens there");
    assert_eq!(finished(&events).sizes, ["large", "small"]);
    until(&client, |status| status.state() == State::Parked).await;
    drop(balloon);
    told(&client, |report| report.level == "full").await;
    assert_eq!(
        text(&collect(client.generate(ask("hello")).await.unwrap()).await.unwrap()),
        "hello"
    );
    drop(daemon);
}

/// No timer could see it: the readings are an hour apart, and the thresholds are out of reach.
#[tokio::test]
async fn the_kernels_trigger_tells_that_programs_wait_for_memory() {
    let _alone = SQUEEZE.lock().await;
    let trigger = std::fs::File::options().write(true).open("/proc/pressure/memory");
    let (Ok(_), Some(group)) = (trigger, Group::with_limit(48)) else {
        eprintln!("SKIPPED: no pressure stall information here, or no control group may be made");
        return;
    };
    let device = Device::default();
    let mut builder = device
        .governs(Builder::sim())
        .set("governor.sys", "'/sys'")
        .set("governor.proc", "'/proc'")
        .set("governor.poll_s", "3600.0");
    for (key, value) in
        [("saving_enter", 97), ("saving_leave", 96), ("critical_enter", 99), ("critical_leave", 98)]
    {
        builder = builder.set(&format!("governor.pressure_{key}"), &format!("{value}.0"));
    }
    let daemon = builder.start();
    let client = daemon.grpc().await;
    at(&client, "large", "plenty").await;
    let answer = client.generate(ask("word ".repeat(200))).await.unwrap();
    let reader = Reader::of(300, &group);
    let report = at(&client, "small", "memory-pressure").await;
    assert!(report.reason.contains("system reports"), "{}", report.reason);
    assert_eq!(text(&collect(answer).await.unwrap()), "word ".repeat(200), "all tokens there");
    drop(reader);
}

/// As the kernel estimates it.
fn available_mib() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
