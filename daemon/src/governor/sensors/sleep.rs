//! Whether the device is about to sleep: logind's word, with a lock that makes it wait for us.
//!
//! The governor's task owns it, and with it the lock, of the kind that delays. While a sleep is
//! coming the rest of the daemon ends or parks its answers, then says so by the [`Release`], and the
//! lock is let go; logind itself does not wait longer than its own delay. After the sleep the lock
//! is taken again. Without logind the device never sleeps, as far as anybody knows here.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, OwnedFd, OwnedVariant};

use super::Reading;
use super::bus::{Event, Signals, call};

const NAME: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
/// logind's default, where it does not say how long it waits.
const DELAY: Duration = Duration::from_secs(5);
/// It would not be believed that it waits longer.
const LONGEST: Duration = Duration::from_secs(60);

/// By which the rest of the daemon says that the device may sleep. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Release(Arc<Notify>);

impl Release {
    /// Lets go of the lock, if a sleep is coming. Called after `Snapshot::sleeping` was seen.
    pub fn ready(&self) {
        self.0.notify_one();
    }
}

/// The sensor.
pub struct Sensor {
    bus: Connection,
    release: Release,
    /// Whether it has spoken.
    begun: bool,
    signals: Option<Signals>,
    /// Who is logind; None: there is none.
    owner: Option<String>,
    /// A lock is to be taken.
    wanted: bool,
    lock: Option<OwnedFd>,
    /// How long logind waits for it.
    delay: Duration,
    /// A sleep is coming, and logind waits until then.
    coming: Option<Instant>,
}

impl Sensor {
    /// On this bus.
    #[must_use]
    pub fn new(bus: &Connection, release: Release) -> Self {
        Self {
            bus: bus.clone(),
            release,
            begun: false,
            signals: None,
            owner: None,
            wanted: false,
            lock: None,
            delay: DELAY,
            coming: None,
        }
    }

    async fn listen(&mut self) -> zbus::Result<()> {
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(NAME)
            .path(PATH)
            .interface(MANAGER)
            .member("PrepareForSleep")
            .build()?;
        let signals = Signals::listen(&self.bus, NAME, rule).await?;
        let bus = "org.freedesktop.DBus";
        let owner = call(&self.bus, bus, "/org/freedesktop/DBus", (bus, "GetNameOwner"), &(NAME,));
        // An error: nobody has the name.
        self.owner = owner.await.ok().and_then(|reply| reply.body().deserialize().ok());
        self.wanted = self.owner.is_some();
        self.signals = Some(signals);
        Ok(())
    }

    async fn inhibit(&self) -> zbus::Result<OwnedFd> {
        let why = ("sleep", "Nestd", "ends or parks the running answers", "delay");
        let reply = call(&self.bus, NAME, PATH, (MANAGER, "Inhibit"), &why).await?;
        reply.body().deserialize()
    }

    /// How long logind waits for locks.
    async fn delay(&self) -> zbus::Result<Duration> {
        let method = ("org.freedesktop.DBus.Properties", "Get");
        let reply = call(&self.bus, NAME, PATH, method, &(MANAGER, "InhibitDelayMaxUSec")).await?;
        let value: OwnedVariant = reply.body().deserialize()?;
        Ok(Duration::from_micros(u64::try_from(&value)?).min(LONGEST))
    }

    /// Takes the lock. Without one the device may sleep in the middle of an answer; that is logged.
    async fn take(&mut self) {
        match self.inhibit().await {
            Ok(lock) => {
                self.lock = Some(lock);
                self.delay = self.delay().await.unwrap_or(DELAY);
            }
            Err(error) => tracing::warn!(%error, "no lock against sleep"),
        }
        self.wanted = false;
    }

    /// What a signal says; None: nothing new, or not logind's word.
    fn heard(&mut self, signal: &Message) -> Option<Reading> {
        let sender = signal.header().sender().map(ToString::to_string);
        if sender.is_none() || sender != self.owner {
            return None;
        }
        let coming: bool = signal.body().deserialize().ok()?;
        if coming == self.coming.is_some() {
            return None;
        }
        if coming {
            // A word that was too late for the last sleep does not count for this one.
            let _ = self.release.0.notified().now_or_never();
            self.coming = Some(Instant::now() + self.delay);
        } else {
            self.coming = None;
            self.wanted = true;
        }
        Some(Reading::Sleeping(coming))
    }

    async fn follow(&mut self) -> Option<Reading> {
        if self.signals.is_none() {
            self.listen().await.ok()?;
        }
        loop {
            if self.wanted {
                self.take().await;
            }
            let signals = self.signals.as_mut()?;
            let event = tokio::select! {
                event = signals.next() => event?,
                () = let_go(&self.release, self.coming), if self.lock.is_some() => {
                    self.lock = None;
                    continue;
                }
            };
            match event {
                Event::Came(owner) => {
                    self.owner = Some(owner);
                    self.wanted = true;
                }
                Event::Left => self.owner = None,
                Event::Signal(signal) => {
                    if let Some(reading) = self.heard(&signal) {
                        return Some(reading);
                    }
                    continue;
                }
            }
            // Another logind, or none: what the last one was about to do is off.
            if self.coming.take().is_some() {
                return Some(Reading::Sleeping(false));
            }
        }
    }
}

/// Completes when the lock is no longer needed for the sleep that is coming.
async fn let_go(release: &Release, coming: Option<Instant>) {
    let Some(until) = coming else { return std::future::pending().await };
    tokio::select! {
        () = release.0.notified() => {}
        () = sleep_until(until) => {}
    }
}

impl super::Sensor for Sensor {
    fn name(&self) -> &'static str {
        "sleep"
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Reading>> {
        Box::pin(async move {
            if !std::mem::replace(&mut self.begun, true) {
                return Some(Reading::Sleeping(false));
            }
            self.follow().await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd as Fd;
    use std::os::unix::net::UnixStream;

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use zbus::object_server::SignalEmitter;

    use super::super::Sensor as _;
    use super::super::testing::{Bus, said};
    use super::*;

    /// Gives locks, and hands the other ends to the test.
    struct Fake {
        locks: UnboundedSender<UnixStream>,
        delay: u64,
    }

    #[zbus::interface(name = "org.freedesktop.login1.Manager")]
    impl Fake {
        fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> OwnedFd {
            assert_eq!((what, who, mode), ("sleep", "Nestd", "delay"));
            assert!(!why.is_empty());
            let (ours, theirs) = UnixStream::pair().unwrap();
            self.locks.send(ours).unwrap();
            Fd::from(theirs).into()
        }

        #[zbus(property, name = "InhibitDelayMaxUSec")]
        fn inhibit_delay(&self) -> u64 {
            self.delay
        }

        #[zbus(signal)]
        async fn prepare_for_sleep(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
    }

    async fn logind(bus: &Bus, delay: Duration) -> (Connection, UnboundedReceiver<UnixStream>) {
        let (locks, taken) = unbounded_channel();
        let delay = u64::try_from(delay.as_micros()).unwrap();
        let builder = bus.builder().serve_at(PATH, Fake { locks, delay });
        (said(builder.name(NAME).build()).await.unwrap(), taken)
    }

    async fn prepare(from: &Connection, start: bool) {
        let emitter = SignalEmitter::new(from, PATH).unwrap();
        Fake::prepare_for_sleep(&emitter, start).await.unwrap();
    }

    /// Until the other end of the lock is closed.
    async fn let_go(lock: UnixStream) {
        let read = tokio::task::spawn_blocking(move || (&lock).read(&mut [0]).unwrap());
        assert_eq!(said(read).await.unwrap(), 0);
    }

    fn held(lock: &UnixStream) -> bool {
        lock.set_nonblocking(true).unwrap();
        let held = (&mut &*lock).read(&mut [0]).is_err();
        lock.set_nonblocking(false).unwrap();
        held
    }

    /// The sensor in a task, as in the daemon.
    async fn start(bus: &Bus, release: &Release) -> UnboundedReceiver<bool> {
        let mut sensor = Sensor::new(&bus.connect().await, release.clone());
        let (sender, receiver) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Reading::Sleeping(sleeping)) = sensor.next().await {
                if sender.send(sleeping).is_err() {
                    break;
                }
            }
        });
        receiver
    }

    #[tokio::test]
    async fn the_lock_is_held_until_the_daemon_is_ready() {
        let bus = Bus::start().await;
        let (login, mut locks) = logind(&bus, Duration::from_secs(3600)).await;
        let release = Release::default();
        let mut sleeping = start(&bus, &release).await;
        assert_eq!(said(sleeping.recv()).await, Some(false));
        let lock = said(locks.recv()).await.unwrap();
        // Too early: nothing is coming.
        release.ready();
        // Anybody may send a signal.
        let stranger = bus.connect().await;
        prepare(&stranger, true).await;
        prepare(&login, true).await;
        assert_eq!(said(sleeping.recv()).await, Some(true));
        assert!(held(&lock));
        release.ready();
        let_go(lock).await;
        prepare(&login, false).await;
        assert_eq!(said(sleeping.recv()).await, Some(false));
        assert!(held(&said(locks.recv()).await.unwrap()));
        assert!(sleeping.is_empty());
    }

    #[tokio::test]
    async fn the_lock_goes_after_the_delay_and_comes_with_logind() {
        let bus = Bus::start().await;
        let release = Release::default();
        let mut sleeping = start(&bus, &release).await;
        assert_eq!(said(sleeping.recv()).await, Some(false));
        let (login, mut locks) = logind(&bus, Duration::from_millis(50)).await;
        let lock = said(locks.recv()).await.unwrap();
        prepare(&login, true).await;
        assert_eq!(said(sleeping.recv()).await, Some(true));
        let_go(lock).await;
        drop(login);
        assert_eq!(said(sleeping.recv()).await, Some(false));
        let (_login, mut locks) = logind(&bus, Duration::from_secs(3600)).await;
        assert!(held(&said(locks.recv()).await.unwrap()));
        drop(bus);
        assert_eq!(said(sleeping.recv()).await, None);
    }
}
