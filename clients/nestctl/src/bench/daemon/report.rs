//! What `nestctl bench` prints of the daemon.

use nestd_client::v1::ErrorReason;
use serde_json::{Map, Value, json};

use super::super::figures::Sorted;
use super::super::report::percentiles;
use super::Measured;
use super::tally::Tally;
use crate::json::priority;
use crate::render;

/// The object that `--json` prints; what was not measured is null.
pub fn json(measured: &Measured) -> Value {
    let status = &measured.status;
    let priorities = measured.priorities.iter().map(|(of, clients, tally)| {
        let mut object = counted(tally, measured);
        object.insert("priority".into(), priority(*of).into());
        object.insert("clients".into(), (*clients).into());
        Value::from(object)
    });
    json!({
        "over": measured.over,
        "model": status.model,
        "engine": status.engine,
        "size": status.active_size,
        "clients": measured.clients,
        "seed": measured.seed,
        "seconds": measured.time.as_secs_f64(),
        "all": counted(&all(measured), measured),
        "priorities": priorities.collect::<Vec<_>>(),
    })
}

fn counted(tally: &Tally, measured: &Measured) -> Map<String, Value> {
    let seconds = measured.time.as_secs_f64();
    let mut object = Map::new();
    object.insert("requests".into(), tally.requests.into());
    object.insert("outcomes".into(), json!(tally.outcomes));
    object.insert("unfinished".into(), tally.unfinished().into());
    object.insert("prompt_tokens".into(), tally.prompt_tokens.into());
    object.insert("cached_tokens".into(), tally.cached_tokens.into());
    object.insert("completion_tokens".into(), tally.completion_tokens.into());
    object.insert("pieces".into(), tally.pieces().into());
    let rate = tally.completion_tokens as f64 / seconds;
    object.insert("completion_tokens_per_s".into(), rate.into());
    for (name, _, times) in tally.times() {
        object.insert(name.into(), percentiles(&times));
    }
    object
}

fn all(measured: &Measured) -> Tally {
    let mut all = Tally::default();
    measured.priorities.iter().for_each(|(.., tally)| all.add(tally));
    all
}

/// What a person reads: how it went, and how long what took.
pub fn text(measured: &Measured) -> String {
    let seconds = measured.time.as_secs_f64();
    let status = &measured.status;
    let head = format!(
        "{} {} over {}, {} clients for {seconds:.1} s, times in ms\n\n",
        status.model, status.active_size, measured.over, measured.clients
    );
    let mut ends = vec![row(["PRIORITY", "CLIENTS", "REQUESTS", "TOKENS/S", "ENDED"])];
    let mut times = vec![row(["PRIORITY", "TIME", "P50", "P90", "P99", "MAX"])];
    let total = all(measured);
    let several = measured.priorities.len() > 1;
    let total = several.then(|| ("all", measured.clients.to_string(), &total));
    let priorities = measured.priorities.iter();
    let priorities =
        priorities.map(|(of, clients, tally)| (priority(*of), clients.to_string(), tally));
    for (name, clients, tally) in priorities.chain(total) {
        let rate = format!("{:.1}", tally.completion_tokens as f64 / seconds);
        let requests = tally.requests.to_string();
        ends.push(vec![name.to_owned(), clients, requests, rate, ended(tally)]);
        for (index, (_, what, sorted)) in tally.times().iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            let mut row = vec![name.to_owned(), (*what).to_owned()];
            row.extend([50, 90, 99, 100].map(|percent| cell(sorted, percent)));
            times.push(row);
        }
    }
    format!("{head}{}\n{}", render::table(&ends), render::table(&times))
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn ended(tally: &Tally) -> String {
    let mut words: Vec<_> =
        tally.outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
    if tally.unfinished() > 0 {
        words.push(format!("unfinished {}", tally.unfinished()));
    }
    if words.is_empty() { "-".into() } else { words.join(", ") }
}

fn cell(times: &Sorted, percent: usize) -> String {
    times.percentile(percent).map_or_else(|| "-".into(), |time| format!("{time:.1}"))
}

/// What to do about requests that were refused because there were so many.
pub fn refusals(measured: &Measured) -> Option<String> {
    let all = all(measured);
    let of = |reason: ErrorReason| all.failures(reason.as_str_name());
    let (quota, queue) = (of(ErrorReason::OverQuota), of(ErrorReason::QueueFull));
    let limits = measured.status.limits.unwrap_or_default();
    let why = match (quota, queue) {
        (0, 0) => return None,
        (0, _) => format!(
            "as the daemon runs {} and has {} wait (limits.parallel_requests and \
             limits.queued_requests)",
            limits.parallel_requests, limits.queued_requests
        ),
        _ => "as all these clients are one user to the daemon: [quotas] in its settings bounds what one \
              user has at once, and 0 there lifts it (docs/limits.md)"
            .into(),
    };
    let refused = quota + queue;
    Some(format!("{refused} of {} requests were refused and asked again, {why}", all.requests))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use nestd_client::v1::{ErrorReason, Priority, StatusReport};
    use nestd_client::{Error, Failure};

    use super::*;

    fn refused(reason: ErrorReason) -> Error {
        let (message, details) = (String::new(), BTreeMap::new());
        Error::Failed(Failure { reason, message, details, retry_after: None })
    }

    fn measured() -> Measured {
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.begun();
        }
        tally.failed(&refused(ErrorReason::OverQuota));
        Measured {
            over: "grpc",
            status: StatusReport {
                model: "m".into(),
                active_size: "E2B".into(),
                ..StatusReport::default()
            },
            clients: 2,
            seed: 1,
            time: Duration::from_secs(2),
            priorities: vec![(Priority::Normal, 2, tally)],
        }
    }

    #[test]
    fn what_was_not_measured_is_a_dash_or_null() {
        let measured = measured();
        assert_eq!(
            text(&measured),
            "\
m E2B over grpc, 2 clients for 2.0 s, times in ms

PRIORITY  CLIENTS  REQUESTS  TOKENS/S  ENDED
normal    2        3         0.0       OVER_QUOTA 1, unfinished 2

PRIORITY  TIME            P50  P90  P99  MAX
normal    first token     -    -    -    -
          between tokens  -    -    -    -
          per token       -    -    -    -
          in the queue    -    -    -    -
"
        );
        let value = json(&measured);
        assert_eq!(value["all"]["outcomes"], json!({ "OVER_QUOTA": 1 }));
        assert_eq!(value["priorities"][0]["unfinished"], 2);
        assert!(value["all"]["ttft_ms"]["p99"].is_null());
    }

    #[test]
    fn refusals_say_which_setting_they_come_from() {
        let mut measured = measured();
        let note = refusals(&measured).unwrap();
        assert!(note.starts_with("1 of 3 requests were refused") && note.contains("[quotas]"));
        let mut tally = Tally::default();
        tally.begun();
        measured.priorities = vec![(Priority::Background, 2, tally.clone())];
        assert_eq!(refusals(&measured), None);
        tally.failed(&refused(ErrorReason::QueueFull));
        measured.priorities = vec![(Priority::Background, 2, tally)];
        assert!(refusals(&measured).unwrap().contains("limits.queued_requests"));
    }
}
