//! Stands before every call of every service: the method's path is looked up, and the client's class is
//! checked, before anything of the request is decoded.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::error::status;
use crate::api::Gate;
use crate::api::access::CALLS;
use crate::types::Client;

/// Puts the check around the services.
#[derive(Clone)]
pub(super) struct Checks(pub(super) Arc<Gate>);

impl<S> Layer<S> for Checks {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Checked { gate: Arc::clone(&self.0), inner }
    }
}

/// The services behind the check.
#[derive(Clone)]
pub(super) struct Checked<S> {
    gate: Arc<Gate>,
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
        match check(&self.gate, &request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(refused) => Either::Left(ready(Ok(refused.into_http()))),
        }
    }
}

fn check(gate: &Gate, request: &Request<Body>) -> Result<(), Status> {
    let method = request.uri().path().trim_start_matches('/');
    let call = CALLS.iter().find(|call| call.grpc == method && !method.is_empty());
    let call = call.ok_or_else(|| Status::unimplemented("there is no such method"))?;
    let client = client(request.extensions().get());
    let table = gate.table();
    if table.allows(&client, call.class) {
        return Ok(());
    }
    tracing::info!(%client, method, class = call.class.name(), "refused");
    Err(status(&call.refusal(&table, "")))
}

/// The connection's client; one of whom nothing is known, should a listener have told none.
pub(super) fn client(told: Option<&Arc<Client>>) -> Arc<Client> {
    told.map(Arc::clone).unwrap_or_default()
}
