//! `nestd`: reads the command line and the configuration, and runs the daemon.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nestd::config::{Config, Layers};
use nestd::systemd::tell_fatal;

/// Hosts Gemma 3n on this device and serves local programs over D-Bus and gRPC.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
The settings, all with comments, are in the shipped nestd.toml (--print-defaults writes it).
Layers, later wins: /usr/lib/nestd/nestd.toml, the file of --config, drop-ins *.toml in the folders
of those names with .d, environment variables such as NESTD_LIMITS__MAX_TOKENS=256.

Signals: SIGTERM and SIGINT stop, after running requests have ended (limits.drain_ms at most);
SIGHUP reads the settings again. Exit status: 0 stopped by a signal, 1 failed, 78 settings wrong.

Try it without a model: NESTD_SIM__ENABLED=true NESTD_MODEL__NAME=sim \\
  NESTD_GRPC__SOCKET=$XDG_RUNTIME_DIR/nestd.sock NESTD_METRICS__LISTEN= NESTD_DBUS__BUS=session \\
  NESTD_ACCESS__CONTROL=$USER nestd"
)]
struct Arguments {
    /// The administrator's settings [default: /etc/nestd/nestd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings, tell every problem, and exit.
    #[arg(long)]
    check_config: bool,
    /// Write the settings with their defaults and their documentation, and exit.
    #[arg(long)]
    print_defaults: bool,
}

/// `EX_CONFIG` of sysexits.h, which systemd shows as CONFIG.
const CONFIG_WRONG: u8 = 78;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.print_defaults {
        // A reader that has seen enough is no error.
        let _ = std::io::stdout().write_all(nestd::config::DEFAULTS.as_bytes());
        return ExitCode::SUCCESS;
    }
    let layers = Layers {
        vendor: "/usr/lib/nestd/nestd.toml".into(),
        admin_must_exist: arguments.config.is_some(),
        admin: arguments.config.unwrap_or_else(|| "/etc/nestd/nestd.toml".into()),
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
    };
    let config = match Config::load(&layers) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                tell_fatal(problem);
            }
            return ExitCode::from(CONFIG_WRONG);
        }
    };
    if arguments.check_config {
        println!("nestd: the settings are valid");
        return ExitCode::SUCCESS;
    }
    let result = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(nestd::app::run(config, layers)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell_fatal(error);
            ExitCode::FAILURE
        }
    }
}
