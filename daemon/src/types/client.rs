//! Who calls.

use std::fmt;

use super::Error;

/// A client, as the socket or the bus vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its user; none if the transport could not tell.
    pub uid: Option<u32>,
    /// Its process; none if the transport could not tell.
    pub pid: Option<u32>,
    /// Its connection: its unique name on the bus, or the socket's with a number.
    pub name: String,
}

impl Client {
    /// Who it is, whatever the connection; None if that is not known.
    #[must_use]
    pub fn user(&self) -> Option<String> {
        self.uid.map(|uid| format!("uid {uid}"))
    }

    /// Whether it may change what others share: only root and the daemon's own user may, and nobody
    /// whose user is not known.
    pub fn check_control(&self, what: &str) -> Result<(), Error> {
        let own = nix::unistd::geteuid().as_raw();
        match self.uid {
            Some(uid) if uid == 0 || uid == own => Ok(()),
            _ => Err(Error::NotAllowed {
                what: format!("{what} is for root and the user that nestd runs as"),
            }),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<u32>| value.map_or_else(|| "?".to_owned(), |v| v.to_string());
        write!(f, "uid {} pid {}", number(self.uid), number(self.pid))?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " {}", self.name) }
    }
}
