//! `org.nestd.Manager1`: decode, call the service, encode. The documentation of each member is in
//! proto/dbus/org.nestd.Manager1.xml, which a test compares with the live interface.

use zbus::message::Header;
use zbus::{Connection, OwnedFd, OwnedObjectPath, interface};

use super::Parts;
use super::convert::{self, Dict, Messages, Options};
use super::error::Failure;
use super::held::Held;
use super::pipe::Pipe;
use super::request::{self, NewRequest};
use super::session;
use crate::types::{Error, GenerateRequest};

/// The object at `/org/nestd/Nestd1`.
pub(super) struct Manager {
    pub(super) parts: Parts,
    /// Leases of the foreground.
    pub(super) leases: Held,
}

// The interface macro wants receivers, and headers by value.
#[allow(clippy::unused_self, clippy::needless_pass_by_value)]
#[interface(name = "org.nestd.Manager1", introspection_docs = false)]
impl Manager {
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    #[zbus(property)]
    fn state(&self) -> String {
        convert::state(&self.parts.core.service.report().status).into()
    }

    #[zbus(property)]
    fn model(&self) -> String {
        self.parts.core.service.report().status.model().into()
    }

    #[zbus(property)]
    fn engine(&self) -> String {
        let loaded = self.parts.core.service.report().status.loaded;
        loaded.map_or_else(String::new, |loaded| loaded.engine.name().into())
    }

    #[zbus(property)]
    fn active_size(&self) -> String {
        self.parts
            .core
            .service
            .report()
            .status
            .loaded
            .map_or_else(String::new, |loaded| loaded.size)
    }

    #[zbus(property)]
    fn available_sizes(&self) -> Vec<String> {
        self.parts.core.service.report().status.loaded.map_or_else(Vec::new, |loaded| loaded.sizes)
    }

    #[zbus(property)]
    fn problem(&self) -> String {
        self.parts.core.service.report().status.problem
    }

    #[zbus(property)]
    fn foreground(&self) -> Dict {
        let lease = self.parts.core.service.foreground().in_force();
        lease.as_ref().map(convert::lease).unwrap_or_default()
    }

    #[zbus(out_args("status"))]
    fn get_status(&self) -> Dict {
        convert::report(&self.parts.core.service.report())
    }

    #[zbus(out_args("requests", "totals"))]
    fn list_requests(&self) -> (Vec<Dict>, Dict) {
        convert::activity(&self.parts.core.service.activity())
    }

    #[zbus(out_args("request"))]
    async fn generate(
        &self,
        messages: Messages,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<NewRequest, Failure> {
        self.start(None, messages, options, &header, connection).await
    }

    #[zbus(out_args("request"))]
    async fn generate_to_fd(
        &self,
        fd: OwnedFd,
        messages: Messages,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<NewRequest, Failure> {
        let pipe = Pipe::new(fd.into())?;
        self.start(Some(pipe), messages, options, &header, connection).await
    }

    #[zbus(out_args("session"))]
    async fn create_session(
        &self,
        messages: Messages,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Failure> {
        let options = convert::session_options(options)?;
        let messages = convert::messages(messages)?;
        let (handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        let made = self.parts.core.service.create_session(&client, messages, options).await?;
        session::announce(&self.parts, &handle, &client, &made.id, connection).await
    }

    #[zbus(out_args("sessions"))]
    async fn list_sessions(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<Dict>, Failure> {
        let (_handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        Ok(self.parts.core.service.sessions().list(&client).iter().map(convert::session).collect())
    }

    #[zbus(out_args("tokens"))]
    async fn count_tokens(
        &self,
        messages: Messages,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u32, Failure> {
        let messages = convert::messages(messages)?;
        let (_handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        Ok(self.parts.core.service.count_tokens(&client, messages).await?)
    }

    #[zbus(out_args("models"))]
    async fn list_models(&self) -> Result<Vec<Dict>, Failure> {
        Ok(self.parts.core.service.models().await?.iter().map(convert::model).collect())
    }

    #[zbus(out_args("request"))]
    async fn load_model(
        &self,
        model: String,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<NewRequest, Failure> {
        let (size, token) = convert::load_options(options)?;
        let (handle, client) = self.parts.callers.caller(token, &header, connection).await?;
        let events = self.parts.core.governor.load(&client, &model, &size).await?;
        request::announce(handle, events, None, client, connection, &self.parts.telling).await
    }

    async fn unload_model(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Failure> {
        let (_handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        Ok(self.parts.core.service.unload(&client).await?)
    }

    #[zbus(out_args("lease"))]
    async fn hold_foreground(
        &self,
        app: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u64, Failure> {
        let (app, reason) = convert::app(app)?;
        let (handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        let held = self.parts.core.service.foreground().hold(&client, app, reason)?;
        let id = held.id();
        self.leases.keep(id, held, client.name, handle);
        Ok(id)
    }

    fn release_foreground(
        &self,
        lease: u64,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(), Failure> {
        if self.leases.release(lease, &header) {
            return Ok(());
        }
        Err(Error::invalid("lease", "is not a lease of this caller").into())
    }
}

impl Manager {
    async fn start(
        &self,
        pipe: Option<Pipe>,
        messages: Messages,
        options: Options,
        header: &Header<'_>,
        connection: &Connection,
    ) -> Result<NewRequest, Failure> {
        let refused = |error| {
            self.parts.core.service.metrics().refused(None, &error);
            error
        };
        let options = convert::options(options).map_err(refused)?;
        if pipe.is_some() && options.top_logprobs.is_some() {
            let why = "GenerateToFd passes text only; Generate tells them";
            return Err(refused(Error::unsupported("top_logprobs", why)).into());
        }
        let request = GenerateRequest {
            messages: convert::messages(messages).map_err(refused)?,
            sampling: options.sampling,
            json_schema: options.json_schema,
            top_logprobs: options.top_logprobs,
            priority: options.priority,
            stopping: options.stopping,
            session: options.session,
            prewarm: false,
        };
        let called = self.parts.callers.caller(options.handle_token, header, connection).await;
        let (handle, client) = called.map_err(refused)?;
        let events = self.parts.core.service.generate(&client, request).await?;
        request::announce(handle, events, pipe, client, connection, &self.parts.telling).await
    }
}
