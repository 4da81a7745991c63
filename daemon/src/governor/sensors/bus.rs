//! What the sensors need of D-Bus: an object's properties as they change, whoever owns the name now.
//!
//! Signals only say that it is time to look again: the values are always asked for, so that nobody
//! but the owner of the name can put words into its mouth, and a service that starts anew is simply
//! read anew.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep_until, timeout};
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedVariant, Variant};

/// A service answers within this time; it may have to be started first.
const ANSWERS: Duration = Duration::from_secs(25);
/// However often a service says that something changed, it is asked this seldom.
const PAUSE: Duration = Duration::from_millis(500);
/// After an error it is asked again a few times, ever later.
const TRIES: u32 = 5;
/// Signals that may wait to be looked at.
const WAITING: usize = 64;

/// An object's properties.
pub struct Properties(HashMap<String, OwnedVariant>);

impl Properties {
    /// The property, if it is of that type.
    pub fn get<'a, T: TryFrom<&'a Variant<'static>>>(&'a self, name: &str) -> Option<T> {
        let value: &Variant<'static> = self.0.get(name)?;
        T::try_from(value).ok()
    }
}

/// The signals of one name on the bus.
pub struct Signals {
    owners: MessageStream,
    signals: MessageStream,
}

/// What [`Signals`] tell.
pub enum Event {
    /// The name has an owner, another one than before.
    Came(String),
    /// The name has no owner any more.
    Left,
    /// The signal that was asked for; from whom, is not checked yet.
    Signal(Message),
}

impl Signals {
    /// Listens to the signals that `rule` wants of `name`.
    pub async fn listen(bus: &Connection, name: &str, rule: MatchRule<'_>) -> zbus::Result<Self> {
        let owners = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender("org.freedesktop.DBus")
            .interface("org.freedesktop.DBus")
            .member("NameOwnerChanged")
            .arg(0, name)
            .build()?;
        let waiting = std::num::NonZeroUsize::new(WAITING);
        let owners = MessageStream::for_match_rule(owners, bus, waiting).await?;
        let signals = MessageStream::for_match_rule(rule, bus, waiting).await?;
        Ok(Self { owners, signals })
    }

    /// The next event; None: the bus is gone. Dropping the future loses none.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                owner = self.owners.next() => {
                    if let Some(event) = owner_of(&owner?.ok()?) {
                        return Some(event);
                    }
                }
                signal = self.signals.next() => return Some(Event::Signal(signal?.ok()?)),
            }
        }
    }
}

fn owner_of(message: &Message) -> Option<Event> {
    if message.header().sender().is_none_or(|sender| sender != "org.freedesktop.DBus") {
        return None;
    }
    let body = message.body();
    let (_, _, now): (&str, &str, &str) = body.deserialize().ok()?;
    Some(if now.is_empty() { Event::Left } else { Event::Came(now.to_owned()) })
}

/// Calls a method of a service, in a time that ends.
pub async fn call<B>(
    bus: &Connection,
    name: &str,
    path: &str,
    method: (&str, &str),
    body: &B,
) -> zbus::Result<Message>
where
    B: serde::Serialize + zbus::DynamicType + Sync,
{
    let (interface, method) = method;
    let call = bus.call_method(Some(name), path, Some(interface), method, body);
    timeout(ANSWERS, call)
        .await
        .unwrap_or_else(|_| Err(zbus::Error::Failure(format!("{name} does not answer"))))
}

/// Which object, and which of its interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// The name on the bus.
    pub name: &'static str,
    /// The path.
    pub path: &'static str,
    /// The interface.
    pub interface: &'static str,
}

impl Object {
    async fn read(self, bus: Connection, not_before: Instant) -> zbus::Result<Properties> {
        sleep_until(not_before).await;
        let method = ("org.freedesktop.DBus.Properties", "GetAll");
        let reply = call(&bus, self.name, self.path, method, &(self.interface,)).await?;
        Ok(Properties(reply.body().deserialize()?))
    }

    fn changes(&self) -> zbus::Result<MatchRule<'static>> {
        MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(self.name)
            .path(self.path)
            .interface("org.freedesktop.DBus.Properties")
            .member("PropertiesChanged")
            .arg(0, self.interface)
            .build()
    }
}

/// An object whose properties are followed.
pub struct Watched {
    bus: Connection,
    object: Object,
    signals: Option<Signals>,
    /// The properties have to be read, not before this time.
    stale: Option<Instant>,
    /// How often they could not be.
    failures: u32,
}

impl Watched {
    pub fn new(bus: &Connection, object: Object) -> Self {
        let stale = Some(Instant::now());
        Self { bus: bus.clone(), object, signals: None, stale, failures: 0 }
    }

    /// The properties: at once, then whenever they may have changed. `Some(None)`: the service is
    /// away. None: the bus is. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Option<Properties>> {
        if self.signals.is_none() {
            let rule = self.object.changes().ok()?;
            self.signals = Some(Signals::listen(&self.bus, self.object.name, rule).await.ok()?);
        }
        let signals = self.signals.as_mut()?;
        loop {
            let Some(not_before) = self.stale else {
                match signals.next().await? {
                    Event::Left => return Some(None),
                    Event::Came(_) => {
                        self.failures = 0;
                        self.stale = Some(Instant::now());
                    }
                    Event::Signal(_) => self.stale = Some(Instant::now()),
                }
                continue;
            };
            let mut reading = pin!(self.object.read(self.bus.clone(), not_before));
            let mut again = false;
            let read = loop {
                tokio::select! {
                    read = &mut reading => break Some(read),
                    event = signals.next() => match event? {
                        Event::Signal(_) => again = true,
                        Event::Came(_) => {
                            // It may be just the answer that is waited for that has started it.
                            self.failures = 0;
                            again = true;
                        }
                        Event::Left => break None,
                    },
                }
            };
            let now = Instant::now();
            self.stale = again.then_some(now + PAUSE);
            let error = match read {
                None => {
                    self.stale = None;
                    return Some(None);
                }
                Some(Ok(properties)) => {
                    self.failures = 0;
                    return Some(Some(properties));
                }
                Some(Err(error)) => error,
            };
            let Object { name, path, .. } = self.object;
            tracing::debug!(%error, name, path, "cannot be read");
            self.failures += 1;
            if self.stale.is_none() && !absent(&error) && self.failures <= TRIES {
                self.stale = Some(now + Duration::from_secs(1 << self.failures.min(TRIES)));
            }
            return Some(None);
        }
    }
}

/// Whether the error says that nobody has the name and nobody can be started: then a change of its
/// owner is waited for.
fn absent(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..)
        if ["org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner"]
            .contains(&name.as_str()))
}
