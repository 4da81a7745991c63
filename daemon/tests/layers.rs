//! Imports point inward: the table in src/lib.rs, checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those of the crate that it may name.
const KNOWS: [(&str, &[&str]); 11] = [
    ("types", &[]),
    ("metrics", &["types"]),
    ("stream", &["types", "metrics"]),
    ("engine", &["types", "stream"]),
    ("service", &["types", "metrics", "stream", "engine"]),
    ("governor", &["types", "stream", "service"]),
    ("api", &["types", "metrics", "stream", "service", "governor"]),
    ("config", &["types", "engine", "governor"]),
    ("systemd", &[]),
    ("fuzzing", &["api", "config", "engine", "governor", "service"]),
    ("app", &["api", "config", "engine", "governor", "service", "stream", "systemd", "types"]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

fn module(path: &Path) -> String {
    let relative = path.strip_prefix(source()).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_point_inward() {
    let mut all = Vec::new();
    files(&source(), &mut all);
    assert!(all.len() > 20, "{all:?}");
    for file in all {
        let module = module(&file);
        if module == "lib" || module == "main" {
            continue;
        }
        let (_, knows) =
            KNOWS.iter().find(|(name, _)| *name == module).expect("a module in the map");
        let text = fs::read_to_string(&file).unwrap();
        for (index, line) in text.lines().enumerate() {
            for named in line.split("crate::").skip(1) {
                let named: String =
                    named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_module = KNOWS.iter().any(|(name, _)| *name == named);
                assert!(
                    !is_module || named == module || knows.contains(&named.as_str()),
                    "{}:{}: {module} names crate::{named}",
                    file.display(),
                    index + 1
                );
            }
        }
    }
}

#[test]
fn one_place_names_mistralrs() {
    let mut all = Vec::new();
    files(&source(), &mut all);
    for file in all {
        let text = fs::read_to_string(&file).unwrap();
        let names = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("::mistralrs::") || code.trim_start().starts_with("use mistralrs")
        });
        let inside = file.strip_prefix(source()).unwrap().starts_with("engine/mistralrs");
        assert!(!names || inside, "{} names mistralrs", file.display());
    }
}

/// Yocto whinlatter has Rust 1.90. The resolver prefers such versions; this sees that it found them.
#[test]
fn no_dependency_wants_a_newer_rust() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let newer: Vec<_> = packages
        .iter()
        .filter(|package| {
            let mut parts = package["rust_version"].as_str().unwrap_or("1").split('.');
            let mut part = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0_u32);
            (part(), part()) > (1, 90)
        })
        .map(|package| package["id"].to_string())
        .collect();
    assert!(newer.is_empty(), "{newer:?}");
}
