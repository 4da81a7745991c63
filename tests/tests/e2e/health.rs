//! grpc.health.v1 over the socket: a status for each service, which follows the daemon's state.

use std::time::Duration;

use nestd_client::v1::State;
use nestd_tests::{Builder, Daemon, Device, until};
use nix::sys::signal::Signal;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus::{self, NotServing, Serving};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::contract::channel;

const INFERENCE: &str = "nestd.v1.Inference";
const OTHERS: [&str; 4] = ["", "nestd.v1.Governor", "nestd.v1.Models", "nestd.v1.Status"];

struct Health(HealthClient<Channel>);

impl Health {
    async fn of(daemon: &Daemon) -> Self {
        Self(HealthClient::new(channel(daemon).await))
    }

    async fn check(&mut self, service: &str) -> ServingStatus {
        let request = HealthCheckRequest { service: service.into() };
        self.0.check(request).await.unwrap().into_inner().status()
    }

    async fn watch(&mut self, service: &str) -> Streaming<HealthCheckResponse> {
        let request = HealthCheckRequest { service: service.into() };
        self.0.watch(request).await.unwrap().into_inner()
    }
}

/// The next status that is told; None at the end of the stream.
async fn next(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let next = tokio::time::timeout(Duration::from_secs(20), watch.message()).await;
    next.expect("it is told").unwrap().map(|told| told.status())
}

#[tokio::test]
async fn inference_serves_while_a_model_answers_or_comes_back() {
    let daemon = Builder::sim().set("sim.load_ms", "500").start();
    let client = daemon.grpc().await;
    let mut health = Health::of(&daemon).await;
    assert_eq!(client.status().await.unwrap().state(), State::Loading);
    assert_eq!(health.check(INFERENCE).await, Serving, "requests wait for the load");
    until(&client, |status| status.state() == State::Ready).await;
    assert_eq!(health.check(INFERENCE).await, Serving);

    let mut watch = health.watch(INFERENCE).await;
    assert_eq!(next(&mut watch).await, Some(Serving));
    client.unload().await.unwrap();
    assert_eq!(next(&mut watch).await, Some(NotServing));
    assert_eq!(health.check(INFERENCE).await, NotServing);
    for service in OTHERS {
        assert_eq!(health.check(service).await, Serving, "{service:?} works without a model");
    }
    let _load = client.load("", "").await.unwrap();
    assert_eq!(next(&mut watch).await, Some(Serving), "once, whatever progress the load makes");
    until(&client, |status| status.state() == State::Ready).await;
    client.unload().await.unwrap();
    assert_eq!(next(&mut watch).await, Some(NotServing), "and nothing in between");
}

#[tokio::test]
async fn a_daemon_without_a_model_says_so_from_the_start() {
    let daemon = Builder::default().without_bus().start();
    let mut health = Health::of(&daemon).await;
    assert_eq!(health.check(INFERENCE).await, NotServing);
    assert_eq!(health.check("").await, Serving);
}

#[tokio::test]
async fn a_model_that_left_memory_comes_back_and_so_serves() {
    let device = Device::on_battery(90);
    let daemon = device.governs(Builder::sim()).set("governor.idle_unload_s", "0.5").start();
    until(&daemon.grpc().await, |status| status.state() == State::Parked).await;
    assert_eq!(Health::of(&daemon).await.check(INFERENCE).await, Serving);
}

#[tokio::test]
async fn who_watches_is_told_the_drain_and_holds_up_nothing() {
    let mut daemon = Builder::sim().without_bus().start();
    let client = daemon.grpc().await;
    until(&client, |status| status.state() == State::Ready).await;
    let mut health = Health::of(&daemon).await;
    // Keeps the daemon draining until it is dropped.
    let running = client.generate(nestd_client::ask("word ".repeat(500))).await.unwrap();
    until(&client, |status| status.running_requests == 1).await;
    let mut watches = Vec::new();
    for service in OTHERS.into_iter().chain([INFERENCE]) {
        let mut watch = health.watch(service).await;
        assert_eq!(next(&mut watch).await, Some(Serving), "{service:?}");
        watches.push(watch);
    }
    daemon.signal(Signal::SIGTERM);
    for watch in &mut watches {
        assert_eq!(next(watch).await, Some(NotServing));
    }
    drop(running);
    for watch in &mut watches {
        assert_eq!(next(watch).await, None);
    }
    // Connections that stay open are closed by the daemon.
    assert!(daemon.wait().success());
}
