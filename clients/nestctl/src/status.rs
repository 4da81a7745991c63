//! `nestctl status`, `watch` and `count-tokens`: what the daemon says of itself, and of a text.

use std::time::Instant;

use futures::StreamExt;
use nestd_client::{
    Client, message,
    v1::{Role, State, StatusReport},
};
use serde_json::json;

use crate::{args::CountTokensArgs, json, problem::Problem, render, render::Screen};

/// Shows the status once.
pub async fn status(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let report = client.status().await?;
    if screen.json {
        screen.value(&json::report(&report))?;
    } else {
        screen.text(&table(&report))?;
    }
    Ok(())
}

/// Shows each change on a line.
pub async fn watch(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let start = Instant::now();
    let mut reports = client.watch_status().await?;
    while let Some(report) = reports.next().await {
        let report = report?;
        if screen.json {
            screen.value(&json::report(&report))?;
        } else {
            screen.line(&format!("{:8.1} s  {}", start.elapsed().as_secs_f64(), line(&report)))?;
        }
    }
    Ok(())
}

/// Counts the tokens of a text.
pub async fn count_tokens(
    client: &Client,
    args: &CountTokensArgs,
    screen: &mut Screen,
) -> Result<(), Problem> {
    let tokens = client.count_tokens(vec![message(Role::User, args.text.join(" "))]).await?;
    if screen.json {
        screen.value(&json!({ "tokens": tokens }))?;
    } else {
        screen.line(&tokens.to_string())?;
    }
    Ok(())
}

/// A name, or a dash where there is none.
fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

fn state(report: &StatusReport) -> String {
    let word = json::state(report.state());
    if report.state() == State::Loading {
        format!("{word} ({:.0} %)", report.loading_fraction * 100.0)
    } else {
        word.into()
    }
}

/// What is wrong. While a model loads, that is what the load is about to mend.
fn problem(report: &StatusReport) -> Option<&str> {
    let told = !report.problem.is_empty() && report.state() != State::Loading;
    told.then_some(report.problem.as_str())
}

fn table(report: &StatusReport) -> String {
    let limits = report.limits.unwrap_or_default();
    let mut rows = vec![
        ("version", report.version.clone()),
        ("state", state(report)),
        ("model", or_dash(&report.model)),
        ("engine", or_dash(&report.engine)),
        ("size", or_dash(&report.active_size)),
        ("sizes", or_dash(&report.available_sizes.join(", "))),
        ("running", format!("{} of {}", report.running_requests, limits.parallel_requests)),
        ("queued", format!("{} of {}", report.queued_requests, limits.queued_requests)),
        ("context", format!("{} tokens", limits.context_tokens)),
        (
            "answer",
            format!(
                "at most {} tokens, {} if not asked for",
                limits.max_tokens, limits.default_max_tokens
            ),
        ),
        ("prompt", format!("at most {} bytes", limits.prompt_bytes)),
    ];
    if limits.context_tokens == 0 {
        rows.retain(|(name, _)| *name != "context");
    }
    if let Some(problem) = problem(report) {
        rows.push(("problem", problem.to_owned()));
    }
    render::pairs(&rows)
}

fn line(report: &StatusReport) -> String {
    let mut line = format!(
        "{}  model {}  size {}  running {}  queued {}",
        state(report),
        or_dash(&report.model),
        or_dash(&report.active_size),
        report.running_requests,
        report.queued_requests
    );
    if let Some(problem) = problem(report) {
        line.push_str("  problem: ");
        line.push_str(problem);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_without_a_model_says_why() {
        let report = StatusReport {
            version: "0.1.0".into(),
            state: State::NoModel.into(),
            problem: "no model is configured".into(),
            ..StatusReport::default()
        };
        let text = table(&report);
        assert!(text.contains("state    no-model\n"), "{text}");
        assert!(text.contains("problem  no model is configured\n"), "{text}");
        assert!(!text.contains("context"), "{text}");
        assert_eq!(
            line(&report),
            "no-model  model -  size -  running 0  queued 0  problem: no model is configured"
        );
    }
}
