//! `[tcp]`: the gRPC API on TCP, with mutual TLS or not at all.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::reader::Reader;

/// Where to listen, and the files of mutual TLS, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The address.
    pub listen: SocketAddr,
    /// The daemon's certificate, with the chain that leads to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that clients' certificates must come from.
    pub client_ca: PathBuf,
}

const LISTEN: &str = "tcp.listen";
const FILES: [&str; 3] = ["tcp.certificate", "tcp.key", "tcp.client_ca"];

pub(super) fn read(read: &mut Reader) -> Option<Tcp> {
    let listen = read.parsed(LISTEN, |text| match text {
        "" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| {
            "is not an address with a port such as \"192.168.7.1:7878\" or \"[::]:7878\"".into()
        }),
    });
    let files = FILES.map(|key| read.optional_path(key));
    let listen: SocketAddr = listen?;
    if !cfg!(feature = "tcp") {
        read.wrong(LISTEN, "this nestd was built without TCP (its cargo feature \"tcp\")");
        return None;
    }
    let missing: Vec<_> =
        FILES.iter().zip(&files).filter(|(_, file)| file.is_none()).map(|(key, _)| *key).collect();
    let [Some(certificate), Some(key), Some(client_ca)] = files else {
        let missing = missing.join(", ");
        read.wrong(LISTEN, format!("TCP is served with mutual TLS only: set {missing}, too"));
        return None;
    };
    Some(Tcp { listen, certificate, key, client_ca })
}
