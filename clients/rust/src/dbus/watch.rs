//! The stream of status reports over the bus: `GetStatus` again on each `PropertiesChanged`, and at
//! intervals for what is not a property. `Dbus::watch_status` starts it.

use std::time::Duration;

use futures::StreamExt;
use nestd_proto::{
    dbus::PATH,
    v1::{State, StatusReport},
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use zbus::{MatchRule, MessageStream, message::Type};

use super::{Dbus, MANAGER, convert, request::Owner};
use crate::{Error, Reports};

/// How often to ask while a model loads, and otherwise: the counts of requests are not properties.
const WHILE_LOADING: Duration = Duration::from_millis(100);
const OTHERWISE: Duration = Duration::from_secs(1);

/// Subscribes, and reports from then on.
pub async fn status(dbus: Dbus) -> Result<Reports, Error> {
    let owner = Owner::watch(&dbus).await?;
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(owner.name.clone())
        .interface("org.freedesktop.DBus.Properties")
        .member("PropertiesChanged")
        .path(PATH)
        .arg(0, MANAGER);
    let changes = MessageStream::for_match_rule(rule.build()?, &dbus.connection, None).await?;
    let report = dbus.status().await?;
    // A reader that is slow sees the latest report, not each one.
    let (reports, receiver) = watch::channel(Ok(report));
    tokio::spawn(run(dbus, owner, changes, reports));
    Ok(WatchStream::new(receiver).boxed())
}

async fn run(
    dbus: Dbus,
    mut owner: Owner,
    mut changes: MessageStream,
    reports: watch::Sender<Result<StatusReport, Error>>,
) {
    loop {
        let state = reports.borrow().as_ref().ok().map(|report| report.state);
        let pause = if state == Some(State::Loading.into()) { WHILE_LOADING } else { OTHERWISE };
        let gone = tokio::select! {
            biased;
            () = reports.closed() => return,
            change = changes.next() => !matches!(change, Some(Ok(_))),
            () = owner.gone() => true,
            () = tokio::time::sleep(pause) => false,
        };
        let latest = if gone { Err(convert::gone(state)) } else { dbus.status().await };
        let latest = match latest {
            // The call crossed with the daemon's end.
            Err(Error::Disconnected(_) | Error::Unreachable(_)) => Err(convert::gone(state)),
            latest => latest,
        };
        let failed = latest.is_err();
        reports.send_if_modified(|last| {
            let differs = *last != latest;
            *last = latest;
            differs
        });
        if failed {
            return;
        }
    }
}
