//! Which app is in the foreground, as the device's shell says by a lease: for the life of its connection, or until
//! it lets go. While a lease is in force, others' interactive requests are served as normal ones ([`served_as`]).
//! The newest is in force; when it ends, the newest of the others is.
//!
//! The service owns the leases, and the APIs take and keep them. The queue has a copy of the app, so that those
//! who wait are ranked anew at once. Nothing survives a restart.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::queue::Queue;
use crate::types::{Client, Error, Priority};

/// Leases of one client, and of all.
const OF_ONE: usize = 8;
const OF_ALL: usize = 64;
/// Bytes of a name, or of a reason.
const TEXT: usize = 256;

/// What is known of an app's requests; what is absent or empty may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    /// Its user.
    pub uid: Option<u32>,
    /// Its systemd unit: a label, good for who goes first and no more.
    pub unit: String,
    /// Its connection: [`Client::name`].
    pub connection: String,
    /// The name in its certificate.
    pub certificate: String,
}

impl App {
    /// Whether a client is the app.
    fn is(&self, client: &Client) -> bool {
        let same = |wanted: &str, known: &str| wanted.is_empty() || wanted == known;
        self.uid.is_none_or(|uid| client.uid == Some(uid))
            && same(&self.unit, &client.unit)
            && same(&self.connection, &client.name)
            && same(&self.certificate, client.certificate.as_deref().unwrap_or_default())
    }

    fn check(&self) -> Result<(), Error> {
        let Self { uid, unit, connection, certificate } = self;
        line("unit", unit)?;
        line("connection", connection)?;
        line("certificate", certificate)?;
        if uid.is_none() && [unit, connection, certificate].iter().all(|name| name.is_empty()) {
            let problem = "has none of uid, unit, connection and certificate";
            return Err(Error::invalid("app", problem));
        }
        Ok(())
    }
}

/// How urgent a client's request is, with this app in the foreground.
pub(super) fn served_as(foreground: Option<&App>, client: &Client, asked: Priority) -> Priority {
    match (asked, foreground) {
        (Priority::Interactive, Some(app)) if !app.is(client) => Priority::Normal,
        _ => asked,
    }
}

fn line(field: &str, text: &str) -> Result<(), Error> {
    if text.len() > TEXT || text.chars().any(char::is_control) {
        return Err(Error::invalid(field, format!("is not one line of at most {TEXT} bytes")));
    }
    Ok(())
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, unit, connection, certificate } = self;
        let uid = uid.map(|uid| uid.to_string()).unwrap_or_default();
        let known =
            [("uid", &uid), ("unit", unit), ("connection", connection), ("cert", certificate)];
        let mut gap = "";
        for (what, value) in known.into_iter().filter(|(_, value)| !value.is_empty()) {
            write!(f, "{gap}{what} {value}")?;
            gap = " ";
        }
        Ok(())
    }
}

/// A lease, for whoever looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Unique while the daemon runs.
    pub id: u64,
    /// Who holds it, for people.
    pub client: String,
    /// The app in the foreground.
    pub app: App,
    /// Why, for people.
    pub reason: String,
}

/// All leases.
pub struct Foreground {
    queue: Arc<Queue>,
    leases: Mutex<Leases>,
    /// The newest.
    in_force: watch::Sender<Option<Lease>>,
}

#[derive(Default)]
struct Leases {
    /// The oldest first.
    all: Vec<Lease>,
    /// How many there were.
    taken: u64,
}

impl Foreground {
    pub(super) fn new(queue: Arc<Queue>) -> Arc<Self> {
        Arc::new(Self { queue, leases: Mutex::default(), in_force: watch::Sender::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease in force.
    #[must_use]
    pub fn in_force(&self) -> Option<Lease> {
        self.in_force.borrow().clone()
    }

    /// Wakes whenever another lease is in force.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Lease>> {
        self.in_force.subscribe()
    }

    /// Has an app in the foreground, for as long as the lease is kept.
    pub fn hold(
        self: &Arc<Self>,
        client: &Client,
        app: App,
        reason: String,
    ) -> Result<Leased, Error> {
        app.check()?;
        line("reason", &reason)?;
        let client = client.to_string();
        let mut leases = self.lock();
        let own = leases.all.iter().filter(|lease| lease.client == client).count();
        let all = leases.all.len();
        if own >= OF_ONE || all >= OF_ALL {
            let why =
                format!("{own} leases of the foreground of this client and {all} in all are there");
            return Err(Error::Busy { why, retry_after_ms: 1000 });
        }
        leases.taken += 1;
        let id = leases.taken;
        tracing::info!(lease = id, client, %app, reason, "in the foreground");
        leases.all.push(Lease { id, client, app, reason });
        self.tell(&leases);
        Ok(Leased { foreground: Arc::clone(self), id })
    }

    fn release(&self, id: u64) {
        let mut leases = self.lock();
        leases.all.retain(|lease| lease.id != id);
        let now = leases.all.last().map(|lease| lease.app.to_string());
        tracing::info!(lease = id, now, "no longer in the foreground");
        self.tell(&leases);
    }

    /// Under the lock, so that the last one told is the newest.
    fn tell(&self, leases: &Leases) {
        let newest = leases.all.last();
        self.queue.set_foreground(newest.map(|lease| lease.app.clone()));
        self.in_force.send_if_modified(|told| {
            let changed = told.as_ref() != newest;
            *told = newest.cloned();
            changed
        });
    }
}

/// A lease that is held; dropping it ends it.
pub struct Leased {
    foreground: Arc<Foreground>,
    id: u64,
}

impl Leased {
    /// As in [`Lease`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.foreground.release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{Gate, Limits};
    use super::*;

    fn foreground() -> Arc<Foreground> {
        let (user_parallel, user_places) = (u32::MAX, u32::MAX);
        let limits =
            Limits { parallel: 1, places: 1, overtaking: true, user_parallel, user_places };
        Foreground::new(Queue::new(Gate::Open, limits))
    }

    fn of_unit(unit: &str) -> App {
        App { unit: unit.into(), ..App::default() }
    }

    #[test]
    fn a_client_is_the_app_when_all_that_is_given_is_so() {
        let client = Client {
            uid: Some(7),
            name: ":1.5".into(),
            unit: "a.service".into(),
            ..Client::default()
        };
        let tablet = Client { certificate: Some("tablet".into()), ..Client::default() };
        let of_user = |uid| App { uid: Some(uid), ..App::default() };
        let of_certificate = App { certificate: "tablet".into(), ..App::default() };
        for (app, it_is) in [
            (of_user(7), true),
            (of_user(8), false),
            (of_unit("a.service"), true),
            (of_unit("a"), false),
            (App { connection: ":1.5".into(), ..of_user(7) }, true),
            (App { connection: ":1.50".into(), ..of_user(7) }, false),
            (of_certificate.clone(), false),
        ] {
            assert_eq!(app.is(&client), it_is, "{app}");
        }
        assert!(of_certificate.is(&tablet));
        // Of whom no user is known, none is.
        assert!(!of_user(0).is(&tablet));
    }

    #[test]
    fn only_what_others_call_interactive_is_served_otherwise() {
        let app = App { uid: Some(7), ..App::default() };
        let (own, other) = (Client { uid: Some(7), ..Client::default() }, Client::default());
        for asked in Priority::ALL {
            assert_eq!(served_as(None, &other, asked), asked);
            assert_eq!(served_as(Some(&app), &own, asked), asked);
            assert_eq!(served_as(Some(&app), &other, asked), asked.max(Priority::Normal));
        }
    }

    #[test]
    fn the_newest_is_in_force() {
        let foreground = foreground();
        let hold =
            |unit| foreground.hold(&Client::default(), of_unit(unit), String::new()).unwrap();
        let now = || foreground.in_force().map(|lease| lease.app.unit).unwrap_or_default();
        let told = foreground.watch();
        let (first, second, third) = (hold("a"), hold("b"), hold("c"));
        assert_eq!((first.id(), second.id(), third.id(), now().as_str()), (1, 2, 3, "c"));
        drop(second);
        assert_eq!(now(), "c");
        drop(third);
        assert_eq!(now(), "a");
        let fourth = hold("d");
        assert_eq!((fourth.id(), now().as_str()), (4, "d"));
        drop((fourth, first));
        assert_eq!(foreground.in_force(), None);
        assert_eq!(*told.borrow(), None);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let foreground = foreground();
        let long = "x".repeat(TEXT + 1);
        for (app, reason, named) in [
            (App::default(), "", "app"),
            (of_unit(&long), "", "unit"),
            (of_unit("a\nb"), "", "unit"),
            (App { connection: long.clone(), ..App::default() }, "", "connection"),
            (App { certificate: "\0".into(), ..App::default() }, "", "certificate"),
            (of_unit("a"), &long, "reason"),
            (of_unit("a"), "two\nlines", "reason"),
        ] {
            let refused = foreground.hold(&Client::default(), app, reason.into()).err();
            let Some(Error::InvalidArgument { field, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!(field, named);
        }
        assert_eq!(foreground.in_force(), None);
    }

    #[test]
    fn leases_have_an_end_in_number() {
        let foreground = foreground();
        let hold = |number: usize| {
            let client = Client { name: format!(":1.{number}"), ..Client::default() };
            foreground.hold(&client, of_unit("a"), String::new())
        };
        let mut kept: Vec<_> = (0..OF_ONE).map(|_| hold(0).unwrap()).collect();
        assert!(matches!(hold(0), Err(Error::Busy { .. })));
        kept.extend((OF_ONE..OF_ALL).map(|number| hold(number).unwrap()));
        assert!(matches!(hold(OF_ALL), Err(Error::Busy { .. })));
        kept.pop();
        assert!(hold(OF_ALL).is_ok());
    }
}
