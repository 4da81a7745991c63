//! Who calls.

use std::fmt;

/// A client, as the kernel, the bus or its certificate vouches for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Its user; none if the transport could not tell.
    pub uid: Option<u32>,
    /// The groups of its process, supplementary ones included.
    pub gids: Vec<u32>,
    /// Its process; none if the transport could not tell.
    pub pid: Option<u32>,
    /// Its connection, while the daemon runs: its unique name on the bus, or one that the daemon gave it.
    pub name: String,
    /// The name in its certificate, on TCP; a client that has one has no user.
    pub certificate: Option<String>,
    /// The systemd unit of its process, or empty. A label: the process may have ended since, and its
    /// number may be another's, so nothing is allowed by it.
    pub unit: String,
}

impl Client {
    /// Who it is, whatever the connection; None if that is not known.
    #[must_use]
    pub fn user(&self) -> Option<String> {
        match &self.certificate {
            Some(certificate) => Some(format!("cert {certificate}")),
            None => self.uid.map(|uid| format!("uid {uid}")),
        }
    }

    /// Whose share it uses: its user's, or that of its connection where the user is not known.
    #[must_use]
    pub fn account(&self) -> String {
        self.user().unwrap_or_else(|| self.name.clone())
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(certificate) = &self.certificate {
            return write!(f, "cert {certificate}");
        }
        let number = |value: Option<u32>| value.map_or_else(|| "?".to_owned(), |v| v.to_string());
        write!(f, "uid {} pid {}", number(self.uid), number(self.pid))?;
        for label in [&self.name, &self.unit] {
            if !label.is_empty() {
                write!(f, " {label}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_by_what_is_known() {
        assert_eq!(Client::default().to_string(), "uid ? pid ?");
        let client = Client {
            uid: Some(7),
            pid: Some(42),
            name: ":1.5".into(),
            unit: "captions.service".into(),
            ..Client::default()
        };
        assert_eq!(client.to_string(), "uid 7 pid 42 :1.5 captions.service");
        let client = Client { certificate: Some("tablet".into()), ..Client::default() };
        assert_eq!(client.to_string(), "cert tablet");
    }
}
