//! What `nestctl model inspect` prints.

use std::fmt::Write as _;

use nestd_elastic::gguf::Tensor;
use nestd_elastic::tiles;
use serde_json::{Map, Value, json};

use super::inspect::{Inspected, Kinds, Rung};
use crate::render::{self, mib};

/// The object that `--json` prints.
pub fn json(inspected: &Inspected, tensors: bool) -> Value {
    let config = &inspected.config;
    let kinds = |kinds: &Kinds| {
        json!({ "part": kinds.part, "kind": kinds.kind.name(), "tensors": kinds.tensors,
            "bytes": kinds.bytes })
    };
    let size = |rung: &Rung| {
        let need = &rung.need;
        json!({
            "name": rung.name,
            "effective_params_b": rung.effective_params_b,
            "layers": rung.layers,
            "need_bytes": { "layers": need.layers, "embedding": need.embedding, "ple": need.ple,
                "kv": need.kv, "work": need.work, "total": need.total() },
            "read_per_token_bytes": rung.read_per_token,
            "fits": inspected.fits(rung),
        })
    };
    let mut object = json!({
        "file": inspected.file,
        "bytes": inspected.bytes,
        "name": inspected.name,
        "architecture": "gemma3n",
        "dimensions": {
            "layers": config.layers(),
            "own_kv_layers": config.own_kv,
            "full_attention_layers": config.full.iter().filter(|full| **full).count(),
            "sparse_layers": config.sparsity.iter().flatten().count(),
            "hidden": config.hidden,
            "ffn_widths": config.widths,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head": config.head_dim,
            "ple": config.ple,
            "ple_rows": inspected.ple_rows,
            "altup": config.altup,
            "window": config.window,
            "context": config.context,
            "vocabulary": inspected.vocabulary,
        },
        "kinds": inspected.kinds.iter().map(kinds).collect::<Vec<_>>(),
        "context_tokens": inspected.context,
        "sizes": inspected.sizes.iter().map(size).collect::<Vec<_>>(),
        "available_bytes": inspected.available,
    });
    if let (Some(object), true) = (object.as_object_mut(), tensors) {
        add_tensors(object, inspected);
    }
    object
}

fn add_tensors(object: &mut Map<String, Value>, inspected: &Inspected) {
    let tensors = inspected.tensors.iter().map(|(name, tensor)| {
        json!({ "name": name, "kind": tensor.kind.name(), "count": tensor.count,
            "rows": tensor.rows, "cols": tensor.cols, "offset": tensor.start,
            "bytes": tensor.len })
    });
    object.insert("tensors".into(), tensors.collect());
}

/// What a person reads.
pub fn text(inspected: &Inspected, tensors: bool) -> String {
    let mut parts = vec![dimensions(inspected), kinds(inspected), sizes(inspected)];
    if tensors {
        let heading = ["TENSOR", "KIND", "SHAPE", "BYTES"].map(String::from).to_vec();
        let rows = inspected.tensors.iter().map(|(name, tensor)| {
            let shape = match tensor.count {
                1 => format!("{} x {}", tensor.rows, tensor.cols),
                count => format!("{count} x {} x {}", tensor.rows, tensor.cols),
            };
            vec![name.clone(), tensor.kind.name().into(), shape, tensor.len.to_string()]
        });
        parts.push(render::table(&[heading].into_iter().chain(rows).collect::<Vec<_>>()));
    }
    parts.join("\n")
}

fn dimensions(inspected: &Inspected) -> String {
    let config = &inspected.config;
    let full = config.full.iter().filter(|full| **full).count();
    let (narrow, wide) = (config.widths.iter().min(), config.widths.iter().max());
    let width = match (narrow.copied().unwrap_or(0), wide.copied().unwrap_or(0)) {
        (narrow, wide) if narrow == wide => wide.to_string(),
        (narrow, wide) => format!("{narrow} to {wide}"),
    };
    render::pairs(&[
        ("name", inspected.name.clone().unwrap_or_else(|| "-".into())),
        ("file", format!("{} ({} MiB)", inspected.file, mib(inspected.bytes))),
        ("architecture", "gemma3n".into()),
        (
            "layers",
            format!(
                "{}: {} with a KV cache, {full} with full attention",
                config.layers(),
                config.own_kv
            ),
        ),
        ("hidden", format!("{}, {} streams", config.hidden, config.altup)),
        ("FFN", width),
        (
            "heads",
            format!(
                "{} of {}, {} for keys and values",
                config.heads, config.head_dim, config.kv_heads
            ),
        ),
        ("PLE", format!("{} a layer, {} rows", config.ple, inspected.ple_rows)),
        ("vocabulary", inspected.vocabulary.to_string()),
        ("context", format!("{} tokens, window {}", config.context, config.window)),
    ])
}

fn kinds(inspected: &Inspected) -> String {
    let mut rows = vec![["PART", "KIND", "TENSORS", "MiB"].map(String::from).to_vec()];
    rows.extend(inspected.kinds.iter().map(|kinds| {
        vec![
            kinds.part.into(),
            kinds.kind.name().into(),
            kinds.tensors.to_string(),
            mib(kinds.bytes),
        ]
    }));
    let mut text = render::table(&rows);
    let mut tensors = inspected.tensors.iter().map(|(_, tensor)| tensor);
    let could_be = |tensor: &Tensor| tiles::kind(tensor.kind, tensor.rows, tensor.cols).is_some();
    if !tensors.clone().any(|tensor| tensor.kind.is_tiled()) && tensors.any(could_be) {
        text.push_str("No matrix is tiled: a copy by `nestctl model nest` decodes faster.\n");
    }
    text
}

fn sizes(inspected: &Inspected) -> String {
    let heading = [
        "SIZE",
        "PARAMETERS",
        "LAYERS",
        "WEIGHTS",
        "EMBEDDING",
        "PLE",
        "KV",
        "WORK",
        "TOTAL",
        "A TOKEN",
        "FITS",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for rung in &inspected.sizes {
        let need = &rung.need;
        let parameters = match rung.effective_params_b {
            0.0 => "-".into(),
            billions => format!("{billions:.2} B"),
        };
        let mut row = vec![rung.name.clone(), parameters, rung.layers.to_string()];
        let parts = [need.layers, need.embedding, need.ple, need.kv, need.work, need.total()];
        row.extend(parts.map(mib));
        row.push(mib(rung.read_per_token));
        row.push(match inspected.fits(rung) {
            Some(true) => "yes".into(),
            Some(false) => "no".into(),
            None => "-".into(),
        });
        rows.push(row);
    }
    let mut text = render::table(&rows);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "In MiB, for {} tokens of context; A TOKEN is what decode reads of the weights for one.",
        inspected.context
    );
    if let Some(available) = inspected.available {
        let fitting = inspected.sizes.iter().find(|rung| inspected.fits(rung) == Some(true));
        let verdict = fitting.map_or_else(
            || "no size fits".into(),
            |rung| format!("{} is the largest size that fits", rung.name),
        );
        let _ = writeln!(text, "{} MiB of memory are available: {verdict}.", mib(available));
    }
    text
}
