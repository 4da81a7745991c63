//! Another user, by whom `nestctl` is run.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Daemon;

/// A user other than the tests', with groups.
#[derive(Clone)]
pub struct User {
    /// Its number.
    pub uid: u32,
    gid: u32,
    groups: String,
    nestctl: PathBuf,
}

impl User {
    /// The user `nobody`. Only root can run programs as another user: else there is none, which is told.
    #[must_use]
    pub fn nobody(daemon: &Daemon) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: only root can run programs as another user");
            return None;
        }
        let user = nix::unistd::User::from_name("nobody").expect("a user database");
        let user = user.expect("the system has a user nobody");
        // Where the build lies, another user may not come.
        let nestctl = daemon.folder().join("nestctl");
        if !nestctl.exists() {
            std::fs::copy(crate::program("nestctl"), &nestctl).expect("the folder is writable");
        }
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        Some(Self { uid, gid, groups: String::new(), nestctl })
    }

    /// The same user with a supplementary group, as a unit's `SupplementaryGroups=` gives one.
    #[must_use]
    pub fn in_group(&self, group: &str) -> Self {
        Self { groups: group.into(), ..self.clone() }
    }

    /// `nestctl --json`, run by the user.
    #[must_use]
    pub fn nestctl(&self, daemon: &Daemon, arguments: &[&str]) -> Output {
        self.command(Command::new("setpriv"), daemon, arguments)
    }

    /// The same at a terminal, as if a person typed it. Both outputs come as one.
    #[must_use]
    pub fn types(&self, daemon: &Daemon, arguments: &[&str]) -> Output {
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--log-out", "/dev/null", "--command"]);
        terminal.arg(r#"eval "exec $TYPED""#);
        let typed = self.command(Command::new("echo"), daemon, arguments);
        let typed = String::from_utf8(typed.stdout).expect("arguments are text");
        terminal
            .env("TYPED", format!("setpriv {typed}"))
            .env("SHELL", "/bin/sh")
            .env("NESTCTL_BUS", daemon.bus_address())
            .stdin(Stdio::null())
            .output()
            .expect("script starts (Debian's package bsdutils)")
    }

    fn command(&self, mut command: Command, daemon: &Daemon, arguments: &[&str]) -> Output {
        command.arg(format!("--reuid={}", self.uid)).arg(format!("--regid={}", self.gid));
        match self.groups.as_str() {
            "" => command.arg("--clear-groups"),
            groups => command.arg("--groups").arg(groups),
        };
        command
            .arg(&self.nestctl)
            .arg("--json")
            .args(arguments)
            .env("NESTCTL_BUS", daemon.bus_address())
            .env("NESTCTL_SOCKET", daemon.socket())
            .stdin(Stdio::null());
        command.output().expect("it starts (setpriv is of Debian's package util-linux)")
    }

    /// That command works.
    pub fn may(&self, daemon: &Daemon, arguments: &[&str]) {
        let output = self.nestctl(daemon, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// That command is refused as not allowed; gives the sentence.
    #[must_use]
    pub fn may_not(&self, daemon: &Daemon, arguments: &[&str]) -> String {
        let output = self.nestctl(daemon, arguments);
        assert_eq!(output.status.code(), Some(7), "{arguments:?}: {output:?}");
        let told: Value = serde_json::from_slice(&output.stderr).expect("an object");
        let error = told.get("error").expect("an error");
        assert_eq!(error.get("reason").and_then(Value::as_str), Some("NOT_ALLOWED"), "{told}");
        error.get("message").and_then(Value::as_str).expect("a sentence").to_owned()
    }
}
