//! TCP with mutual TLS: who has no certificate of a configured authority does not get as far as HTTP.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use futures::future::ready;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::connection::accepted;
use super::seldom::Seldom;
use super::{KEEPALIVE_ANSWERS, Settings, serve};
use crate::api::Core;
use crate::types::Client;

/// Connections whose handshakes are under way; the others wait to be accepted.
const HANDSHAKES: usize = 32;
/// Those of one address.
const HANDSHAKES_OF_ONE: usize = 8;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Probes of TCP's own keepalive without an answer before the connection is gone.
const PROBES: u32 = 3;

/// The files of mutual TLS, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The daemon's certificate, with its chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities of clients' certificates.
    pub client_ca: PathBuf,
}

/// An address that accepts connections, not served yet.
pub struct Tcp {
    listener: TcpListener,
    tls: Tls,
}

/// What handshakes are made with from now on. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Reads the files.
    pub fn read(files: &Files) -> Result<Self, String> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(config(files)?)))))
    }

    /// Reads them again, for certificates that were renewed. An error changes nothing.
    pub fn renew(&self, files: &Files) -> Result<(), String> {
        let new = Arc::new(config(files)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Tcp {
    /// Binds the address.
    pub async fn bind(address: SocketAddr, tls: Tls) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, tls })
    }

    /// Where it listens, with the port that the kernel chose for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled; then ends the streams that watch, and waits for the rest.
    pub async fn run(
        self,
        core: Core,
        settings: Settings,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let Self { listener, tls } = self;
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(settings.keepalive)
            .with_keepalive_interval(settings.keepalive.and(Some(KEEPALIVE_ANSWERS)))
            .with_keepalive_retries(settings.keepalive.and(Some(PROBES)));
        let (open, service) = (settings.connections.clone(), Arc::clone(&core.service));
        let hands = Arc::<Hands>::default();
        let connections = accepted(incoming)
            .map(move |stream| shake_hands(stream, tls.acceptor(), Arc::clone(&hands)))
            .buffer_unordered(HANDSHAKES)
            .filter_map(move |shaken| {
                ready(shaken.and_then(|(stream, client)| open.admit(stream, client, &service)))
            });
        serve(connections, core, &settings, stop).await
    }
}

/// The addresses whose handshakes are under way.
#[derive(Default)]
struct Hands {
    under_way: Mutex<Vec<IpAddr>>,
    refusals: Seldom,
}

impl Hands {
    fn under_way(&self) -> MutexGuard<'_, Vec<IpAddr>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place for a handshake until it is dropped.
struct Hand {
    hands: Arc<Hands>,
    address: IpAddr,
}

impl Hand {
    /// None: the address has as many as it may.
    fn take(hands: &Arc<Hands>, address: IpAddr) -> Option<Self> {
        // Whoever has an IPv6 address has the others of its network.
        let address = match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            address @ IpAddr::V4(_) => address,
        };
        let mut under_way = hands.under_way();
        if under_way.iter().filter(|other| **other == address).count() >= HANDSHAKES_OF_ONE {
            drop(under_way);
            if let Some(times) = hands.refusals.times() {
                tracing::warn!(%address, times, "too many handshakes at once: refused");
            }
            return None;
        }
        under_way.push(address);
        Some(Self { hands: Arc::clone(hands), address })
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let mut under_way = self.hands.under_way();
        if let Some(at) = under_way.iter().position(|address| *address == self.address) {
            under_way.swap_remove(at);
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    hands: Arc<Hands>,
) -> Option<(TlsStream<TcpStream>, Client)> {
    let _hand = Hand::take(&hands, stream.peer_addr().ok()?.ip())?;
    let peer = stream.peer_addr().map_or_else(|_| "?".to_owned(), |peer| peer.to_string());
    let refused = |why: &dyn std::fmt::Display| {
        tracing::info!(peer, why = %why, "a connection without a valid certificate is refused");
    };
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused(&error);
            return None;
        }
        Err(_) => {
            refused(&format!("no TLS handshake within {} s", HANDSHAKE.as_secs()));
            return None;
        }
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first).and_then(|der| name(der));
    let Some(certificate) = certificate else {
        refused(&"it has neither a DNS name nor a common name that can be read");
        return None;
    };
    tracing::debug!(peer, certificate, "connected");
    let client = Client { certificate: Some(certificate), ..Client::default() };
    Some((stream, client))
}

/// The first DNS name of a certificate, else its common name. Its signature was checked before.
fn name(der: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(der).ok()?;
    let certificate = certificate.tbs_certificate();
    // One that is damaged is none of which the common name could be taken instead.
    let names = certificate.get_extension::<SubjectAltName>().ok()?;
    let dns = names.and_then(|(_, SubjectAltName(names))| {
        names.into_iter().find_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            _ => None,
        })
    });
    let common = || Some(certificate.subject().common_name().ok()??.value().into_owned());
    dns.or_else(common).filter(|name| !name.is_empty() && !name.contains(char::is_control))
}

fn config(files: &Files) -> Result<ServerConfig, String> {
    let Files { certificate, key, client_ca } = files;
    let chain = certificates("tcp.certificate", certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(wrong("tcp.key", key))?;
    let mut authorities = RootCertStore::empty();
    for authority in certificates("tcp.client_ca", client_ca)? {
        authorities.add(authority).map_err(wrong("tcp.client_ca", client_ca))?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(authorities.into(), Arc::clone(&provider))
            .build()
            .map_err(wrong("tcp.client_ca", client_ca))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, secret)
        .map_err(wrong("tcp.certificate", certificate))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(file).map_err(wrong(key, file))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(wrong(key, file))?;
    if all.is_empty() { Err(wrong(key, file)("it holds no certificate")) } else { Ok(all) }
}

fn wrong<E: std::fmt::Display>(key: &str, file: &Path) -> impl Fn(E) -> String {
    let place = format!("{key}: {}", file.display());
    move |error| format!("{place}: {error}")
}
