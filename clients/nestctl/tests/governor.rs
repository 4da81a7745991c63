//! `nestctl governor simulate` on the example day, without a daemon.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const DAY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/day.csv");
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo/nestd-demo-Q8_0.gguf");

fn simulate(trace: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestctl"));
    command.args(["governor", "simulate", trace, "--model", MODEL]).args(more);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = text(&output.stderr);
    assert!(words.iter().all(|word| told.contains(word)), "{words:?}: {told}");
}

#[test]
fn a_day_is_told_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("day.svg");
    let output = simulate(DAY, &["--plot", plot.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let told = text(&output.stdout);
    for words in [
        "the temperature is",
        "the battery is at",
        "caches",
        "next: ",
        " changes of the size in 24:00:00",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for label in ["battery, %", "available memory, MiB", "temperature, °C", "on mains"] {
        assert!(svg.contains(label), "{label}");
    }
}

#[test]
fn a_day_is_json() {
    let output = simulate(DAY, &["--json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["from"].is_null());
    for pair in lines.windows(2) {
        assert!(pair[0]["t_s"].as_f64() <= pair[1]["t_s"].as_f64());
        assert_eq!(pair[1]["from"], pair[0]["to"]);
    }
    for cause in ["temperature", "battery", "memory-pressure"] {
        assert!(lines.iter().any(|line| line["cause"] == cause), "{cause}");
    }
    assert!(lines.iter().any(|line| line["shed"] == "model"));
}

#[test]
fn what_is_wrong_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file: &Path = &folder.path().join(name);
        std::fs::write(file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let day = std::fs::read_to_string(DAY).unwrap();
    let broken = day.replacen("\n600,", "\n600,much", 1);
    refused(&simulate(&file("t.csv", &broken), &[]), &["t.csv: line 4, battery_percent"]);
    refused(&simulate(DAY, &["--profile", "toaster"]), &["toaster", "glasses, headset"]);
    let config = file("c.toml", "[governor]\nbattery_saving_leave = 20.0\n");
    refused(&simulate(DAY, &["--config", &config]), &["governor.battery_saving_leave", "above"]);
    refused(&simulate(DAY, &["--pin", "huge"]), &["--pin"]);
}
