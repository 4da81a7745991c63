//! The services of nestd.v1: decode, call the service, encode.

use std::pin::Pin;
use std::sync::Arc;

use futures::future::ready;
use futures::{Stream, StreamExt, TryStreamExt};
use nestd_proto::v1;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::connection::Peer;
use super::error::{failed, status};
use super::{convert, gate};
use crate::api::Core;
use crate::stream::Events;
use crate::types::{Client, Error, Event};

pub(super) type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves every service of the package. Cheap to clone: one for each of them.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) core: Core,
    /// Cancelled when the daemon stops: ends the streams that would go on for ever.
    pub(super) stop: CancellationToken,
}

/// Who calls, and over which connection.
pub(super) fn peer<T>(request: &Request<T>) -> Peer {
    gate::peer(request.extensions().get())
}

/// Who calls.
pub(super) fn client<T>(request: &Request<T>) -> Arc<Client> {
    peer(request).client()
}

// By value: it stands in map_err.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn refuse(error: Error) -> Status {
    status(&error)
}

/// The events of a request as its stream carries them.
pub(super) fn events(events: Events) -> Streaming<v1::GenerateEvent> {
    let request_id = events.id();
    Box::pin(events.map(move |event| {
        let event = convert::event(event).map_err(|error| failed(&error, request_id))?;
        Ok(v1::GenerateEvent { request_id, event: Some(event) })
    }))
}

#[tonic::async_trait]
impl v1::inference_server::Inference for Api {
    type GenerateStream = Streaming<v1::GenerateEvent>;

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let client = client(&request);
        let request = convert::request(request.into_inner()).map_err(|error| {
            self.core.service.metrics().refused(None, &error);
            refuse(error)
        })?;
        let accepted = self.core.service.generate(&client, request).await;
        Ok(Response::new(events(accepted.map_err(refuse)?)))
    }

    async fn count_tokens(
        &self,
        request: Request<v1::CountTokensRequest>,
    ) -> Result<Response<v1::CountTokensResponse>, Status> {
        let client = client(&request);
        let messages = convert::messages(request.into_inner().messages).map_err(refuse)?;
        let tokens = self.core.service.count_tokens(&client, messages).await.map_err(refuse)?;
        Ok(Response::new(v1::CountTokensResponse { tokens }))
    }
}

#[tonic::async_trait]
impl v1::status_server::Status for Api {
    async fn list_requests(
        &self,
        _: Request<v1::ListRequestsRequest>,
    ) -> Result<Response<v1::ListRequestsResponse>, Status> {
        Ok(Response::new(convert::activity(self.core.service.activity())))
    }

    type HoldForegroundStream = Streaming<v1::ForegroundEvent>;

    async fn hold_foreground(
        &self,
        request: Request<v1::HoldForegroundRequest>,
    ) -> Result<Response<Self::HoldForegroundStream>, Status> {
        let client = client(&request);
        let v1::HoldForegroundRequest { app, reason } = request.into_inner();
        let foreground = self.core.service.foreground();
        let held = foreground.hold(&client, convert::app(app), reason).map_err(refuse)?;
        let mut told = None;
        let events = WatchStream::new(foreground.watch()).filter_map(move |newest| {
            // The stream owns the lease: dropping it ends the lease.
            let id = held.id();
            let in_force = newest.is_some_and(|newest| newest.id == id);
            let new = told.replace(in_force) != Some(in_force);
            ready(new.then_some(Ok(v1::ForegroundEvent { id, in_force })))
        });
        Ok(Response::new(self.until_stopped(events)))
    }

    type WatchStream = Streaming<v1::StatusReport>;

    async fn get(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::StatusReport>, Status> {
        Ok(Response::new(convert::report(self.core.service.report())))
    }

    async fn watch(
        &self,
        _: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = Arc::clone(&self.core.service);
        let reports = WatchStream::new(self.core.service.watch())
            .map(move |_| Ok(convert::report(service.report())));
        Ok(Response::new(self.until_stopped(reports)))
    }
}

#[tonic::async_trait]
impl v1::models_server::Models for Api {
    async fn list(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let models = self.core.service.models().await.map_err(refuse)?;
        let models = models.into_iter().map(convert::model).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    type LoadStream = Streaming<v1::LoadModelEvent>;

    async fn load(
        &self,
        request: Request<v1::LoadModelRequest>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let client = client(&request);
        let v1::LoadModelRequest { model, size } = request.into_inner();
        let events = self.core.governor.load(&client, &model, &size).await.map_err(refuse)?;
        let id = events.id();
        let progress = events.map(Ok).try_filter_map(move |event| async move {
            match event {
                Event::Loading { fraction } => Ok(Some(v1::LoadModelEvent { fraction })),
                Event::Failed(error) => Err(failed(&error, id)),
                _ => Ok(None),
            }
        });
        Ok(Response::new(Box::pin(progress)))
    }

    async fn unload(
        &self,
        request: Request<v1::UnloadModelRequest>,
    ) -> Result<Response<v1::UnloadModelResponse>, Status> {
        self.core.service.unload(&client(&request)).await.map_err(refuse)?;
        Ok(Response::new(v1::UnloadModelResponse {}))
    }
}
