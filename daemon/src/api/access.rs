//! The one list of what each call needs, for both APIs, and the gate that asks the table of who has it.
//!
//! `grpc::gate` and `dbus::checked` stand before every call; what is in no row is refused as unknown.
//! `app` puts a new table in place on SIGHUP. docs/access.md has the same list; a test compares.

use std::sync::{Arc, PoisonError, RwLock};

use crate::types::{Class, Error, Table};

/// A call, by its names on both transports; empty where there is none.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) class: Class,
    /// What it does, for a refusal: "… is for …".
    pub(crate) what: &'static str,
    /// Package, service and method.
    pub(crate) grpc: &'static str,
    /// Interface, without `org.nestd.`, and member; `*` are all properties.
    pub(crate) dbus: &'static str,
    /// The polkit action that allows it on D-Bus to who has not the class.
    pub(crate) action: &'static str,
}

const fn call(class: Class, what: &'static str, grpc: &'static str, dbus: &'static str) -> Call {
    Call { class, what, grpc, dbus, action: "" }
}

const fn control(
    what: &'static str,
    grpc: &'static str,
    dbus: &'static str,
    action: &'static str,
) -> Call {
    Call { class: Class::Control, what, grpc, dbus, action }
}

/// Every call of both APIs. `Request1` is not here: a request is its caller's own.
pub(crate) const CALLS: [Call; 27] = {
    use Class::{Observe, Use};
    [
        call(Observe, "reading the status", "nestd.v1.Status/Get", "Manager1.GetStatus"),
        call(Observe, "watching the status", "nestd.v1.Status/Watch", "Manager1.*"),
        call(Observe, "listing requests", "nestd.v1.Status/ListRequests", "Manager1.ListRequests"),
        call(Observe, "listing models", "nestd.v1.Models/List", "Manager1.ListModels"),
        call(Observe, "reading the governor", "nestd.v1.Governor/Get", "Governor1.*"),
        call(Observe, "watching the governor", "nestd.v1.Governor/Watch", ""),
        call(Observe, "checking health", "grpc.health.v1.Health/Check", ""),
        call(Observe, "watching health", "grpc.health.v1.Health/Watch", ""),
        call(
            Observe,
            "reading the contract",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "",
        ),
        call(Use, "generating", "nestd.v1.Inference/Generate", "Manager1.Generate"),
        call(Use, "generating", "", "Manager1.GenerateToFd"),
        call(Use, "counting tokens", "nestd.v1.Inference/CountTokens", "Manager1.CountTokens"),
        call(Use, "making a session", "nestd.v1.Sessions/Create", "Manager1.CreateSession"),
        call(Use, "listing sessions", "nestd.v1.Sessions/List", "Manager1.ListSessions"),
        call(Use, "reading a session", "nestd.v1.Sessions/GetTranscript", "Session1.GetTranscript"),
        call(Use, "adding to a session", "nestd.v1.Sessions/Append", "Session1.Append"),
        call(Use, "forking a session", "nestd.v1.Sessions/Fork", "Session1.Fork"),
        call(Use, "prewarming a session", "nestd.v1.Sessions/Prewarm", "Session1.Prewarm"),
        call(Use, "ending a session", "nestd.v1.Sessions/Delete", "Session1.Delete"),
        call(Use, "reading a session's properties", "", "Session1.*"),
        call(Use, "holding a size", "nestd.v1.Governor/Hold", "Governor1.Hold"),
        call(Use, "releasing a hold", "", "Governor1.Release"),
        // It is the caller's own: who was let hold it needs no leave to let go.
        call(Use, "releasing the foreground", "", "Manager1.ReleaseForeground"),
        control("loading a model", "nestd.v1.Models/Load", "Manager1.LoadModel", LOAD_MODEL),
        control(
            "unloading the model",
            "nestd.v1.Models/Unload",
            "Manager1.UnloadModel",
            LOAD_MODEL,
        ),
        control("pinning a size", "nestd.v1.Governor/Pin", "Governor1.Pin", PIN_SIZE),
        control(
            "holding the foreground",
            "nestd.v1.Status/HoldForeground",
            "Manager1.HoldForeground",
            HOLD_FOREGROUND,
        ),
    ]
};

const LOAD_MODEL: &str = "org.nestd.load-model";
const PIN_SIZE: &str = "org.nestd.pin-size";
const HOLD_FOREGROUND: &str = "org.nestd.hold-foreground";

/// Asks the table that is in force.
#[derive(Default)]
pub struct Gate(RwLock<Arc<Table>>);

impl Gate {
    /// Lets in whom the table lets in.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self(RwLock::new(Arc::new(table)))
    }

    /// Puts another table in force, for calls that begin from now on.
    pub fn configure(&self, table: Table) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// The table in force.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Call {
    /// Whether it makes a request, which the metrics count when it is refused, too.
    pub(crate) fn is_request(&self) -> bool {
        ["nestd.v1.Inference/Generate", "nestd.v1.Sessions/Prewarm"].contains(&self.grpc)
            || self.dbus == "Manager1.GenerateToFd"
    }

    /// What a client is told that has not the class; `more` is another reason, or nothing.
    pub(crate) fn refusal(&self, table: &Table, more: &str) -> Error {
        let what = format!("{} is for {} in nestd's settings", self.what, table.who(self.class));
        Error::NotAllowed {
            what: if more.is_empty() { what } else { format!("{what}, and {more}") },
        }
    }
}

/// The label of the unit that a process is in: the last `.service` or `.scope` of its control group.
pub(crate) fn unit(pid: Option<u32>) -> String {
    let groups = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    groups.as_deref().and_then(unit_of).unwrap_or_default().to_owned()
}

/// `groups` is the text of a `/proc/PID/cgroup`. A unit's name has no control characters, but a control
/// group's may.
pub(crate) fn unit_of(groups: &str) -> Option<&str> {
    let is_unit = |name: &&str| {
        let named = name.strip_suffix(".service").or_else(|| name.strip_suffix(".scope"));
        named.is_some_and(|stem| !stem.is_empty()) && !name.contains(char::is_control)
    };
    // Version 2 first: `0::/path`. Version 1's hierarchy of systemd is called `name=systemd`.
    let path = |marker: &str| {
        let line = groups.lines().find(|line| line.contains(marker))?;
        line.splitn(3, ':').nth(2)?.rsplit('/').find(is_unit)
    };
    path("0::").or_else(|| path(":name=systemd:"))
}

#[cfg(test)]
mod tests {
    use nestd_proto::{dbus, v1};
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_unit_is_the_last_service_or_scope() {
        let unit = |groups| unit_of(groups).unwrap_or_default();
        assert_eq!(unit("0::/system.slice/captions.service\n"), "captions.service");
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope/inner\n";
        assert_eq!(unit(user), "app-x.scope");
        assert_eq!(unit("4:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n"), "a.service");
        for none in ["", "0::/\n", "0::/x/.service\n", "nonsense", "0::/a\u{7}.service", "0:"] {
            assert_eq!(unit(none), "", "{none:?}");
        }
    }

    /// Who adds a method to a contract says its class here, and who adds one here says it there.
    #[test]
    fn every_call_of_both_contracts_has_a_class() {
        let set = FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    methods.push(name);
                }
            }
        }
        assert!(methods.len() > 8, "{methods:?}");
        for method in &methods {
            assert!(CALLS.iter().any(|call| call.grpc == method), "{method} has no class");
        }
        for call in CALLS.iter().filter(|call| call.grpc.starts_with("nestd.")) {
            assert!(methods.iter().any(|method| method == call.grpc), "{} is nowhere", call.grpc);
        }

        let contracts = [
            ("Manager1", dbus::MANAGER_XML),
            ("Governor1", dbus::GOVERNOR_XML),
            ("Session1", dbus::SESSION_XML),
        ];
        let mut members = Vec::new();
        for (interface, xml) in contracts {
            members.push(format!("{interface}.*"));
            for method in xml.split("<method name=\"").skip(1) {
                members.push(format!("{interface}.{}", method.split('"').next().unwrap()));
            }
        }
        assert!(members.len() > 8, "{members:?}");
        for member in &members {
            assert!(CALLS.iter().any(|call| call.dbus == member), "{member} has no class");
        }
        for call in CALLS.iter().filter(|call| !call.dbus.is_empty()) {
            assert!(members.iter().any(|member| member == call.dbus), "{} is nowhere", call.dbus);
        }
    }

    #[test]
    fn polkit_knows_the_actions_of_what_controls() {
        let policy = include_str!("../../../systemd/org.nestd.policy");
        for call in CALLS.iter().filter(|call| !call.dbus.is_empty()) {
            assert_eq!(call.class == Class::Control, !call.action.is_empty(), "{call:?}");
            let action = format!("<action id=\"{}\">", call.action);
            assert!(call.action.is_empty() || policy.contains(&action), "{action}");
        }
    }

    /// docs/access.md has a row `| class | gRPC | D-Bus |` for each call, and no other.
    #[test]
    fn the_list_in_the_docs_is_this_one() {
        let docs = include_str!("../../../docs/access.md");
        let name = |name: &str| match name {
            "" => String::new(),
            name => format!("`{name}`"),
        };
        for call in &CALLS {
            let row =
                format!("| {} | {} | {} |", call.class.name(), name(call.grpc), name(call.dbus));
            let row = row.replace("|  |", "| |");
            assert!(docs.lines().any(|line| line == row), "docs/access.md lacks\n{row}");
        }
        let (_, docs) = docs.split_once("## Every call").unwrap();
        let rows = docs.lines().filter(|line| {
            Class::ALL.iter().any(|class| line.starts_with(&format!("| {} | ", class.name())))
        });
        assert_eq!(rows.count(), CALLS.len());
    }
}
