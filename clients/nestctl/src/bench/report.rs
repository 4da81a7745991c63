//! What `nestctl bench --model` prints.

use serde_json::{Value, json};

use super::figures::Sorted;
use super::measure::Run;
use super::{Measured, Task};
use crate::render;

/// The object that `--json` prints; what was not measured is null.
pub fn json(task: &Task<'_>, measured: &Measured) -> Value {
    let names: Vec<_> = measured.rungs.iter().map(|rung| rung.name.as_str()).collect();
    let run = |run: &Run| {
        json!({ "ttft_ms": run.ttft * 1e3, "prefill_tokens_per_s": prefill(task, run),
            "decode_tokens_per_s": run.decode() })
    };
    let resident = &measured.resident;
    json!({
        "engine": "elastic",
        "model": task.model.display().to_string(),
        "sizes": names,
        "kernels": measured.kernels,
        "threads": measured.threads,
        "prompt_tokens": task.prompt_tokens,
        "max_tokens": task.max_tokens,
        "load_ms": measured.load.as_secs_f64() * 1e3,
        "ttft_ms": ttft(measured).median(),
        "prefill_tokens_per_s": prefills(task, measured).median(),
        "decode_tokens_per_s": decodes(measured).median(),
        "runs": measured.runs.iter().map(run).collect::<Vec<_>>(),
        "between_tokens_ms": percentiles(&measured.between_tokens()),
        "switches": switches(task, measured),
        "resident_bytes": { "layers": resident.layers, "embedding": resident.embedding,
            "ple": resident.ple, "rest": resident.rest, "total": resident.total() },
        "kv_bytes": measured.kv,
        "peak_rss_bytes": measured.peak,
        "read_per_token_bytes": measured.read_per_token(),
        "bandwidth_bytes_per_s": measured.bandwidth,
        "bandwidth_share": measured.share(),
    })
}

fn switches(task: &Task<'_>, measured: &Measured) -> Option<Value> {
    let every = task.options.switch_every?;
    let extra = measured.extra();
    let sizes = measured.rungs.iter().enumerate().map(|(index, rung)| {
        json!({ "size": rung.name, "between_tokens_ms": percentiles(&measured.steady(index)),
            "read_per_token_bytes": rung.read })
    });
    Some(json!({ "every_tokens": every, "count": extra.len(), "extra_ms": percentiles(&extra),
        "sizes": sizes.collect::<Vec<_>>() }))
}

/// The object of several times.
pub fn percentiles(values: &Sorted) -> Value {
    json!({ "p50": values.percentile(50), "p90": values.percentile(90),
        "p99": values.percentile(99), "max": values.most() })
}

/// What a person reads.
pub fn text(task: &Task<'_>, measured: &Measured) -> String {
    let names: Vec<_> = measured.rungs.iter().map(|rung| rung.name.as_str()).collect();
    let resident = &measured.resident;
    let mib = |bytes: u64| format!("{} MiB", render::mib(bytes));
    let mut rows = vec![
        ("model", task.model.display().to_string()),
        ("size", names.join(" and ")),
        ("threads", format!("{}, kernels {}", measured.threads, measured.kernels)),
        ("load", format!("{:.1} ms", measured.load.as_secs_f64() * 1e3)),
        (
            "prefill",
            format!(
                "{}  ({} tokens)",
                spread(&prefills(task, measured), "tokens/s"),
                task.prompt_tokens
            ),
        ),
        ("first token", spread(&ttft(measured), "ms")),
        ("decode", spread(&decodes(measured), "tokens/s")),
        ("between tokens", in_words(&measured.between_tokens())),
    ];
    if task.options.switch_every.is_some() {
        for (index, rung) in measured.rungs.iter().enumerate() {
            rows.push(("", format!("{}: {}", rung.name, in_words(&measured.steady(index)))));
        }
        let extra = measured.extra();
        rows.push(("switches", format!("{}, extra {}", extra.len(), in_words(&extra))));
    }
    rows.push((
        "in memory",
        format!(
            "layers {}, embedding {}, PLE {}, rest {}",
            mib(resident.layers),
            mib(resident.embedding),
            mib(resident.ple),
            mib(resident.rest)
        ),
    ));
    rows.push(("KV cache", mib(measured.kv)));
    rows.push(("peak", measured.peak.map_or_else(|| "-".into(), mib)));
    let (read, bandwidth) = (measured.read_per_token() / 1e6, measured.bandwidth / 1e9);
    rows.push(("a token reads", format!("{read:.0} MB")));
    let share = measured.share().map_or_else(String::new, |share| {
        format!(", of which decode reached {:.0} %", share * 100.0)
    });
    rows.push(("bandwidth", format!("{bandwidth:.1} GB/s{share}")));
    render::pairs(&rows)
}

/// The median, and from where to where.
fn spread(values: &Sorted, unit: &str) -> String {
    match (values.median(), values.least(), values.most()) {
        (Some(median), Some(least), Some(most)) if values.len() > 1 => {
            format!("{median:.1} {unit}  [{least:.1} to {most:.1}]")
        }
        (Some(median), ..) => format!("{median:.1} {unit}"),
        _ => "-".into(),
    }
}

fn in_words(values: &Sorted) -> String {
    let one =
        |percent| values.percentile(percent).map_or_else(|| "-".into(), |v| format!("{v:.1}"));
    format!("p50 {}, p90 {}, p99 {} ms", one(50), one(90), one(99))
}

fn prefill(task: &Task<'_>, run: &Run) -> f64 {
    f64::from(task.prompt_tokens) / run.ttft
}

fn prefills(task: &Task<'_>, measured: &Measured) -> Sorted {
    Sorted::new(measured.runs.iter().map(|run| prefill(task, run)))
}

fn ttft(measured: &Measured) -> Sorted {
    Sorted::new(measured.runs.iter().map(|run| run.ttft * 1e3))
}

fn decodes(measured: &Measured) -> Sorted {
    Sorted::new(measured.runs.iter().filter_map(Run::decode))
}
