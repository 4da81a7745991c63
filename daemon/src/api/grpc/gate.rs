//! Stands before every call of every service: the method's path is looked up, the client's class is
//! checked, and what it may send is bounded, before anything of the request is decoded.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::body::{Bounded, Incoming};
use super::connection::Peer;
use super::error::status;
use crate::api::Core;
use crate::api::access::{CALLS, Call};
use crate::types::Client;

/// What a message holds that has no text.
const SMALL_BYTES: usize = 64 << 10;

/// Puts the check around the services.
#[derive(Clone)]
pub(super) struct Checks {
    core: Core,
    incoming: Incoming,
}

impl Checks {
    pub(super) fn new(core: Core) -> Self {
        Self { core, incoming: Incoming::default() }
    }
}

impl<S> Layer<S> for Checks {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { core, incoming } = self.clone();
        Checked { core, incoming, inner }
    }
}

/// The services behind the check.
#[derive(Clone)]
pub(super) struct Checked<S> {
    core: Core,
    incoming: Incoming,
    inner: S,
}

impl<S> Service<Request<Body>> for Checked<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match check(&self.core, &request) {
            Ok((call, client)) => {
                let longest = self.core.message_bytes();
                let most = match call.grpc.split_once('/') {
                    Some(("nestd.v1.Inference" | "nestd.v1.Sessions", _)) => longest,
                    _ => SMALL_BYTES,
                };
                let share = self.incoming.share(client.account(), longest);
                let bounded = request.map(|body| Body::new(Bounded::new(body, most, share)));
                Either::Right(self.inner.call(bounded))
            }
            Err(refused) => Either::Left(ready(Ok(refused.into_http()))),
        }
    }
}

fn check(core: &Core, request: &Request<Body>) -> Result<(&'static Call, Arc<Client>), Status> {
    let method = request.uri().path().trim_start_matches('/');
    let call = CALLS.iter().find(|call| call.grpc == method && !method.is_empty());
    let call = call.ok_or_else(|| Status::unimplemented("there is no such method"))?;
    let peer = peer(request.extensions().get());
    peer.asks();
    let (client, table) = (peer.client(), core.gate.table());
    if table.allows(&client, call.class) {
        return Ok((call, client));
    }
    tracing::info!(%client, method, class = call.class.name(), "refused");
    let error = call.refusal(&table, "");
    if call.is_request() {
        core.service.metrics().refused(None, &error);
    }
    Err(status(&error))
}

/// Who is at the connection's other end; nobody known, should a listener have told none.
pub(super) fn peer(told: Option<&Peer>) -> Peer {
    told.cloned().unwrap_or_default()
}
