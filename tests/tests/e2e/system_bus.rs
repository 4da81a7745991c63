//! The governor on a system bus: `UPower`, power-profiles-daemon and logind as python-dbusmock plays them.

use std::time::Duration;

use nestd_client::ask;
use nestd_tests::{Builder, Daemon, Device, Mock, collect, finished, text, until};

use crate::governor::{at, told};

const UPOWER: &str = "org.freedesktop.UPower";
const DISPLAY: &str = "/org/freedesktop/UPower/devices/DisplayDevice";
const DEVICE: &str = "org.freedesktop.UPower.Device";

/// A daemon on a device without sensors of its own, and without files for a battery.
fn sim() -> (Device, Daemon) {
    let device = Device::default();
    let daemon = device.governs(Builder::sim()).set("governor.battery", "'auto'").start();
    (device, daemon)
}

async fn upower(address: &str, percent: f64) -> Mock {
    let mock = Mock::start(address, "upower", UPOWER).await;
    // Battery, discharging, percent, energy and energy when full in Wh, rate in W, seconds to empty and
    // to full, present, icon, no warning.
    let display = (2_u32, 2_u32, percent, 4.0, 8.0, 4.0, 3600_i64, 0_i64, true, "", 1_u32);
    mock.call(
        "/org/freedesktop/UPower",
        "org.freedesktop.DBus.Mock",
        "SetupDisplayDevice",
        &display,
    )
    .await;
    plugged(&mock, false).await;
    mock
}

async fn percentage(upower: &Mock, percent: f64) {
    upower.set(DISPLAY, DEVICE, "Percentage", percent.into()).await;
}

async fn plugged(upower: &Mock, yes: bool) {
    upower.set("/org/freedesktop/UPower", UPOWER, "OnBattery", (!yes).into()).await;
    upower.set(DISPLAY, DEVICE, "State", if yes { 1_u32 } else { 2 }.into()).await;
}

#[tokio::test]
async fn upower_is_followed_through_a_day_and_a_restart() {
    let (_device, daemon) = sim();
    let client = daemon.grpc().await;
    at(&client, "large", "plenty").await;
    let mock = upower(&daemon.bus_address(), 100.0).await;
    told(&client, |report| report.readings.as_ref().unwrap().battery_percent == Some(100.0)).await;
    let words = "word ".repeat(150);
    let answer = client.generate(ask(words.clone())).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    for percent in [80.0, 60.0, 40.0, 20.0, 10.0, 3.0] {
        percentage(&mock, percent).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let report = told(&client, |report| report.reason.contains("at 3 %")).await;
    assert_eq!(report.level, "critical");
    assert_eq!((report.active_size.as_str(), report.cause.as_str()), ("small", "battery"));
    let readings = report.readings.unwrap();
    assert_eq!((readings.battery_power_w, readings.time_to_empty_s), (Some(4.0), Some(3600)));
    let events = collect(answer).await.unwrap();
    assert_eq!(text(&events), words, "all tokens there");
    assert_eq!(finished(&events).sizes, ["large", "small"]);
    // 4 W at 50 to 100 tokens a second, but for what lies between two readings.
    let report = told(&client, |report| report.energy_per_token_j.is_some()).await;
    let joules = report.energy_per_token_j.unwrap();
    assert!((0.005..0.8).contains(&joules), "{joules} J a token");

    // UPower knows better than a percentage.
    percentage(&mock, 90.0).await;
    at(&client, "large", "plenty").await;
    mock.set(DISPLAY, DEVICE, "WarningLevel", 4_u32.into()).await;
    let report = at(&client, "small", "battery").await;
    assert!(report.reason.contains("warns of it (critical)"), "{}", report.reason);
    for (name, client) in daemon.both().await {
        let readings = client.governor().await.unwrap().readings.unwrap();
        assert_eq!(readings.battery_warning.as_deref(), Some("critical"), "{name}");
    }
    mock.set(DISPLAY, DEVICE, "WarningLevel", 1_u32.into()).await;
    at(&client, "large", "plenty").await;

    // The rest of the day under one answer: none of it costs a token.
    let words = "word ".repeat(400);
    let answer = client.generate(ask(words.clone())).await.unwrap();
    percentage(&mock, 5.0).await;
    plugged(&mock, true).await;
    at(&client, "large", "plenty").await;
    plugged(&mock, false).await;
    at(&client, "small", "battery").await;
    mock.set(DISPLAY, DEVICE, "IsPresent", false.into()).await;
    at(&client, "large", "plenty").await;
    mock.set(DISPLAY, DEVICE, "IsPresent", true.into()).await;
    at(&client, "small", "battery").await;
    for lie in [-5.0, 1e300, f64::NAN] {
        percentage(&mock, lie).await;
        told(&client, |report| report.readings.as_ref().unwrap().battery_percent.is_none()).await;
        percentage(&mock, 20.0).await;
        at(&client, "small", "battery").await;
    }
    drop(mock);
    told(&client, |report| report.readings.as_ref().unwrap().battery_percent.is_none()).await;
    at(&client, "large", "plenty").await;
    let _mock = upower(&daemon.bus_address(), 15.0).await;
    at(&client, "small", "battery").await;
    assert_eq!(text(&collect(answer).await.unwrap()), words, "all tokens there");
}

#[tokio::test]
async fn the_persons_power_profile_counts() {
    let (_device, daemon) = sim();
    let client = daemon.dbus().await;
    let (name, path) = ("net.hadess.PowerProfiles", "/net/hadess/PowerProfiles");
    let mock = Mock::start(&daemon.bus_address(), "power_profiles_daemon", name).await;
    told(&client, |report| report.readings.as_ref().unwrap().power_profile.is_some()).await;
    mock.set(path, name, "ActiveProfile", "power-saver".into()).await;
    let report = at(&client, "small", "power-profile").await;
    assert!(report.reason.contains("power-saver"), "{}", report.reason);
    mock.set(path, name, "ActiveProfile", "warp".into()).await;
    told(&client, |report| report.readings.as_ref().unwrap().power_profile.is_none()).await;
    mock.set(path, name, "ActiveProfile", "power-saver".into()).await;
    at(&client, "small", "power-profile").await;
    drop(mock);
    at(&client, "large", "plenty").await;
}

#[tokio::test]
async fn answers_end_before_the_device_sleeps() {
    let (_device, daemon) = sim();
    let client = daemon.grpc().await;
    let (name, path) = ("org.freedesktop.login1", "/org/freedesktop/login1");
    let mock = Mock::start(&daemon.bus_address(), "logind", name).await;
    // The sensor has seen the service when the mock has handed out its lock.
    daemon.wait_log("ready").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answer = client.generate(ask("word ".repeat(60))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let signal =
        ("org.freedesktop.login1.Manager", "PrepareForSleep", "b", [zbus::Variant::from(true)]);
    mock.call(path, "org.freedesktop.DBus.Mock", "EmitSignal", &signal).await;
    assert_eq!(text(&collect(answer).await.unwrap()), "word ".repeat(60));
    daemon.wait_log("the device goes to sleep quiet=true").await;
}
