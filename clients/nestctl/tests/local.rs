//! The commands that need no daemon, as a person or a script uses them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn nestctl(arguments: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nestctl")).args(arguments).arg(file).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "no progress without a terminal: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A small synthetic model with two sizes.
fn model(folder: &Path) -> PathBuf {
    let file = folder.join("model.gguf");
    let output = nestctl(&["model", "synth", "--size", "small", "--out"], &file);
    assert!(output.status.success(), "{output:?}");
    let widths = |width: u32, count| format!("\"{:?}\"", vec![width; count]);
    let (large, small) = (widths(512, 25), widths(256, 23));
    let table = format!(
        "name,# Layers,# Effective Params (B),FFN Hidden Dims,Layers Skipped\n\
         large,25,0.02,{large},\nsmall,23,0.01,{small},\"[21, 22]\"\n"
    );
    std::fs::write(folder.join("model.sizes.csv"), table).unwrap();
    file
}

#[test]
fn a_file_is_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let inspected = json(&nestctl(&["--json", "model", "inspect", "--context", "512"], &file));
    assert_eq!(inspected["architecture"], "gemma3n");
    assert_eq!(inspected["dimensions"]["layers"], 25);
    assert_eq!(inspected["dimensions"]["own_kv_layers"], 20);
    assert_eq!(inspected["context_tokens"], 512);
    assert_eq!(inspected["bytes"], file.metadata().unwrap().len());
    assert!(inspected["available_bytes"].as_u64().unwrap() > 0);
    assert!(inspected.get("tensors").is_none());
    let kinds = inspected["kinds"].as_array().unwrap();
    assert!(kinds.iter().any(|kinds| kinds["part"] == "layers" && kinds["kind"] == "Q4_0"));
    let sizes = inspected["sizes"].as_array().unwrap();
    assert_eq!(
        (sizes.len(), &sizes[0]["name"], &sizes[1]["layers"]),
        (2, &"large".into(), &23.into())
    );
    for size in sizes {
        let need = size["need_bytes"].as_object().unwrap();
        let parts: u64 = need
            .iter()
            .filter(|(part, _)| *part != "total")
            .map(|(_, bytes)| bytes.as_u64().unwrap())
            .sum();
        assert_eq!(need["total"], parts);
        assert_eq!((need.len(), &size["fits"]), (6, &Value::Bool(true)));
    }
    assert!(sizes[0]["read_per_token_bytes"].as_u64() > sizes[1]["read_per_token_bytes"].as_u64());

    let all = json(&nestctl(&["--json", "model", "inspect", "--tensors"], &file));
    let tensors = all["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 7 + 25 * 24);
    assert_eq!(
        (&tensors[0]["name"], &tensors[0]["rows"]),
        (&"token_embd.weight".into(), &1024.into())
    );

    let output = nestctl(&["model", "inspect", "--tensors"], &file);
    let text = String::from_utf8_lossy(&output.stdout);
    for word in ["small", "large is the largest size that fits", "blk.24.ffn_down.weight"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_damaged_file_is_told_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let bytes = std::fs::read(&file).unwrap();
    let cut = folder.path().join("cut.gguf");
    let table = folder.path().join("model.sizes.csv");
    for (len, why) in
        [(3, "the file ends in it"), (bytes.len() - 5000, "past the end"), (0, "empty")]
    {
        std::fs::write(&cut, &bytes[..len]).unwrap();
        let output = nestctl(&["model", "inspect"], &cut);
        assert_eq!(output.status.code(), Some(1));
        let told = stderr(&output);
        assert!(told.contains("cut.gguf: ") && told.contains(why), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        let output = nestctl(&["bench", "--model"], &cut);
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), told));
    }
    std::fs::write(&table, "no table").unwrap();
    let output = nestctl(&["--json", "model", "inspect"], &file);
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "MODEL_FILE");
    assert!(error["error"]["message"].as_str().unwrap().contains("model.sizes.csv"), "{error}");
}

#[test]
fn a_file_is_written_over_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    std::fs::write(&file, "mine").unwrap();
    let write = ["--json", "model", "synth", "--size", "SMALL", "--quant", "Q8_0", "--out"];
    let output = nestctl(&write, &file);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--force"), "{output:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let written =
        json(&nestctl(&[&write[..2], &["synth", "--force"], &write[3..]].concat(), &file));
    assert_eq!(written["bytes"], file.metadata().unwrap().len());
    let nowhere = folder.path().join("nowhere/model.gguf");
    assert_eq!(nestctl(&write, &nowhere).status.code(), Some(2));
}

#[test]
fn a_nested_copy_is_written_and_needs_less() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let copy = folder.path().join("copy.gguf");
    let name = file.to_str().unwrap();
    let written = json(&nestctl(&["--json", "model", "nest", name, "--out"], &copy));
    assert_eq!(written["bytes"], copy.metadata().unwrap().len());
    let inspected = json(&nestctl(&["--json", "model", "inspect", "--tensors"], &copy));
    assert_eq!(inspected["sizes"].as_array().unwrap().len(), 2);
    let tensors = inspected["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|tensor| tensor["name"] == "blk.24.ffn_down_rest.weight"));
    assert!(tensors.iter().any(|tensor| tensor["kind"] == "Q4_0x16"));
    let advice = "a copy by `nestctl model nest` decodes faster";
    for (file, told) in [(&file, true), (&copy, false)] {
        let output = nestctl(&["model", "inspect"], file);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.contains(advice), told, "{text}");
    }
    let bench = ["--json", "bench", "--prompt-tokens", "8", "--max-tokens", "4", "--model"];
    assert!(json(&nestctl(&bench, &copy))["decode_tokens_per_s"].as_f64().unwrap() > 0.0);

    let output = nestctl(&["model", "nest", name, "--out"], &copy);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("--force"), "{output:?}");
    // In place, and then there is nothing left to do.
    assert!(nestctl(&["model", "nest", name, "--force", "--out"], &file).status.success());
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&copy).unwrap());
    let output = nestctl(&["model", "nest", name, "--force", "--out"], &copy);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("nested already"), "{output:?}");
    let output = nestctl(&["model", "nest", "/nowhere.gguf", "--out"], &copy);
    assert!(stderr(&output).starts_with("nestctl: /nowhere.gguf: "), "{output:?}");
}

#[test]
fn a_model_is_measured_and_its_sizes_alternate() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let bench = ["--json", "bench", "--repeat", "2", "--max-tokens", "9", "--prompt-tokens"];
    let more = ["130", "--threads", "1", "--model"];
    let measured = json(&nestctl(&[&bench[..], &more].concat(), &file));
    assert_eq!((&measured["sizes"][0], &measured["threads"]), (&"large".into(), &1.into()));
    assert_eq!(measured["runs"].as_array().unwrap().len(), 2);
    assert!(measured["switches"].is_null());
    for figure in [
        "load_ms",
        "ttft_ms",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "kv_bytes",
        "peak_rss_bytes",
        "read_per_token_bytes",
        "bandwidth_bytes_per_s",
        "bandwidth_share",
    ] {
        assert!(measured[figure].as_f64().unwrap() > 0.0, "{figure}: {measured}");
    }
    let resident = &measured["resident_bytes"];
    assert!(resident["layers"].as_u64().unwrap() > 5 << 20, "{resident}");
    let [p50, p99] = ["p50", "p99"].map(|p| measured["between_tokens_ms"][p].as_f64().unwrap());
    assert!(p50 <= p99);

    let output = nestctl(&[&bench[..], &["4", "--switch-every", "2", "--model"]].concat(), &file);
    let switches = &json(&output)["switches"];
    // The second to ninth token of each run: large, then two of each in turn.
    assert_eq!((&switches["every_tokens"], &switches["count"]), (&2.into(), &8.into()));
    assert_eq!(switches["sizes"][1]["size"], "small");

    // 10 layers have columns in a side file, which is made once.
    let side = folder.path().join("model.columns");
    let with = ["--max-tokens", "4", "--side-file", side.to_str().unwrap(), "--model"];
    let made = json(&nestctl(&[&["--json", "bench"][..], &with].concat(), &file));
    assert!(made["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
    let changed = side.metadata().unwrap().modified().unwrap();
    json(&nestctl(&[&["--json", "bench"][..], &with].concat(), &file));
    assert_eq!(side.metadata().unwrap().modified().unwrap(), changed);

    let output = nestctl(&["bench", "--size", "medium", "--model"], &file);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("large, small"), "{output:?}");
    let alone = ["bench", "--size", "small", "--switch-every", "1", "--model"];
    assert!(stderr(&nestctl(&alone, &file)).contains("--switch-to"));
}

#[test]
fn the_pages_for_shells_and_readers_have_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    assert!(nestctl(&["man", "--dir"], folder.path()).status.success());
    for page in [
        "nestctl-model.1",
        "nestctl-model-inspect.1",
        "nestctl-model-nest.1",
        "nestctl-model-synth.1",
        "nestctl-bench.1",
    ] {
        assert!(folder.path().join(page).is_file(), "{page}");
    }
    let output = nestctl(&["completions"], Path::new("bash"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("--switch-every"));
}
