//! The governor of the daemon: shown, watched, recorded, held, pinned.

use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use futures::StreamExt;
use nestd_client::Client;
use nestd_client::v1::{GovernorReport, HoldRequest, Readings};
use nestd_policy::snapshot::{Battery, Memory, PowerProfile, Pressure, Snapshot};
use nestd_policy::trace::{Point, Writer};
use serde_json::{Value, json};

use super::simulate::clock;
use crate::args::{HoldArgs, RecordArgs};
use crate::problem::Problem;
use crate::render::{self, Screen};

/// Shows everything.
pub async fn show(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let report = client.governor().await?;
    if screen.json {
        screen.value(&value(&report))?;
    } else {
        screen.text(&table(&report))?;
    }
    Ok(())
}

/// Shows each change of the decision, or, as JSON, every report.
pub async fn watch(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let start = Instant::now();
    let mut reports = client.watch_governor().await?;
    let mut shown = String::new();
    while let Some(report) = reports.next().await {
        let report = report?;
        if screen.json {
            screen.value(&value(&report))?;
            continue;
        }
        let line = format!("{}  {}", size(&report), report.reason);
        if line != shown {
            screen.line(&format!("{:8.1} s  {line}", start.elapsed().as_secs_f64()))?;
            shown = line;
        }
    }
    Ok(())
}

/// Holds until it is interrupted.
pub async fn hold(client: &Client, args: &HoldArgs, screen: &mut Screen) -> Result<(), Problem> {
    let HoldArgs { min, max, no_background, reason } = args;
    let mut hold = client
        .hold(HoldRequest {
            min_size: min.clone(),
            max_size: max.clone(),
            no_background: *no_background,
            reason: reason.clone(),
        })
        .await?;
    while let Some(event) = hold.next().await {
        let event = event?;
        if screen.json {
            screen.value(&json!({ "hold": event.id, "active_size": event.active_size }))?;
        } else {
            let size = or_dash(&event.active_size);
            screen.line(&format!("hold {} is in force, size {size}; Ctrl-C ends it", event.id))?;
        }
    }
    Ok(())
}

/// Writes a trace until it is interrupted.
pub async fn record(
    client: &Client,
    args: &RecordArgs,
    screen: &mut Screen,
) -> Result<(), Problem> {
    let to_file = args.file.as_os_str() != "-";
    let out: Box<dyn Write> = if to_file {
        let file = File::create(&args.file);
        Box::new(file.map_err(|error| Problem::Usage(format!("{}: {error}", args.file.display())))?)
    } else {
        Box::new(io::stdout())
    };
    let failed = |error: nestd_policy::trace::Error| Problem::Io(format!("the trace: {error}"));
    let mut writer = Writer::new(out).map_err(failed)?;
    let mut reports = client.watch_governor().await?;
    let start = Instant::now();
    let every = Duration::from_secs(args.every.into());
    let mut last: Option<Snapshot> = None;
    let mut lines = 0_u64;
    loop {
        let next = tokio::time::timeout(every, reports.next()).await;
        let snapshot = match next {
            Ok(None) => return Ok(()),
            Ok(Some(report)) => {
                let snapshot = snapshot(&report?.readings.unwrap_or_default());
                if last.as_ref() == Some(&snapshot) {
                    continue;
                }
                snapshot
            }
            // Nothing has changed for long: the last readings still hold.
            Err(_) => last.unwrap_or_default(),
        };
        writer.write(&Point { at: start.elapsed(), snapshot: snapshot.clone() }).map_err(failed)?;
        last = Some(snapshot);
        lines += 1;
        if to_file {
            let time = clock(start.elapsed());
            screen.progress(&format!("{lines} lines in {time}; Ctrl-C ends the recording"));
        }
    }
}

/// Fixes the size, and waits until it is in use.
pub async fn pin(client: &Client, name: &str, screen: &mut Screen) -> Result<(), Problem> {
    if !client.governor().await?.enabled {
        return crate::models::load(client, "", name, screen).await;
    }
    client.pin(name).await?;
    settled(client, screen).await
}

/// Lets go of the pin.
pub async fn auto(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    client.pin("").await?;
    settled(client, screen).await
}

/// Waits for the size that was decided on, and shows it.
async fn settled(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let mut reports = client.watch_governor().await?;
    screen.progress("the size changes");
    while let Some(report) = reports.next().await {
        let report = report?;
        let there = report.active_size == report.selected_size || report.active_size.is_empty();
        if there || !report.problem.is_empty() {
            return if screen.json {
                Ok(screen.value(&value(&report))?)
            } else {
                let problem = match report.problem.as_str() {
                    "" => String::new(),
                    problem => format!("; {problem}"),
                };
                Ok(screen.line(&format!("{}: {}{problem}", size(&report), report.reason))?)
            };
        }
    }
    Ok(())
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn size(report: &GovernorReport) -> String {
    match (report.active_size.as_str(), report.selected_size.as_str()) {
        ("", "") => "no model".into(),
        ("", selected) => format!("{selected} when it is loaded"),
        (active, selected) if active != selected && !selected.is_empty() => {
            format!("{active} -> {selected}")
        }
        (active, _) => active.to_owned(),
    }
}

fn table(report: &GovernorReport) -> String {
    let readings = report.readings.clone().unwrap_or_default();
    let mut rows = vec![("size", size(report))];
    if !report.enabled {
        rows.push(("governor", "off (governor.enabled)".into()));
    }
    if !report.reason.is_empty() {
        rows.push(("why", report.reason.clone()));
        rows.push(("next", report.next_threshold.clone()));
        rows.push(("level", report.level.clone()));
        let background = if report.background_allowed { "" } else { ", no background requests" };
        let (context, parallel) = (report.max_context_tokens, report.max_parallel_requests);
        rows.push((
            "allowed",
            format!("{context} tokens of context, {parallel} at once{background}"),
        ));
    }
    if !matches!(report.shed.as_str(), "" | "nothing") {
        rows.push(("given up", format!("up to {}", report.shed)));
    }
    if !report.pin.is_empty() {
        rows.push(("pin", report.pin.clone()));
    }
    for hold in &report.holds {
        let wishes = [("at least", &hold.min_size), ("at most", &hold.max_size)];
        let wishes = wishes.iter().filter(|(_, size)| !size.is_empty());
        let mut wishes: Vec<_> = wishes.map(|(what, size)| format!("{what} {size}")).collect();
        wishes.extend(hold.no_background.then(|| "no background".to_owned()));
        rows.push((
            "hold",
            format!("{} ({}): {}", wishes.join(", "), hold.client, or_dash(&hold.reason)),
        ));
    }
    if !report.problem.is_empty() {
        rows.push(("problem", report.problem.clone()));
    }
    rows.push(("profile", report.profile.clone()));
    rows.extend(reading_rows(&readings));
    if let Some(joules) = report.energy_per_token_j {
        rows.push(("energy", format!("{joules:.2} J a token, the whole device's")));
    }
    if let Some(change) = &report.last_change {
        let took = format!(
            "{} -> {} in {:.1} ms",
            change.from,
            change.to,
            change.duration_us as f64 / 1e3
        );
        rows.push(("last change", format!("{took}: {}", change.reason)));
    }
    render::pairs(&rows)
}

fn reading_rows(readings: &Readings) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(percent) = readings.battery_percent {
        let mut text = format!("{percent:.0} %");
        if let Some(watts) = readings.battery_power_w {
            text = format!("{text}, {watts:.1} W");
        }
        if let Some(seconds) = readings.time_to_empty_s {
            text = format!("{text}, empty in {}", clock(Duration::from_secs(seconds)));
        }
        if let Some(warning) = &readings.battery_warning {
            text = format!("{text}; the system warns: {warning}");
        }
        rows.push(("battery", text));
    }
    if let Some(on_ac) = readings.on_ac {
        rows.push(("mains", if on_ac { "connected" } else { "not connected" }.into()));
    }
    if let (Some(available), Some(total)) = (readings.mem_available_mib, readings.mem_total_mib) {
        let own = readings.resident_mib.map(|own| format!("; nestd takes {own}"));
        let own = own.unwrap_or_default();
        rows.push(("memory", format!("{available} of {total} MiB available{own}")));
    }
    if let (Some(some), Some(full)) = (readings.psi_some_avg10, readings.psi_full_avg10) {
        rows.push(("pressure", format!("some {some:.1} %, full {full:.1} %")));
    }
    if let Some(celsius) = readings.temp_c {
        rows.push(("temperature", format!("{celsius:.0} °C")));
    }
    if let Some(profile) = &readings.power_profile {
        rows.push(("power profile", profile.clone()));
    }
    rows
}

/// The object that `--json` prints.
pub fn value(report: &GovernorReport) -> Value {
    let readings = report.readings.clone().unwrap_or_default();
    let holds = report.holds.iter().map(|hold| {
        json!({ "id": hold.id, "client": hold.client, "min_size": hold.min_size,
            "max_size": hold.max_size, "no_background": hold.no_background, "reason": hold.reason })
    });
    let change = report.last_change.as_ref().map(|change| {
        json!({ "from": change.from, "to": change.to, "reason": change.reason,
            "duration_us": change.duration_us })
    });
    json!({
        "enabled": report.enabled, "profile": report.profile,
        "active_size": report.active_size, "selected_size": report.selected_size,
        "level": report.level, "cause": report.cause, "reason": report.reason,
        "next_threshold": report.next_threshold,
        "background_allowed": report.background_allowed,
        "max_context_tokens": report.max_context_tokens,
        "max_parallel_requests": report.max_parallel_requests,
        "shed": report.shed, "holds": holds.collect::<Vec<_>>(), "pin": report.pin,
        "problem": report.problem, "last_change": change,
        "energy_per_token_j": report.energy_per_token_j,
        "readings": {
            "mem_available_mib": readings.mem_available_mib,
            "mem_total_mib": readings.mem_total_mib,
            "swap_used_mib": readings.swap_used_mib, "resident_mib": readings.resident_mib,
            "psi_some_avg10": readings.psi_some_avg10, "psi_full_avg10": readings.psi_full_avg10,
            "battery_percent": readings.battery_percent,
            "battery_power_w": readings.battery_power_w,
            "time_to_empty_s": readings.time_to_empty_s,
            "battery_warning": readings.battery_warning, "on_ac": readings.on_ac,
            "temp_c": readings.temp_c, "power_profile": readings.power_profile,
        },
    })
}

fn snapshot(readings: &Readings) -> Snapshot {
    Snapshot {
        memory: readings.mem_available_mib.map(|available_mib| Memory {
            available_mib,
            total_mib: readings.mem_total_mib.unwrap_or(available_mib),
            ..Memory::default()
        }),
        pressure: readings.psi_some_avg10.map(|some_avg10| Pressure {
            some_avg10,
            full_avg10: readings.psi_full_avg10.unwrap_or_default(),
            stalled: false,
        }),
        on_ac: readings.on_ac,
        battery: readings.battery_percent.map(|percent| Battery { percent, ..Battery::default() }),
        temperature_c: readings.temp_c,
        power_profile: readings.power_profile.as_deref().and_then(PowerProfile::parse),
        sleeping: false,
    }
}
