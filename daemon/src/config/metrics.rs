//! `[metrics]`: where the metrics are served. Never beyond this machine.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the metrics are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    #[default]
    Off,
    /// On a Unix socket.
    Unix(PathBuf),
    /// On a port of a loopback address.
    Tcp(SocketAddr),
}

/// Reads `metrics.listen`.
pub(super) fn listen(text: &str) -> Result<Listen, String> {
    if text.is_empty() {
        return Ok(Listen::Off);
    }
    if text.starts_with('/') {
        return Ok(Listen::Unix(text.into()));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_loopback() => {
            let own = "\"127.0.0.1:PORT\" or \"[::1]:PORT\"";
            Err(format!("is not an address of this machine alone: metrics are for {own}"))
        }
        Ok(address) if address.port() != 0 => Ok(Listen::Tcp(address)),
        _ => Err("is not a path, \"127.0.0.1:PORT\", \"[::1]:PORT\", or empty".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_listened_on() {
        assert_eq!(listen(""), Ok(Listen::Off));
        assert_eq!(listen("/run/x.sock"), Ok(Listen::Unix("/run/x.sock".into())));
        assert_eq!(listen("127.0.0.1:9464"), Ok(Listen::Tcp(([127, 0, 0, 1], 9464).into())));
        assert!(matches!(listen("[::1]:9464"), Ok(Listen::Tcp(_))));
        for wrong in [
            "0.0.0.0:9464",
            "[::]:9464",
            "192.168.1.2:9464",
            "[::ffff:127.0.0.1]:9464",
            "127.0.0.1:0",
            "127.0.0.1",
            "localhost:9464",
            "metrics.sock",
            ":9464",
        ] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }
}
