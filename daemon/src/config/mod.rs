//! The daemon's settings: layered, strict, and every error told at once.
//!
//! `systemd/nestd.toml` is the reference: it documents every key, and it is the first layer.
//! `app` loads the settings at start and again on SIGHUP.

mod access;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod layers;
mod metrics;
mod quotas;
mod reader;
mod sessions;
mod tcp;
mod values;

use std::fmt;
use std::path::PathBuf;

use nestd_elastic::pool::Settings as PoolSettings;
use nestd_policy::settings::Settings as Policy;

use crate::engine::elastic::SpillSettings;
use crate::engine::{Isq, SimSettings, elastic};
use crate::governor::sensors::battery;
use crate::types::{Access, EngineKind, Limits, Quotas, SessionSettings};
use reader::Reader;
use values::{battery_source, bus, cores, engine, isq, log_level, mode, names, store};

pub use layers::Layers;
pub use metrics::Listen;
pub use tcp::Tcp;

/// The shipped file, which holds every key with its default.
pub const DEFAULTS: &str = include_str!("../../../systemd/nestd.toml");

/// Text that one message may have to carry, in bytes: with three for each, as D-Bus needs where the text is
/// bad, it stays below the 32 MiB at which the system bus cuts off who sends more.
const MOST_TEXT: u32 = 8 << 20;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[model]`
    pub model: Model,
    /// `[grpc]`
    pub grpc: Grpc,
    /// `[tcp]`; none: not on TCP.
    pub tcp: Option<Tcp>,
    /// `[dbus] bus`
    pub bus: Bus,
    /// `[metrics] listen`
    pub metrics: Listen,
    /// `[access]`, who may do what.
    pub access: Access,
    /// `[limits]`, what a request may ask for.
    pub limits: Limits,
    /// `[quotas]`, what one user may have of it.
    pub quotas: Quotas,
    /// `[limits] buffer_bytes`
    pub buffer_bytes: usize,
    /// `[limits] drain_ms`
    pub drain_ms: u64,
    /// `[log] level`
    pub log_level: String,
    /// `[sim] enabled`
    pub sim_enabled: bool,
    /// `[elastic]`
    pub elastic: elastic::Settings,
    /// The rest of `[sim]`
    pub sim: SimSettings,
    /// `[governor]`
    pub governor: Governor,
    /// `[sessions]`
    pub sessions: SessionSettings,
}

/// `[governor]`
#[derive(Clone, Debug, PartialEq)]
pub struct Governor {
    /// Whether sizes follow the device's state.
    pub enabled: bool,
    /// Which shipped thresholds the others below start from.
    pub profile: String,
    /// The thresholds.
    pub policy: Policy,
    /// Where the pin is kept.
    pub state_file: PathBuf,
    /// Where batteries are read.
    pub battery: battery::Source,
    /// The temperature sensors that count, by their labels; empty: all.
    pub temperature_sensors: Vec<String>,
    /// How often sensors are read that do not tell by themselves.
    pub poll_s: f64,
    /// The root of procfs.
    pub proc: PathBuf,
    /// The root of sysfs.
    pub sys: PathBuf,
    /// A recorded trace in place of the sensors; empty: the sensors.
    pub replay: String,
    /// Seconds of the recording in a second.
    pub replay_speed: f64,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The folder of models.
    pub dir: PathBuf,
    /// Files that are made from a model.
    pub cache_dir: PathBuf,
    /// The model to load at start; empty: the only one, or none.
    pub name: String,
    /// The size to load; empty: the largest.
    pub size: String,
    /// The engine for models that more than one could run; None is mistral.rs where it was built in.
    pub engine: Option<EngineKind>,
    /// In-situ quantization.
    pub isq: Isq,
    /// 0: what the model was made for.
    pub context_tokens: u32,
    /// 0: what there is.
    pub memory_mib: u64,
}

/// `[grpc]`
#[derive(Clone, Debug, PartialEq)]
pub struct Grpc {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Its permission bits.
    pub socket_mode: u32,
    /// Its group; empty: the daemon's own.
    pub socket_group: String,
    /// How often a silent client is asked whether it is still there; 0: never. On TCP, too.
    pub keepalive_s: f64,
    /// Connections at once, those on TCP included.
    pub connections: u32,
    /// Those of one user.
    pub connections_per_user: u32,
}

/// Which bus to be on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// The system bus.
    System,
    /// The session bus.
    Session,
    /// The bus at this address.
    Address(String),
    /// None: no D-Bus API.
    #[default]
    Off,
}

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or variable.
    pub origin: String,
    /// The key and what is wrong.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.what)
    }
}

impl Config {
    /// Reads all layers. The error is the whole list of what is wrong.
    pub fn load(layers: &Layers) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let merged = layers.merge(&mut problems);
        let mut read = Reader::new(merged, problems);
        let config = Self {
            sessions: sessions::read(&mut read),
            governor: Governor {
                enabled: read.bool("governor.enabled"),
                profile: read.string("governor.profile"),
                policy: Policy::read(&mut read),
                state_file: read.path("governor.state_file"),
                battery: read.parsed("governor.battery", battery_source),
                temperature_sensors: read.parsed("governor.temperature_sensors", names),
                poll_s: read.f64("governor.poll_s", 0.1..=3600.0),
                proc: read.path("governor.proc"),
                sys: read.path("governor.sys"),
                replay: read.string("governor.replay"),
                replay_speed: read.f64("governor.replay_speed", 0.01..=1e6),
            },
            model: Model {
                dir: read.path("model.dir"),
                cache_dir: read.path("model.cache_dir"),
                name: read.string("model.name"),
                size: read.string("model.size"),
                engine: read.parsed("model.engine", engine),
                isq: read.parsed("model.isq", isq),
                context_tokens: read.u32("model.context_tokens", 0..=131_072),
                memory_mib: read.u64("model.memory_mib", 0..=1 << 24),
            },
            grpc: Grpc {
                socket: read.path("grpc.socket"),
                socket_mode: read.parsed("grpc.socket_mode", mode),
                socket_group: read.string("grpc.socket_group"),
                keepalive_s: read.f64("grpc.keepalive_s", 0.0..=86_400.0),
                connections: read.u32("grpc.connections", 1..=65_536),
                connections_per_user: read.u32("grpc.connections_per_user", 1..=65_536),
            },
            tcp: tcp::read(&mut read),
            bus: read.parsed("dbus.bus", bus),
            metrics: read.parsed("metrics.listen", metrics::listen),
            access: access::read(&mut read),
            limits: Limits {
                parallel_requests: read.u32("limits.parallel_requests", 1..=64),
                queued_requests: read.u32("limits.queued_requests", 0..=4096),
                max_tokens: read.u32("limits.max_tokens", 1..=131_072),
                default_max_tokens: read.u32("limits.default_max_tokens", 1..=131_072),
                prompt_bytes: read.u32("limits.prompt_bytes", 1..=MOST_TEXT),
            },
            quotas: quotas::read(&mut read),
            buffer_bytes: read.u32("limits.buffer_bytes", 1024..=MOST_TEXT) as usize,
            drain_ms: read.u64("limits.drain_ms", 0..=3_600_000),
            log_level: read.parsed("log.level", log_level),
            elastic: elastic::Settings {
                pool: PoolSettings {
                    threads: read.u32("elastic.threads", 0..=256) as usize,
                    cores: read.parsed("elastic.cores", cores),
                    nice: read.u32("elastic.nice", 0..=19).cast_signed(),
                },
                store: read.parsed("elastic.kv", store),
                side_file: read.bool("elastic.side_file"),
                prefix_cache_mib: read.u64("elastic.prefix_cache_mib", 0..=1 << 20),
                spill: SpillSettings {
                    dir: read.path("elastic.spill_dir"),
                    mib: read.u64("elastic.spill_mib", 0..=1 << 20),
                },
            },
            sim_enabled: read.bool("sim.enabled"),
            sim: SimSettings {
                load_ms: read.u64("sim.load_ms", 0..=600_000),
                tokens_per_s: read.f64("sim.tokens_per_s", 0.01..=1e6),
                prefill_tokens_per_s: read.f64("sim.prefill_tokens_per_s", 0.01..=1e6),
                elastic: read.bool("sim.elastic"),
            },
        };
        if read.is_fine() && config.limits.default_max_tokens > config.limits.max_tokens {
            read.wrong("limits.default_max_tokens", "is above limits.max_tokens");
        }
        if read.is_fine() {
            for (key, what) in config.governor.policy.problems() {
                read.wrong(&format!("governor.{key}"), what);
            }
        }
        let problems = read.finish();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// The keys that differ from `new` and that a reload cannot apply.
    #[must_use]
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let mut keys = Vec::new();
        if self.grpc != new.grpc {
            keys.push("grpc");
        }
        if self.tcp != new.tcp {
            keys.push("tcp");
        }
        if self.bus != new.bus {
            keys.push("dbus.bus");
        }
        if self.sessions.dir != new.sessions.dir {
            keys.push("sessions.dir");
        }
        if self.metrics != new.metrics {
            keys.push("metrics.listen");
        }
        let sensors = |config: &Self| {
            let Governor {
                battery,
                temperature_sensors,
                poll_s,
                proc,
                sys,
                replay,
                replay_speed,
                ..
            } = config.governor.clone();
            (battery, temperature_sensors, poll_s, proc, sys, replay, replay_speed)
        };
        if sensors(self) != sensors(new) {
            keys.push("governor (its sensors)");
        }
        if self.governor.state_file != new.governor.state_file {
            keys.push("governor.state_file");
        }
        if new.governor.enabled && !self.governor.enabled {
            keys.push("governor.enabled");
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use config::Map;

    use super::*;

    fn layers(dir: &Path) -> Layers {
        Layers {
            vendor: dir.join("vendor.toml"),
            admin: dir.join("admin.toml"),
            admin_must_exist: false,
            environment: Map::new(),
        }
    }

    #[test]
    fn the_shipped_file_is_valid_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::load(&layers(dir.path())).unwrap();
        assert_eq!(config.grpc.socket, Path::new("/run/nestd/nestd.sock"));
        assert_eq!(config.grpc.socket_mode, 0o660);
        assert_eq!(config.model.isq, Isq::Q4k);
    }

    #[test]
    fn later_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("vendor.toml", "[limits]\nmax_tokens = 1000\nqueued_requests = 1\n");
        write("admin.toml", "[limits]\nmax_tokens = 1001\ndrain_ms = 1\n");
        write("vendor.toml.d/20-a.toml", "[model]\nname = \"masked\"\nsize = \"masked\"\n");
        write("admin.toml.d/20-a.toml", "[model]\nname = \"from-20\"\n");
        write("admin.toml.d/10-b.toml", "[model]\nname = \"from-10\"\n");
        write("admin.toml.d/readme.txt", "not read");
        let mut layers = layers(dir.path());
        layers.environment.insert("NESTD_LIMITS__DRAIN_MS".into(), "2".into());
        layers.environment.insert("PATH".into(), "/bin".into());
        let config = Config::load(&layers).unwrap();
        assert_eq!(config.limits.max_tokens, 1001);
        assert_eq!(config.limits.queued_requests, 1);
        assert_eq!(config.drain_ms, 2);
        assert_eq!((config.model.name.as_str(), config.model.size.as_str()), ("from-20", ""));
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let named = Layers { admin_must_exist: true, ..layers(dir.path()) };
        let problems = Config::load(&named).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].origin.ends_with("admin.toml"), "{problems:?}");
    }

    #[test]
    fn all_errors_are_told_with_key_and_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("vendor.toml"),
            "[limits]\nparallel_requests = 0\nmax_tokens = \"many\"\nmax_token = 5\n[grcp]\nsocket = 1\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("admin.toml"), "[limits\n").unwrap();
        let mut layers = layers(dir.path());
        layers.environment.insert("NESTD_DBUS__BUS".into(), "nowhere".into());
        layers.environment.insert("NESTD_MODEL__ISQ".into(), "q3k".into());
        let problems = Config::load(&layers).unwrap_err();
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let has = |words: &[&str]| {
            assert!(
                told.iter().any(|line| words.iter().all(|word| line.contains(word))),
                "{words:?} in {told:#?}"
            );
        };
        has(&["vendor.toml", "limits.parallel_requests", "0 is not within 1 and 64"]);
        has(&["vendor.toml", "limits.max_tokens"]);
        has(&["vendor.toml", "limits.max_token:", "unknown key", "limits.max_tokens"]);
        has(&["vendor.toml", "grcp"]);
        has(&["admin.toml"]);
        has(&["environment", "dbus.bus"]);
        has(&["environment", "model.isq"]);
        assert_eq!(problems.len(), 7, "{told:#?}");
    }
}
