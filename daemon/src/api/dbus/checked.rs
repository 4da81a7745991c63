//! Stands before every member of an interface: what it needs is looked up, and the caller's class is
//! checked, before any argument is decoded.

use std::collections::HashMap;
use std::fmt::Write;

use async_trait::async_trait;
use zbus::message::{Flags, Header};
use zbus::names::{InterfaceName, MemberName};
use zbus::object_server::{DispatchResult, Interface, SignalEmitter};
use zbus::{BoxDBusError, Connection, Message, ObjectServer, OwnedVariant, Variant, fdo};

use super::Parts;
use super::convert::clean;
use super::error::Failure;
use crate::api::access::{CALLS, Call};
use crate::types::{Class, Error};

/// An interface behind the check.
pub(super) struct Checked<I> {
    pub(super) inner: I,
    pub(super) parts: Parts,
}

impl<I: Interface> Checked<I> {
    /// Whether the sender may. Nobody is asked where everybody may; polkit is asked about who has not the
    /// class of what controls.
    async fn check(
        &self,
        call: &Call,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<(), Error> {
        let (bytes, most) = (header.primary().body_len() as usize, self.parts.core.message_bytes());
        if bytes > most {
            let problem = format!("{bytes} bytes, and at most {most} are taken");
            return Err(Error::invalid("the call's body", problem));
        }
        let table = self.parts.core.gate.table();
        if table.is_open(call.class) {
            return Ok(());
        }
        let client = self.parts.callers.client(header, connection).await?;
        if table.allows(&client, call.class) {
            return Ok(());
        }
        let mut why = String::new();
        if call.class == Class::Control {
            let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
            // Its path is in the list while polkit is asked, so that it is noticed when it leaves.
            let (asking, client) = self.parts.callers.caller(None, header, connection).await?;
            let question = self.parts.polkit.question(&client)?;
            let asked = question.ask(connection, header, call.action, interactive, &asking.gone);
            match asked.await {
                Ok(()) => {
                    tracing::info!(%client, action = call.action, "polkit allows it");
                    return Ok(());
                }
                Err(problem) => why = problem,
            }
        }
        let (method, class) = (call.dbus, call.class.name());
        tracing::info!(%client, method, class, why, "refused");
        Err(call.refusal(&table, &why))
    }

    /// The call of a member of this interface, `*` for its properties.
    fn call_of(member: &str) -> Option<&'static Call> {
        let name = I::name();
        let (_, short) = name.rsplit_once('.')?;
        CALLS.iter().find(|call| call.dbus.split_once('.') == Some((short, member)))
    }

    async fn check_properties(
        &self,
        header: Option<&Header<'_>>,
        connection: &Connection,
    ) -> Result<(), Error> {
        // Without a header it is the daemon itself that reads, for a signal.
        let Some(header) = header else { return Ok(()) };
        let unknown = || Error::NotAllowed { what: "these properties have no class".into() };
        self.check(Self::call_of("*").ok_or_else(unknown)?, header, connection).await
    }
}

#[async_trait]
impl<I: Interface> Interface for Checked<I> {
    fn name() -> InterfaceName<'static> {
        I::name()
    }

    fn spawn_tasks_for_methods(&self) -> bool {
        self.inner.spawn_tasks_for_methods()
    }

    async fn get(
        &self,
        property_name: &str,
        server: &ObjectServer,
        connection: &Connection,
        header: Option<&Header<'_>>,
        emitter: &SignalEmitter<'_>,
    ) -> Option<Result<OwnedVariant, BoxDBusError>> {
        if let Err(refused) = self.check_properties(header, connection).await {
            return Some(Err(Box::new(Failure::from(refused))));
        }
        self.inner.get(property_name, server, connection, header, emitter).await
    }

    async fn get_all(
        &self,
        server: &ObjectServer,
        connection: &Connection,
        header: Option<&Header<'_>>,
        emitter: &SignalEmitter<'_>,
    ) -> fdo::Result<HashMap<String, OwnedVariant>> {
        // zbus takes errors of the bus's own here, and none of ours.
        if let Err(refused) = self.check_properties(header, connection).await {
            return Err(fdo::Error::AccessDenied(clean(&refused.told()).into_owned()));
        }
        self.inner.get_all(server, connection, header, emitter).await
    }

    fn set<'call>(
        &'call self,
        property_name: &'call str,
        value: &'call Variant<'_>,
        server: &'call ObjectServer,
        connection: &'call Connection,
        header: Option<&'call Header<'_>>,
        emitter: &'call SignalEmitter<'_>,
    ) -> DispatchResult<'call> {
        // No property can be written.
        self.inner.set(property_name, value, server, connection, header, emitter)
    }

    async fn set_mut(
        &mut self,
        property_name: &str,
        value: &Variant<'_>,
        server: &ObjectServer,
        connection: &Connection,
        header: Option<&Header<'_>>,
        emitter: &SignalEmitter<'_>,
    ) -> Option<Result<(), BoxDBusError>> {
        self.inner.set_mut(property_name, value, server, connection, header, emitter).await
    }

    fn call<'call>(
        &'call self,
        server: &'call ObjectServer,
        connection: &'call Connection,
        message: &'call Message,
        name: MemberName<'call>,
    ) -> DispatchResult<'call> {
        let Some(call) = Self::call_of(&name) else { return DispatchResult::NotFound };
        // The inner one decodes when it is awaited.
        match self.inner.call(server, connection, message, name) {
            DispatchResult::Async(answer) => DispatchResult::Async(Box::pin(async move {
                let header = message.header();
                match self.check(call, &header, connection).await {
                    Ok(()) => answer.await,
                    Err(refused) => {
                        if call.is_request() {
                            self.parts.core.service.metrics().refused(None, &refused);
                        }
                        Err(Box::new(Failure::from(refused)) as BoxDBusError)
                    }
                }
            })),
            // None of ours changes itself.
            DispatchResult::RequiresMut | DispatchResult::NotFound => DispatchResult::NotFound,
        }
    }

    fn call_mut<'call>(
        &'call mut self,
        _: &'call ObjectServer,
        _: &'call Connection,
        _: &'call Message,
        _: MemberName<'call>,
    ) -> DispatchResult<'call> {
        DispatchResult::NotFound
    }

    fn introspect_to_writer(&self, writer: &mut dyn Write, level: usize) {
        self.inner.introspect_to_writer(writer, level);
    }
}
