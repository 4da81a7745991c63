//! Why a command did not work: what the person reads, what a program reads (`--json`), and the exit
//! code. `main` reports it.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use nestd_client::{Error, v1::ErrorReason};
use serde_json::{Value, json};

use crate::{
    args::{Global, Transport},
    render,
};

/// Why a command did not work.
#[derive(Debug)]
pub enum Problem {
    /// The daemon refused or failed, or is not there.
    Client(Error),
    /// As `Client`, with what it was about: a place in a file.
    At(String, Error),
    /// The command line is wrong, or a file that it names.
    Usage(String),
    /// Reading or writing here failed.
    Io(String),
    /// A model's file is damaged, or no model that the engine runs.
    ModelFile(String),
    /// Nobody reads standard output any more: an end like any other.
    Closed,
    /// Ctrl-C.
    Interrupted,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Closed
        } else {
            Self::Io(format!("standard output cannot be written: {error}"))
        }
    }
}

impl Problem {
    /// Tells the person or the program, and gives the exit code.
    pub fn report(&self, global: &Global) -> ExitCode {
        let terminal = io::stderr().is_terminal();
        match self {
            // Leaves the line on which the terminal wrote ^C.
            Self::Interrupted if terminal => eprintln!(),
            Self::Closed | Self::Interrupted => {}
            _ if global.json => eprintln!("{}", json!({ "error": self.json(global) })),
            _ => {
                let message = self.message(global);
                let message = if terminal { render::clean(&message) } else { message };
                eprintln!("nestctl: {message}");
            }
        }
        ExitCode::from(self.code())
    }

    /// A sentence.
    pub fn message(&self, global: &Global) -> String {
        match self {
            Self::Client(error @ Error::Unreachable(_)) => match global.transport() {
                Transport::Grpc(_) => format!("{error}, or name its socket with --socket"),
                Transport::Tcp(..) => error.to_string(),
                Transport::Dbus(_) => format!("{error}, or name its bus with --bus"),
            },
            Self::Client(error) => error.to_string(),
            Self::At(place, error) => format!("{place}: {error}"),
            Self::Usage(text) | Self::Io(text) | Self::ModelFile(text) => text.clone(),
            Self::Closed => "standard output is closed".into(),
            Self::Interrupted => "interrupted".into(),
        }
    }

    /// The object that `--json` prints as `error`.
    pub fn json(&self, global: &Global) -> Value {
        let (reason, details) = match self {
            Self::Client(error) | Self::At(_, error) => match error {
                Error::Failed(failure) => (reason(error), json!(failure.details)),
                _ => (reason(error), json!({})),
            },
            Self::Usage(_) => ("USAGE", json!({})),
            Self::Io(_) | Self::Closed => ("IO", json!({})),
            Self::ModelFile(_) => ("MODEL_FILE", json!({})),
            Self::Interrupted => ("INTERRUPTED", json!({})),
        };
        json!({ "reason": reason, "message": self.message(global), "details": details })
    }

    /// The exit code, as `--help` lists them.
    fn code(&self) -> u8 {
        match self {
            Self::Client(error) | Self::At(_, error) => match error {
                Error::Failed(failure) => reason_code(failure.reason),
                Error::Unreachable(_) | Error::Disconnected(_) => 3,
                Error::Unexpected(_) => 1,
            },
            Self::Usage(_) => 2,
            Self::Io(_) | Self::ModelFile(_) => 1,
            Self::Closed => 0,
            Self::Interrupted => 130,
        }
    }
}

/// The word for a failure.
pub fn reason(error: &Error) -> &'static str {
    match error {
        Error::Failed(failure) => failure.reason.as_str_name(),
        Error::Unreachable(_) => "UNREACHABLE",
        Error::Disconnected(_) => "DISCONNECTED",
        Error::Unexpected(_) => "UNEXPECTED",
    }
}

fn reason_code(reason: ErrorReason) -> u8 {
    match reason {
        ErrorReason::Unspecified | ErrorReason::Lagged | ErrorReason::Internal => 1,
        ErrorReason::ShuttingDown => 3,
        ErrorReason::InvalidArgument
        | ErrorReason::Unsupported
        | ErrorReason::ContextTooLong
        | ErrorReason::ModelNotFound
        | ErrorReason::SessionNotFound => 4,
        ErrorReason::QueueFull | ErrorReason::Busy | ErrorReason::OverQuota => 5,
        ErrorReason::ModelNotLoaded
        | ErrorReason::ModelInvalid
        | ErrorReason::InsufficientMemory => 6,
        ErrorReason::NotAllowed => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nestd_client::Failure;

    use super::*;

    fn global() -> Global {
        Global { socket: Some("/s".into()), json: true, ..Global::default() }
    }

    #[test]
    fn a_failure_has_its_code_and_its_object() {
        let problem = Problem::Client(Error::Failed(Failure {
            reason: ErrorReason::QueueFull,
            message: "all taken".into(),
            details: BTreeMap::from([("limit".into(), "8".into())]),
            retry_after: None,
        }));
        assert_eq!(problem.code(), 5);
        assert_eq!(
            problem.json(&global()),
            json!({ "reason": "QUEUE_FULL", "message": "all taken", "details": { "limit": "8" } })
        );
        let gone = Problem::At("q.jsonl:3".into(), Error::Unreachable("no".into()));
        assert_eq!((gone.code(), gone.message(&global()).as_str()), (3, "q.jsonl:3: no"));
    }

    #[test]
    fn a_daemon_that_is_not_there_may_be_elsewhere() {
        let problem = Problem::Client(Error::Unreachable("start it".into()));
        assert_eq!(problem.message(&global()), "start it, or name its socket with --socket");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(Problem::from(io::Error::from(io::ErrorKind::BrokenPipe)).code(), 0);
    }
}
