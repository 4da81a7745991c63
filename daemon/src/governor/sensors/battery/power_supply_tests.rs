use std::fs;

use super::super::super::testing::{said, tree, until};
use super::*;

fn of(supplies: &[(&str, &[(&str, &str)])]) -> Power {
    let root = tempfile::tempdir().unwrap();
    for (name, files) in supplies {
        tree(root.path(), name, files);
    }
    read(root.path())
}

fn battery(percent: f64, power_w: Option<f64>, time_to_empty_s: Option<u64>) -> Battery {
    Battery { percent, power_w, time_to_empty_s, warning: None }
}

const MAINS: (&str, &[(&str, &str)]) = ("AC", &[("type", "Mains\n"), ("online", "1\n")]);
const OFF: (&str, &[(&str, &str)]) = ("AC", &[("type", "Mains\n"), ("online", "0\n")]);

#[test]
fn nothing_is_nothing() {
    assert_eq!(of(&[]), (None, None));
    assert_eq!(read(Path::new("/nowhere/at/all")), (None, None));
    assert_eq!(of(&[MAINS]), (Some(true), None));
    assert_eq!(of(&[OFF]), (Some(false), None));
}

#[test]
fn several_batteries_count_by_their_energy() {
    let large = (
        "BAT0",
        &[
            ("type", "Battery"),
            ("energy_now", "30000000"),
            ("energy_full", "60000000"),
            ("power_now", "8000000"),
            ("status", "Discharging"),
        ][..],
    );
    let small = (
        "BAT1",
        &[
            ("type", "Battery"),
            ("charge_now", "1000000"),
            ("charge_full", "2000000"),
            ("voltage_now", "10000000"),
            ("current_now", "-200000"),
            ("status", "Discharging"),
        ][..],
    );
    // 30 of 60 Wh and 10 of 20 Wh, 8 W and 2 W.
    assert_eq!(
        of(&[large, small, OFF]),
        (Some(false), Some(battery(50.0, Some(10.0), Some(14400))))
    );
    let full = ("BAT1", &[("type", "Battery"), ("energy_now", "9"), ("energy_full", "9")][..]);
    assert_eq!(of(&[large, full]).1, Some(battery(50.0, Some(8.0), Some(13500))));
}

#[test]
fn a_share_is_enough() {
    let one = ("a", &[("type", "Battery"), ("capacity", "20"), ("status", "Full")][..]);
    let two = ("b", &[("type", "Battery"), ("capacity", "40\n")][..]);
    assert_eq!(of(&[one, two]), (Some(true), Some(battery(30.0, None, None))));
    let charge = ("a", &[("type", "Battery"), ("charge_now", "5"), ("charge_full", "10")][..]);
    assert_eq!(of(&[charge, two]), (None, Some(battery(45.0, None, None))));
}

#[test]
fn the_mains_follow_from_what_the_battery_does() {
    let doing =
        |status| of(&[("b", &[("type", "Battery"), ("capacity", "9"), ("status", status)])]).0;
    assert_eq!(doing("Charging"), Some(true));
    assert_eq!(doing("Full"), Some(true));
    assert_eq!(doing("Discharging"), Some(false));
    assert_eq!(doing("Unknown"), None);
    assert_eq!(doing("\u{1f50b}"), None);
    let charging = ("b", &[("type", "Battery"), ("capacity", "9"), ("status", "Charging")][..]);
    assert_eq!(of(&[charging, OFF]).0, Some(false));
    let usb = ("usb", &[("type", "USB_PD"), ("online", "2")][..]);
    assert_eq!(of(&[charging, OFF, usb]).0, Some(true));
    let odd = ("AC", &[("type", "Mains"), ("online", "maybe")][..]);
    assert_eq!(of(&[charging, odd]).0, Some(true));
}

#[test]
fn charging_is_negative_and_has_no_end() {
    let charging = [
        ("type", "Battery"),
        ("energy_now", "10000000"),
        ("energy_full", "40000000"),
        ("power_now", "20000000"),
        ("time_to_empty_now", "77"),
        ("status", "Charging"),
    ];
    assert_eq!(
        of(&[("b", &charging), MAINS]),
        (Some(true), Some(battery(25.0, Some(-20.0), None)))
    );
}

#[test]
fn a_mouse_is_not_the_device() {
    let mouse = [("type", "Battery"), ("scope", "Device\n"), ("capacity", "3")];
    assert_eq!(of(&[("hid", &mouse), MAINS]), (Some(true), None));
    let gone = [("type", "Battery"), ("present", "0"), ("capacity", "3")];
    assert_eq!(of(&[("b", &gone)]), (None, None));
}

#[test]
fn garbage_is_survived() {
    let values =
        ["", "NaN", "inf", "-inf", "-5", "1e308", "-1e308", "0", "\0", "99999999999999999"];
    let names = [
        "energy_now",
        "energy_full",
        "charge_now",
        "charge_full",
        "voltage_now",
        "current_now",
        "power_now",
        "time_to_empty_now",
        "capacity",
    ];
    let sound = [
        ("type", "Battery"),
        ("status", "Discharging"),
        ("energy_now", "30000000"),
        ("energy_full", "60000000"),
        ("charge_now", "1000000"),
        ("charge_full", "2000000"),
        ("voltage_now", "10000000"),
        ("current_now", "1000000"),
        ("power_now", "8000000"),
        ("capacity", "50"),
    ];
    for one in names {
        for other in names {
            for value in values {
                let root = tempfile::tempdir().unwrap();
                tree(root.path(), "b", &sound);
                tree(root.path(), "b", &[(one, value), (other, value)]);
                if let Some(battery) = read(root.path()).1 {
                    assert!((0.0..=100.0).contains(&battery.percent), "{battery:?}");
                    assert!(battery.power_w.is_none_or(f64::is_finite), "{battery:?}");
                    assert_ne!(battery.time_to_empty_s, Some(0));
                }
            }
        }
    }
    let root = tempfile::tempdir().unwrap();
    tree(root.path(), "b", &[("type", "Battery")]);
    fs::write(root.path().join("b/capacity"), b"\xff\xff").unwrap();
    fs::create_dir(root.path().join("b/status")).unwrap();
    fs::write(root.path().join("file"), "not a folder").unwrap();
    assert_eq!(read(root.path()), (None, None));
}

#[tokio::test]
async fn what_changes_or_vanishes_is_told() {
    let root = tempfile::tempdir().unwrap();
    let capacity = |value: &str| {
        let files = [("type", "Battery"), ("status", "Discharging"), ("capacity", value)];
        tree(root.path(), "class/power_supply/b", &files);
    };
    capacity("80");
    let mut settings = Settings::below(root.path(), root.path(), None);
    settings.poll = Duration::ZERO;
    let mut sensor = PowerSupply::new(&settings);
    let reading = |percent| Reading::Power(Some(false), Some(battery(percent, None, None)));
    assert_eq!(said(sensor.next()).await, Some(reading(80.0)));
    capacity("79");
    until(&mut sensor, reading(79.0)).await;
    fs::remove_file(root.path().join("class/power_supply/b/capacity")).unwrap();
    until(&mut sensor, Reading::Power(None, None)).await;
    capacity("78");
    until(&mut sensor, reading(78.0)).await;
    fs::remove_dir_all(root.path().join("class")).unwrap();
    until(&mut sensor, Reading::Power(None, None)).await;
}
