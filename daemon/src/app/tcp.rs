//! The gRPC API on TCP, where it is set and was built in.

use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::Fatal;
use crate::api::{Core, grpc};
use crate::config;

/// A listener that is bound, or none.
pub(super) struct Listener {
    #[cfg(feature = "tcp")]
    bound: Option<(grpc::Tcp, grpc::Tls)>,
}

/// A listener that is served, or none.
pub(super) struct Served {
    server: Option<JoinHandle<Result<(), Fatal>>>,
    #[cfg(feature = "tcp")]
    tls: Option<grpc::Tls>,
}

#[cfg(feature = "tcp")]
impl Listener {
    pub(super) async fn bind(settings: Option<&config::Tcp>) -> Result<Self, Fatal> {
        let Some(settings) = settings else { return Ok(Self { bound: None }) };
        let (address, tls) = (settings.listen, grpc::Tls::read(&files(settings))?);
        let tcp = grpc::Tcp::bind(address, tls.clone())
            .await
            .map_err(|error| format!("tcp.listen: {address}: {error}"))?;
        tracing::info!(address = %tcp.address()?, "gRPC with mutual TLS");
        Ok(Self { bound: Some((tcp, tls)) })
    }

    pub(super) fn spawn(
        self,
        core: Core,
        settings: grpc::Settings,
        stop: CancellationToken,
    ) -> Served {
        let (tcp, tls) = self.bound.unzip();
        let run = |tcp: grpc::Tcp| async move { Ok(tcp.run(core, settings, stop).await?) };
        Served { server: tcp.map(|tcp| tokio::spawn(run(tcp))), tls }
    }
}

#[cfg(not(feature = "tcp"))]
impl Listener {
    // The configuration refuses the setting.
    #[expect(clippy::unused_async, reason = "as with TCP")]
    pub(super) async fn bind(_: Option<&config::Tcp>) -> Result<Self, Fatal> {
        Ok(Self {})
    }

    #[expect(clippy::unused_self, reason = "as with TCP")]
    pub(super) fn spawn(self, _: Core, _: grpc::Settings, _: CancellationToken) -> Served {
        Served { server: None }
    }
}

impl Served {
    /// Completes when the server has ended; never, where there is none.
    pub(super) async fn ended(&mut self) -> Result<Result<(), Fatal>, JoinError> {
        match &mut self.server {
            Some(server) => server.await,
            None => std::future::pending().await,
        }
    }

    /// Completes when the server, told to stop, has closed its connections.
    pub(super) async fn closed(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.await;
        }
    }

    /// Reads the certificates again.
    #[cfg(feature = "tcp")]
    pub(super) fn renew(&self, settings: Option<&config::Tcp>) {
        if let (Some(tls), Some(settings)) = (&self.tls, settings)
            && let Err(problem) = tls.renew(&files(settings))
        {
            tracing::error!(%problem, "the old certificates stay");
        }
    }

    /// Nothing was read.
    #[cfg(not(feature = "tcp"))]
    #[expect(clippy::unused_self, reason = "as with TCP")]
    pub(super) fn renew(&self, _: Option<&config::Tcp>) {}
}

#[cfg(feature = "tcp")]
fn files(settings: &config::Tcp) -> grpc::Files {
    let config::Tcp { certificate, key, client_ca, .. } = settings.clone();
    grpc::Files { certificate, key, client_ca }
}
