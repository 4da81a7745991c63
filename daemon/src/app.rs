//! The process: puts the parts together, tells systemd, obeys signals, and stops in order.
//!
//! Threads: tokio's (both APIs, the service, signals) and the engine's. Whatever ends before it was
//! asked to (a listener, the bus, the engine thread) ends the process with an error, so that systemd
//! starts it anew.

mod tcp;
mod watchdog;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use nestd_policy::snapshot::Snapshot;

use crate::api::{Core, Gate, dbus, grpc, metrics};
use crate::config::{Bus, Config, Layers, Listen};
use crate::engine::{self, catalog::Catalog};
use crate::governor::sensors::{self, replay, sleep::Release};
use crate::governor::{self, Governor};
use crate::service::{self, Report, Service};
use crate::systemd::{Log, Notifier, Sockets};
use crate::types::{State, Table};

use self::watchdog::Watchdog;

/// How long connections may take to close when everything else is over.
const CLOSE: Duration = Duration::from_secs(2);

/// How long the last things may take to be kept.
const KEEP: Duration = Duration::from_secs(10);

/// Open files that a process may have, as a rule.
const SOFT_FILES: u64 = 1024;

/// What ends the daemon other than a signal.
type Fatal = Box<dyn std::error::Error + Send + Sync>;

/// Runs the daemon until a signal ends it. `layers` are read again on SIGHUP.
pub async fn run(config: Config, layers: Layers) -> Result<(), Fatal> {
    let log = Log::start(&config.log_level)?;
    let systemd = Notifier::start()?;
    let mut given = Sockets::given()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let (engine, mut engine_ended) = engine::spawn()?;
    let mut watchdog = Watchdog::new(engine.pulse());
    let service = Service::new(engine, settings(&config));
    let governor = Governor::new(Arc::clone(&service), governor_settings(&config));
    let (readings, release) = sensors(&config).await;
    governor.see(readings.borrow().clone());
    tokio::spawn(Arc::clone(&governor).run(readings, release));
    tokio::spawn(Arc::clone(service.sessions()).expire());
    let socket = config.grpc.socket.display().to_string();
    let listener = grpc_socket(&config, &mut given)
        .await
        .map_err(|error| format!("the gRPC socket {socket}: {error}"))?;
    let tcp = tcp::Listener::bind(config.tcp.as_ref()).await?;
    // Requests that come while the model loads wait for it.
    service.load_configured().await;

    let gate = Arc::new(Gate::new(table(&config)));
    let core = Core { service: Arc::clone(&service), governor: Arc::clone(&governor), gate };
    let stop = CancellationToken::new();
    let settings = grpc::Settings {
        connections: connections(&config),
        keepalive: Some(Duration::from_secs_f64(config.grpc.keepalive_s))
            .filter(|interval| !interval.is_zero()),
    };
    let mut grpc: JoinHandle<Result<(), Fatal>> = tokio::spawn({
        let (core, settings, stop) = (core.clone(), settings.clone(), stop.clone());
        async move { Ok(listener.run(core, settings, stop).await?) }
    });
    let metrics = serve_metrics(&config, &mut given, &core, &stop).await;
    given.close_rest();
    let mut tcp = tcp.spawn(core.clone(), settings, stop.clone());
    let bus = match &config.bus {
        Bus::Off => None,
        Bus::System => Some(dbus::Bus::System),
        Bus::Session => Some(dbus::Bus::Session),
        Bus::Address(address) => Some(dbus::Bus::Address(address)),
    };
    let (mut dbus, told): (JoinHandle<Result<(), Fatal>>, _) = match bus {
        None => (tokio::spawn(std::future::pending()), None),
        Some(bus) => {
            let server = dbus::Server::connect(bus, core.clone())
                .await
                .map_err(|error| format!("D-Bus ({:?}): {error}", config.bus))?;
            let told = server.told();
            (tokio::spawn(async move { Ok(server.run().await?) }), Some(told))
        }
    };
    let mut status = service.watch();
    systemd.status(line(&service.report()));
    systemd.ready();
    tracing::info!(socket, bus = ?config.bus, version = env!("CARGO_PKG_VERSION"), "ready");

    let fault: Option<Fatal> = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => {
                systemd.reloading();
                reload(&config, &layers, &core, &tcp, &log);
                systemd.ready();
            }
            () = watchdog.turn() => {
                if watchdog.all_is_well() {
                    systemd.alive();
                }
            }
            Ok(()) = status.changed() => {
                status.mark_unchanged();
                systemd.status(line(&service.report()));
            }
            ended = &mut grpc => break Some(fatal("the gRPC server", ended)),
            ended = tcp.ended() => break Some(fatal("the gRPC server on TCP", ended)),
            ended = &mut dbus => break Some(fatal("the D-Bus connection", ended)),
            _ = &mut engine_ended => break Some("the engine thread has ended".into()),
        }
    };
    if let Some(fault) = fault {
        keep(&service).await;
        return Err(fault);
    }

    tracing::info!("stopping");
    systemd.status("stopping: requests are ending".into());
    systemd.stopping(service.drain_time() + CLOSE + KEEP);
    service.drain().await;
    stop.cancel();
    if tokio::time::timeout(CLOSE, close(told, grpc, metrics, tcp)).await.is_err() {
        tracing::warn!("clients that do not close their connections are cut off");
    }
    dbus.abort();
    keep(&service).await;
    tracing::info!("stopped");
    Ok(())
}

/// Waits until sessions are on disk: clients are told the end of a turn before it is.
async fn keep(service: &Service) {
    if tokio::time::timeout(KEEP, service.sessions().kept()).await.is_err() {
        tracing::error!("sessions are not all on disk, which takes too long");
    }
}

/// Waits until callers on the bus are told the ends of their requests, and all that listens, told to stop, has
/// closed its connections.
async fn close(
    told: Option<impl Future<Output = ()>>,
    grpc: JoinHandle<Result<(), Fatal>>,
    metrics: Option<JoinHandle<()>>,
    mut tcp: tcp::Served,
) {
    if let Some(told) = told {
        told.await;
    }
    let _ = grpc.await;
    if let Some(metrics) = metrics {
        let _ = metrics.await;
    }
    tcp.closed().await;
}

/// The gRPC socket: the one from systemd, or else one of our own.
async fn grpc_socket(config: &Config, given: &mut Sockets) -> std::io::Result<grpc::Socket> {
    if let Some(socket) = given.take("grpc")? {
        return grpc::Socket::given(socket);
    }
    let grpc = &config.grpc;
    grpc::Socket::bind(&grpc.socket, grpc.socket_mode, &grpc.socket_group).await
}

/// As many connections as are configured, and as the process may have: it needs files for other things, too.
fn connections(config: &Config) -> grpc::Connections {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    let files = raised.unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files stays as it is");
        SOFT_FILES
    });
    let total = u64::from(config.grpc.connections).min(files / 2);
    grpc::Connections::new(
        usize::try_from(total).unwrap_or(usize::MAX),
        config.grpc.connections_per_user as usize,
    )
}

/// Serves the metrics. What needs the daemon does not need them: a failure is told, and nothing else.
async fn serve_metrics(
    config: &Config,
    given: &mut Sockets,
    core: &Core,
    stop: &CancellationToken,
) -> Option<JoinHandle<()>> {
    let server = match (given.take("metrics"), &config.metrics) {
        (Ok(Some(socket)), _) => metrics::Server::given(socket),
        (Err(error), _) => Err(error),
        (Ok(None), Listen::Off) => return None,
        (Ok(None), Listen::Unix(path)) => {
            let group = &config.grpc.socket_group;
            metrics::Server::bind(metrics::Place::Unix(path, group)).await
        }
        (Ok(None), Listen::Tcp(address)) => {
            metrics::Server::bind(metrics::Place::Tcp(*address)).await
        }
    };
    match server {
        Ok(server) => Some(tokio::spawn(server.run(core.clone(), stop.clone()))),
        Err(error) => {
            tracing::error!(place = ?config.metrics, %error, "metrics.listen: metrics are not served");
            None
        }
    }
}

fn fatal(what: &str, ended: Result<Result<(), Fatal>, JoinError>) -> Fatal {
    match ended {
        Ok(Ok(())) => format!("{what} has ended").into(),
        Ok(Err(error)) => format!("{what}: {error}").into(),
        Err(error) => format!("{what}: {error}").into(),
    }
}

/// Applies what can be applied to a daemon that started with `config`; a configuration with errors
/// changes nothing.
fn reload(config: &Config, layers: &Layers, core: &Core, tcp: &tcp::Served, log: &Log) {
    match Config::load(layers) {
        Ok(mut new) => {
            for key in config.needs_restart(&new) {
                tracing::warn!(key, "takes effect with the next start only");
            }
            // Without sensors it would decide on nothing.
            new.governor.enabled &= config.governor.enabled;
            new.sessions.dir.clone_from(&config.sessions.dir);
            log.set(&new.log_level);
            core.service.configure(settings(&new));
            core.governor.configure(governor_settings(&new));
            core.gate.configure(table(&new));
            tcp.renew(new.tcp.as_ref());
            tracing::info!("reloaded");
        }
        Err(problems) => {
            for problem in problems {
                tracing::error!(%problem, "not reloaded, the old settings stay");
            }
        }
    }
}

fn settings(config: &Config) -> service::Settings {
    service::Settings {
        catalog: Catalog {
            dir: config.model.dir.clone(),
            sim: config.sim_enabled,
            prefer: config.model.engine,
            engine: engine::Settings {
                isq: config.model.isq,
                context_tokens: config.model.context_tokens,
                parallel_requests: config.limits.parallel_requests,
                elastic: config.elastic.clone(),
                cache_dir: config.model.cache_dir.clone(),
                sim: config.sim.clone(),
            },
        },
        model: config.model.name.clone(),
        size: config.model.size.clone(),
        memory_mib: config.model.memory_mib,
        limits: config.limits,
        quotas: config.quotas,
        sessions: config.sessions.clone(),
        buffer_bytes: config.buffer_bytes,
        drain: Duration::from_millis(config.drain_ms),
    }
}

/// Who may do what, with users and groups as they are now.
fn table(config: &Config) -> Table {
    config.access.resolve(|key, entry| {
        tracing::warn!(key, %entry, "there is no such user or group: nobody gets in by this entry");
    })
}

fn governor_settings(config: &Config) -> governor::Settings {
    governor::Settings {
        enabled: config.governor.enabled,
        profile: config.governor.profile.clone(),
        policy: config.governor.policy.clone(),
        state_file: config.governor.state_file.clone(),
        size: config.model.size.clone(),
    }
}

/// Starts the sensors. Also gives what tells that the device may sleep.
async fn sensors(config: &Config) -> (watch::Receiver<Snapshot>, Release) {
    let settings = &config.governor;
    if !settings.enabled {
        return (watch::Sender::default().subscribe(), Release::default());
    }
    if !settings.replay.is_empty() {
        let path = Path::new(&settings.replay);
        match replay::Sensor::open(path, settings.replay_speed) {
            Ok(sensor) => {
                return (sensors::watch(vec![Box::new(sensor)]).await, Release::default());
            }
            Err(error) => tracing::error!(%error, "governor.replay: the sensors are read instead"),
        }
    }
    // UPower, power-profiles-daemon and logind are on the system bus, or on the one of a test.
    let bus = match &config.bus {
        Bus::Off => None,
        Bus::System | Bus::Session => Some(zbus::connection::Builder::system()),
        Bus::Address(address) => Some(zbus::connection::Builder::address(address.as_str())),
    };
    let bus = match bus {
        None => None,
        Some(builder) => match builder.build().await {
            Ok(bus) => Some(bus),
            Err(error) => {
                tracing::warn!(%error, "no system bus: batteries are read from sysfs");
                None
            }
        },
    };
    let machine = sensors::Settings::machine(bus);
    let machine = sensors::Settings {
        proc: settings.proc.clone(),
        sys: settings.sys.clone(),
        poll: Duration::from_secs_f64(settings.poll_s),
        temperature: settings.temperature_sensors.clone(),
        battery: settings.battery,
        ..machine
    };
    (sensors::watch(sensors::live(&machine)).await, machine.release)
}

/// The line that `systemctl status` shows.
fn line(report: &Report) -> String {
    let status = &report.status;
    match (status.state, &status.loaded) {
        (State::Draining, _) => "stopping: requests are ending".into(),
        (State::Loading, _) => {
            format!("loading {} ({:.0} %)", status.loading, status.loading_fraction * 100.0)
        }
        (State::Parked, _) => format!("parked: {}", status.problem),
        (_, Some(loaded)) => format!("ready: {} at {}", loaded.model, loaded.size),
        (_, None) => format!("no model: {}", status.problem),
    }
}
