//! The D-Bus half: method calls of `org.nestd.Manager1` with the vocabulary of `nestd.v1`. `Client`
//! calls it. Requests under way are in `request`, `org.nestd.Governor1` in `governor`, the list of
//! requests in `activity`, leases of the foreground in `foreground`, the streams of reports in `watch`, and
//! what the values look like on the bus in `convert`.

mod activity;
mod convert;
mod foreground;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod governor;
mod held;
mod request;
mod session;
mod watch;

use std::{
    convert::Infallible,
    os::fd::BorrowedFd,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, future::ready};
use nestd_proto::{
    dbus::{NAME, PATH},
    v1::{GenerateEvent, GenerateRequest, Message, Model, StatusReport, generate_event::Event},
};
use serde::de::DeserializeOwned;
use zbus::{Connection, Fd, Proxy, Type, names::UniqueName, proxy::MethodFlags, wire::DynamicType};

use crate::{Error, Events, Fractions, GovernorReports, Reports};

pub(crate) const MANAGER: &str = "org.nestd.Manager1";
pub(crate) const GOVERNOR: &str = "org.nestd.Governor1";
const BUS: &str = "org.freedesktop.DBus";

/// Which message bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// Where the system's services are.
    #[default]
    System,
    /// The user's own.
    Session,
    /// One at an address, such as `unix:path=/tmp/bus`.
    Address(String),
}

impl FromStr for Bus {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "system" => Self::System,
            "session" => Self::Session,
            address => Self::Address(address.into()),
        })
    }
}

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System => f.write_str("the system bus"),
            Self::Session => f.write_str("the session bus"),
            Self::Address(address) => write!(f, "the bus at {address}"),
        }
    }
}

/// The daemon on a message bus.
#[derive(Clone, Debug)]
pub struct Dbus {
    connection: Connection,
    /// Numbers the handle tokens; shared by all clones, since the daemon tells callers apart by
    /// their connection.
    tokens: Arc<AtomicU64>,
    /// Whether polkit may ask a person.
    interactive: bool,
}

impl Dbus {
    /// Connects to the bus and looks for the daemon there, which starts it where the bus knows how.
    pub async fn connect(bus: &Bus) -> Result<Self, Error> {
        let builder = match bus {
            Bus::System => zbus::connection::Builder::system(),
            Bus::Session => zbus::connection::Builder::session(),
            Bus::Address(address) => zbus::connection::Builder::address(address.as_str()),
        };
        let connection = builder.build().await.map_err(|error| {
            Error::Unreachable(format!("{bus} cannot be reached ({error}): start it"))
        })?;
        let dbus = Self { connection, tokens: Arc::default(), interactive: false };
        dbus.owner().await?;
        Ok(dbus)
    }

    /// Whether polkit may ask a person to authenticate for what this user may not do: for programs with a
    /// person before them. It may take as long as the person does.
    #[must_use]
    pub fn interactive(self, yes: bool) -> Self {
        Self { interactive: yes, ..self }
    }

    /// See [`crate::Client::status`].
    pub async fn status(&self) -> Result<StatusReport, Error> {
        self.call::<_, convert::Status>("GetStatus", &()).await?.try_into()
    }

    /// See [`crate::Client::watch_status`].
    pub async fn watch_status(&self) -> Result<Reports, Error> {
        watch::status(self.clone()).await
    }

    /// See [`crate::Client::watch_governor`].
    pub async fn watch_governor(&self) -> Result<GovernorReports, Error> {
        watch::governor(self.clone()).await
    }

    /// See [`crate::Client::generate`].
    pub async fn generate(&self, request: GenerateRequest) -> Result<Events, Error> {
        let messages = convert::messages(&request.messages)?;
        let options = convert::Options::new(request, self.token())?;
        let token = options.token().to_owned();
        let call =
            move |dbus: Self| async move { dbus.call("Generate", &(messages, options)).await };
        request::start(self.clone(), &token, true, call).await
    }

    /// As `generate`, but the text goes into `fd`, a pipe or a Unix stream socket, and the events have none.
    /// The daemon closes its end after the last byte.
    pub async fn generate_to_fd(
        &self,
        fd: BorrowedFd<'_>,
        request: GenerateRequest,
    ) -> Result<Events, Error> {
        let fd = Fd::from(fd.try_clone_to_owned().map_err(|error| {
            Error::Unexpected(format!("the file descriptor cannot be used: {error}"))
        })?);
        let messages = convert::messages(&request.messages)?;
        let options = convert::Options::new(request, self.token())?;
        let token = options.token().to_owned();
        let call = move |dbus: Self| async move {
            dbus.call("GenerateToFd", &(fd, messages, options)).await
        };
        request::start(self.clone(), &token, true, call).await
    }

    /// See [`crate::Client::count_tokens`].
    pub async fn count_tokens(&self, messages: &[Message]) -> Result<u32, Error> {
        self.call("CountTokens", &convert::messages(messages)?).await
    }

    /// See [`crate::Client::models`].
    pub async fn models(&self) -> Result<Vec<Model>, Error> {
        let models: Vec<convert::ModelEntry> = self.call("ListModels", &()).await?;
        Ok(models.into_iter().map(Model::from).collect())
    }

    /// See [`crate::Client::load`].
    pub async fn load(&self, model: &str, size: &str) -> Result<Fractions, Error> {
        let token = self.token();
        let options = convert::LoadOptions::new(size, &token)?;
        convert::carried(model, || "model".into())?;
        let model = model.to_owned();
        let call = move |dbus: Self| async move {
            dbus.control(MANAGER, "LoadModel", &(model, options)).await
        };
        let events = request::start(self.clone(), &token, false, call).await?;
        // The estimate may reach 1 before the model answers; Finished says that it does.
        let fractions = events.filter_map(|event| {
            ready(match event {
                Ok(GenerateEvent { event: Some(Event::Loading(loading)), .. }) => {
                    (loading.fraction < 1.0).then_some(Ok(loading.fraction))
                }
                Ok(GenerateEvent { event: Some(Event::Finished(_)), .. }) => Some(Ok(1.0)),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
        });
        Ok(fractions.boxed())
    }

    /// See [`crate::Client::unload`].
    pub async fn unload(&self) -> Result<(), Error> {
        self.control(MANAGER, "UnloadModel", &()).await
    }

    /// A token that no other request of this connection has.
    fn token(&self) -> String {
        format!("c{}", self.tokens.fetch_add(1, Ordering::Relaxed))
    }

    /// The connection that owns the daemon's name. Asking the bus to start it first is what makes
    /// activation work; a bus that cannot says `ServiceUnknown`, and the name may be owned all the same.
    async fn owner(&self) -> Result<UniqueName<'static>, Error> {
        let started = self.call_at::<_, u32>(BUS, BUS, "StartServiceByName", &(NAME, 0_u32)).await;
        match self.call_at::<_, String>(BUS, BUS, "GetNameOwner", &NAME).await {
            Ok(owner) => owner
                .try_into()
                .map_err(|error| Error::Unexpected(format!("the bus named an owner: {error}"))),
            Err(error) => Err(match started {
                // Whoever should start it failed, and named the error in its own way.
                Err(Error::Unexpected(why)) => Error::Unreachable(format!(
                    "nestd cannot be started on this bus ({why}): see `systemctl status nestd`"
                )),
                Err(error) => error,
                Ok(_) => error,
            }),
        }
    }

    async fn call<B, R>(&self, method: &str, body: &B) -> Result<R, Error>
    where
        B: serde::Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call_at(PATH, MANAGER, method, body).await
    }

    /// Calls a method about which polkit may be asked.
    async fn control<B, R>(&self, interface: &str, method: &str, body: &B) -> Result<R, Error>
    where
        B: serde::Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let proxy = Proxy::new(&self.connection, NAME, PATH, interface).await?;
        let flags = if self.interactive {
            MethodFlags::ALLOW_INTERACTIVE_AUTH
        } else {
            MethodFlags::empty()
        };
        let reply = proxy.call_with_flags(method, flags, body).await?;
        reply.ok_or_else(|| Error::Unexpected(format!("{method} was answered with nothing")))
    }

    /// Calls a method of the daemon, or of the bus where the interface is the bus's.
    async fn call_at<B, R>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<R, Error>
    where
        B: serde::Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        Ok(self.reply(path, interface, method, body).await?.body().deserialize()?)
    }

    async fn reply<B>(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) -> zbus::Result<zbus::Message>
    where
        B: serde::Serialize + DynamicType,
    {
        let (destination, path) =
            if interface == BUS { (BUS, "/org/freedesktop/DBus") } else { (NAME, path) };
        self.connection.call_method(Some(destination), path, Some(interface), method, body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_is_a_word_or_an_address() {
        assert_eq!("system".parse(), Ok(Bus::System));
        assert_eq!("session".parse(), Ok(Bus::Session));
        assert_eq!("unix:path=/tmp/b".parse(), Ok(Bus::Address("unix:path=/tmp/b".into())));
    }

    #[tokio::test]
    async fn a_missing_bus_is_an_unreachable_daemon() {
        let bus = Bus::Address("unix:path=/nonexistent/bus".into());
        let error = Dbus::connect(&bus).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(text)
            if text.starts_with("the bus at unix:path=/nonexistent/bus cannot be reached")));
    }
}
