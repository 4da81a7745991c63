//! grpc.health.v1: a status for each service, which follows the daemon's state.
//!
//! `Inference` serves while a request would be answered, at once or after a load; without a model it does
//! not. The others serve until the daemon stops.

use nestd_proto::v1::governor_server::GovernorServer;
use nestd_proto::v1::inference_server::InferenceServer;
use nestd_proto::v1::models_server::ModelsServer;
use nestd_proto::v1::sessions_server::SessionsServer;
use nestd_proto::v1::status_server::StatusServer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::services::Api;
use crate::types::{State, Status};

const INFERENCE: &str = <InferenceServer<Api> as NamedService>::NAME;
/// The empty name is the daemon as a whole.
const OTHERS: [&str; 5] = [
    "",
    <GovernorServer<Api> as NamedService>::NAME,
    <ModelsServer<Api> as NamedService>::NAME,
    <SessionsServer<Api> as NamedService>::NAME,
    <StatusServer<Api> as NamedService>::NAME,
];

/// What is told, and to whom.
pub(super) struct Health {
    reporter: HealthReporter,
    status: watch::Receiver<Status>,
    told: Option<(ServingStatus, ServingStatus)>,
}

impl Health {
    /// Tells the state of now; for before anyone can ask.
    pub(super) async fn new(reporter: HealthReporter, status: watch::Receiver<Status>) -> Self {
        let mut health = Self { reporter, status, told: None };
        health.tell().await;
        health
    }

    /// Follows the state until `stop` is cancelled; then ends the streams that watch.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                changed = self.status.changed() => match changed {
                    Ok(()) => self.tell().await,
                    Err(_) => return,
                },
                () = stop.cancelled() => break,
            }
        }
        for service in OTHERS.into_iter().chain([INFERENCE]) {
            self.reporter.clear_service_status(service).await;
        }
    }

    async fn tell(&mut self) {
        let state = self.status.borrow_and_update().state;
        let now = match state {
            State::Ready | State::Loading | State::Parked => {
                (ServingStatus::Serving, ServingStatus::Serving)
            }
            State::NoModel => (ServingStatus::NotServing, ServingStatus::Serving),
            State::Draining => (ServingStatus::NotServing, ServingStatus::NotServing),
        };
        // A load tells its progress ten times a second, and nobody wants to be told each time.
        if self.told.replace(now) == Some(now) {
            return;
        }
        let (inference, others) = now;
        self.reporter.set_service_status(INFERENCE, inference).await;
        for service in OTHERS {
            self.reporter.set_service_status(service, others).await;
        }
    }
}
