//! Where the log goes: to the journal when stderr is the journal already, and to stderr else. And what
//! of it: prompts and answers never above `trace`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::IsTerminal;

use nix::sys::stat::fstat;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// The filter. Prompts and answers are below `info` in what the libraries say (frames, messages, tokens),
/// and below `warn` in what mistral.rs says. So a level that stands alone goes down to them by that much, and
/// further only for nestd itself; a filter that names a library has its way.
fn quiet(filter: &str) -> Result<EnvFilter, ParseError> {
    let mut filters = vec!["mistralrs_core=warn".to_owned(), "mistralrs_quant=warn".to_owned()];
    let mut rest = Vec::new();
    for directive in filter.split(',') {
        match directive.trim().parse::<LevelFilter>() {
            Ok(level) if level > LevelFilter::INFO => {
                filters.push(format!("nestd={level}"));
                rest.push("info");
            }
            _ => rest.push(directive),
        }
    }
    // Later wins: a level for nestd by name, too.
    filters.extend(rest.into_iter().map(str::to_owned));
    EnvFilter::try_new(filters.join(","))
}

/// Has a panic tell where it was. What it says beside that may be a piece of a prompt.
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(at, thread = thread.name(), "a fault in nestd: panicked");
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref().copied());
        tracing::trace!(at, text, "panicked");
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            tracing::error!(%trace, "where it came from");
        }
    }));
}

/// Whether stderr is the stream that systemd connected to the journal: `JOURNAL_STREAM` is its device and
/// inode (systemd.exec(5)), and may have been inherited by a process whose stderr is something else.
fn stderr_is_journal() -> bool {
    let (Ok(stream), Ok(stderr)) = (std::env::var("JOURNAL_STREAM"), fstat(std::io::stderr()))
    else {
        return false;
    };
    stream == format!("{}:{}", stderr.st_dev, stderr.st_ino)
}

/// Tells what ends the daemon, for which there may be no log yet: on stderr, each line as an error where that
/// is the journal (sd-daemon(3)).
pub fn tell_fatal(problem: impl Display) {
    let priority = if stderr_is_journal() { "<3>" } else { "" };
    for line in format!("nestd: {problem}").lines() {
        eprintln!("{priority}{line}");
    }
}

/// syslog's priorities for tracing's levels; the layer's own would call every line a notice.
fn journald() -> std::io::Result<tracing_journald::Layer> {
    Ok(tracing_journald::layer()?.with_priority_mappings(PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }))
}

/// Changes the log filter of a running daemon.
pub struct Log(Handle<EnvFilter, Registry>);

impl Log {
    /// Starts it.
    pub fn start(filter: &str) -> std::io::Result<Self> {
        let filter = quiet(filter).map_err(std::io::Error::other)?;
        let (filter, handle) = reload::Layer::new(filter);
        let journal = if stderr_is_journal() { journald().ok() } else { None };
        let output = if let Some(journal) = journal {
            journal.boxed()
        } else {
            let colours = std::io::stderr().is_terminal();
            fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false).boxed()
        };
        tracing_subscriber::registry().with(filter).with(output).init();
        tell_panics();
        Ok(Self(handle))
    }

    /// Uses another filter from now on; a wrong one was refused with the configuration.
    pub fn set(&self, filter: &str) {
        if let Ok(filter) = quiet(filter)
            && let Err(error) = self.0.reload(filter)
        {
            tracing::warn!(%error, "the log filter stays as it was");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_alone_is_about_nestd_itself() {
        let filter = |text| {
            let text = quiet(text).unwrap().to_string();
            let mut all: Vec<_> = text.split(',').map(str::to_owned).collect();
            all.sort();
            all.join(",")
        };
        let engines = "mistralrs_core=warn,mistralrs_quant=warn";
        assert_eq!(filter("info"), format!("info,{engines}"));
        assert_eq!(filter("error"), format!("error,{engines}"));
        assert_eq!(filter("trace"), format!("info,{engines},nestd=trace"));
        assert_eq!(filter("debug,nestd=trace"), format!("info,{engines},nestd=trace"));
        assert_eq!(
            filter("nestd::api=off,trace"),
            format!("info,{engines},nestd::api=off,nestd=trace")
        );
        assert_eq!(filter("debug,h2=trace"), format!("h2=trace,info,{engines},nestd=debug"));
        assert_eq!(
            filter("warn,mistralrs_core=debug"),
            "mistralrs_core=debug,mistralrs_quant=warn,warn"
        );
        assert!(quiet("nestd=loud").is_err());
    }
}
