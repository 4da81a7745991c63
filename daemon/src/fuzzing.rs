//! What the fuzz targets in `fuzz/` run of the daemon: each takes bytes as a client, a file or the kernel may
//! send them to the decoders that meet them, and asserts what must hold for whatever is accepted. The bodies
//! are beside the decoders, in modules of this name; [`seeds`] are well-formed inputs to begin with, and the
//! tests run them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#![allow(clippy::missing_panics_doc, reason = "a panic is a find")]

use std::path::Path;

use crate::api::access::unit_of;
#[cfg(feature = "tcp")]
use crate::api::grpc::certificate_fuzzing;
use crate::{api, config, engine, governor, service};

/// A target with its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const TARGETS: &[Target] = &[
    ("grpc", grpc),
    #[cfg(feature = "tcp")]
    ("certificate", certificate),
    ("dbus", dbus),
    ("config", config),
    ("checkpoint", checkpoint),
    ("state", state),
    ("sensors", sensors),
];

/// A request over gRPC, its kind in front, and the status that it is refused with.
pub fn grpc(bytes: &[u8]) {
    api::grpc::fuzzing::run(bytes);
}

/// The certificate of a client on TCP.
#[cfg(feature = "tcp")]
pub fn certificate(bytes: &[u8]) {
    certificate_fuzzing::run(bytes);
}

/// A call over D-Bus, its kind in front, and the error that it is refused with.
pub fn dbus(bytes: &[u8]) {
    api::dbus::fuzzing::run(bytes);
}

/// The administrator's file, and after a zero an environment in lines.
pub fn config(bytes: &[u8]) {
    in_a_folder(|folder| config::fuzzing::run(folder, bytes));
}

/// A model's folder as Hugging Face has it.
pub fn checkpoint(bytes: &[u8]) {
    in_a_folder(|folder| engine::fuzzing::run(folder, bytes));
}

/// What the daemon itself has written: a session, a pin, the KV caches of a session. The kind is in front.
pub fn state(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else { return };
    in_a_folder(|folder| match kind % 3 {
        0 => service::fuzzing::run(folder, file),
        1 => governor::fuzzing::pin(folder, file),
        _ => engine::elastic::fuzzing::run(folder, file),
    });
}

/// Files of sysfs and procfs, for every sensor.
pub fn sensors(bytes: &[u8]) {
    in_a_folder(|folder| governor::fuzzing::sensors(folder, bytes));
    let groups = String::from_utf8_lossy(bytes);
    if let Some(unit) = unit_of(&groups) {
        assert!(!unit.contains(['/', '\n']), "{unit:?}");
    }
}

/// Well-formed inputs, each for the target of that name.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let of = |name, seeds: Vec<Vec<u8>>| seeds.into_iter().map(move |seed| (name, seed));
    let of_kind = |kind: u8, seeds: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
        seeds.into_iter().map(|seed| [vec![kind], seed].concat()).collect()
    };
    let mut all: Vec<_> = of("grpc", api::grpc::fuzzing::seeds()).collect();
    #[cfg(feature = "tcp")]
    all.extend(of("certificate", certificate_fuzzing::seeds()));
    all.extend(of("dbus", api::dbus::fuzzing::seeds()));
    all.extend(of("config", config::fuzzing::seeds()));
    all.extend(of("checkpoint", engine::fuzzing::seeds()));
    all.extend(of("state", of_kind(0, service::fuzzing::seeds())));
    all.extend(of("state", of_kind(1, vec![b"size = \"E2B\"\n".to_vec()])));
    all.extend(of("state", of_kind(2, vec![vec![0; 8], vec![0, 0, 1]])));
    all.extend(of("sensors", governor::fuzzing::seeds()));
    all
}

/// A folder of its own; `TMPDIR` says where.
fn in_a_folder(run: impl FnOnce(&Path)) {
    let name = format!("nestd-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    run(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_and_every_cut_of_it_is_taken_or_refused() {
        for (name, seed) in seeds() {
            let (_, run) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
            run(&seed);
            for len in (0..seed.len()).step_by(seed.len() / 16 + 1) {
                run(&seed[..len]);
            }
        }
        for (name, _) in TARGETS {
            assert!(seeds().iter().any(|(target, _)| target == name), "{name} has no seed");
        }
    }
}
