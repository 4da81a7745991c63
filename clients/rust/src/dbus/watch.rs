//! Streams of reports over the bus: everything again on each `PropertiesChanged` of an interface, and at
//! intervals for what is not a property.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use nestd_proto::{
    dbus::PATH,
    v1::{GovernorReport, State, StatusReport},
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use zbus::{MatchRule, MessageStream, message::Type};

use super::{Dbus, GOVERNOR, MANAGER, convert, foreground, foreground::Newest, request::Owner};
use crate::{Error, GovernorReports, Reports};

/// How often to ask while a model loads, and otherwise: the counts of requests are not properties.
const WHILE_LOADING: Duration = Duration::from_millis(100);
const OTHERWISE: Duration = Duration::from_secs(1);

/// What is asked for, again and again.
trait Report: Clone + PartialEq + Send + Sync + Sized + 'static {
    const INTERFACE: &str;

    fn get(dbus: &Dbus) -> impl Future<Output = Result<Self, Error>> + Send;

    /// When to ask though nothing was told.
    fn pause(&self) -> Option<Duration>;

    /// The daemon's state, where the report has it.
    fn state(&self) -> Option<i32>;
}

impl Report for StatusReport {
    const INTERFACE: &str = MANAGER;

    async fn get(dbus: &Dbus) -> Result<Self, Error> {
        dbus.status().await
    }

    fn pause(&self) -> Option<Duration> {
        Some(if self.state() == State::Loading { WHILE_LOADING } else { OTHERWISE })
    }

    fn state(&self) -> Option<i32> {
        Some(self.state)
    }
}

impl Report for GovernorReport {
    const INTERFACE: &str = GOVERNOR;

    async fn get(dbus: &Dbus) -> Result<Self, Error> {
        dbus.governor().await
    }

    fn pause(&self) -> Option<Duration> {
        None
    }

    fn state(&self) -> Option<i32> {
        None
    }
}

impl Report for Newest {
    const INTERFACE: &str = MANAGER;

    async fn get(dbus: &Dbus) -> Result<Self, Error> {
        foreground::newest(dbus).await
    }

    fn pause(&self) -> Option<Duration> {
        None
    }

    fn state(&self) -> Option<i32> {
        None
    }
}

/// See [`crate::Client::watch_status`].
pub async fn status(dbus: Dbus) -> Result<Reports, Error> {
    reports(dbus).await
}

/// See [`crate::Client::watch_governor`].
pub async fn governor(dbus: Dbus) -> Result<GovernorReports, Error> {
    reports(dbus).await
}

/// The lease of the foreground that is in force, and again whenever another is.
pub async fn foreground(dbus: Dbus) -> Result<BoxStream<'static, Result<Newest, Error>>, Error> {
    reports(dbus).await
}

/// Subscribes, and reports from then on.
async fn reports<T: Report>(dbus: Dbus) -> Result<BoxStream<'static, Result<T, Error>>, Error> {
    let owner = Owner::watch(&dbus).await?;
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(owner.name.clone())
        .interface("org.freedesktop.DBus.Properties")
        .member("PropertiesChanged")
        .path(PATH)
        .arg(0, T::INTERFACE);
    let changes = MessageStream::for_match_rule(rule.build()?, &dbus.connection, None).await?;
    let report = T::get(&dbus).await?;
    // A reader that is slow sees the latest report, not each one.
    let (reports, receiver) = watch::channel(Ok(report));
    tokio::spawn(run(dbus, owner, changes, reports));
    Ok(WatchStream::new(receiver).boxed())
}

async fn run<T: Report>(
    dbus: Dbus,
    mut owner: Owner,
    mut changes: MessageStream,
    reports: watch::Sender<Result<T, Error>>,
) {
    loop {
        let (state, pause) = match &*reports.borrow() {
            Ok(report) => (report.state(), report.pause()),
            Err(_) => (None, None),
        };
        let gone = tokio::select! {
            biased;
            () = reports.closed() => return,
            change = changes.next() => !matches!(change, Some(Ok(_))),
            () = owner.gone() => true,
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => false,
        };
        let latest = if gone { Err(convert::gone(state)) } else { T::get(&dbus).await };
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
