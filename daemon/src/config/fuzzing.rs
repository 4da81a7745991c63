//! The settings, from a file and an environment of an administrator's.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use std::path::Path;

use super::{Config, DEFAULTS, Layers};

/// The administrator's file, and after a zero lines of `NAME=VALUE`.
pub(crate) fn run(folder: &Path, bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |byte| *byte == 0);
    let admin = folder.join("admin.toml");
    std::fs::write(&admin, halves.next().unwrap_or_default()).unwrap();
    let environment = String::from_utf8_lossy(halves.next().unwrap_or_default());
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let layers = Layers {
        vendor: folder.join("vendor.toml"),
        admin,
        admin_must_exist: true,
        environment: environment.lines().filter_map(variable).collect(),
    };
    match Config::load(&layers) {
        Ok(config) => {
            assert!(config.limits.default_max_tokens <= config.limits.max_tokens);
            assert_eq!(config.governor.policy.problems(), []);
            assert!(config.needs_restart(&config).is_empty());
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(!problem.what.is_empty(), "{problem}");
            }
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // As short as it says the same: comments are not what is to be changed.
    let keys = DEFAULTS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let all = keys.flat_map(|line| [line, "\n"]).collect::<String>();
    let few = "[model]\nsize = \"E2B\"\n[governor]\nprofile = \"headset\"\n[access]\nuse = [\"@apps\", \"cert:x\"]\n\
               [elastic]\ncores = \"0,2-3\"\n[tcp]\nlisten = \"[::1]:7878\"\ncertificate = \"/c\"\nkey = \"/k\"\n\
               client_ca = \"/a\"\n[metrics]\nlisten = \"127.0.0.1:9464\"\n\0NESTD_LIMITS__MAX_TOKENS=7\n\
               NESTD_ACCESS__OBSERVE=a, @b\nNESTD_GOVERNOR__BATTERY=none\n";
    vec![all.into(), few.into()]
}
