//! Asks polkit about who has not the class `control`. Whatever goes wrong is a refusal.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use zbus::message::Header;
use zbus::proxy::MethodFlags;
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{
    AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject,
};

use crate::types::{Client, Error};

/// How long polkit may take when it asks nobody.
const ANSWERS: Duration = Duration::from_secs(5);
/// How long a person may take to authenticate.
const AUTHENTICATES: Duration = Duration::from_secs(120);

/// Questions that are open: of one account, and in all.
const OPEN_OF_ONE: usize = 2;
const OPEN: usize = 8;
/// When to ask again while there are too many.
const RETRY_MS: u64 = 1000;

/// Who is asked about. Cheap to clone.
#[derive(Clone)]
pub(super) struct Polkit {
    /// Polkit is on the system bus; on another one anybody could have its name.
    on_system_bus: bool,
    /// The accounts that questions are open about.
    open: Arc<Mutex<Vec<String>>>,
}

/// A question that is open until it is dropped.
pub(super) struct Question<'a> {
    polkit: &'a Polkit,
    account: String,
}

impl Polkit {
    pub(super) fn new(on_system_bus: bool) -> Self {
        Self { on_system_bus, open: Arc::default() }
    }

    fn open(&self) -> MutexGuard<'_, Vec<String>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a question about this client. Each may be a dialog, for minutes.
    pub(super) fn question(&self, client: &Client) -> Result<Question<'_>, Error> {
        let account = client.account();
        let mut open = self.open();
        let own = open.iter().filter(|other| **other == account).count();
        if own >= OPEN_OF_ONE || open.len() >= OPEN {
            let why =
                format!("{own} questions to polkit of this user are open, {} in all", open.len());
            return Err(Error::Busy { why, retry_after_ms: RETRY_MS });
        }
        open.push(account.clone());
        Ok(Question { polkit: self, account })
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let mut open = self.polkit.open();
        if let Some(at) = open.iter().position(|account| *account == self.account) {
            open.swap_remove(at);
        }
    }
}

impl Question<'_> {
    /// Whether polkit allows the sender the action. The error says why not, to stand behind "and".
    pub(super) async fn ask(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: &str,
        interactive: bool,
        gone: &CancellationToken,
    ) -> Result<(), String> {
        if !self.polkit.on_system_bus {
            return Err("polkit is asked on the system bus only".into());
        }
        authorize(connection, header, action, interactive, gone).await
    }
}

async fn authorize(
    connection: &Connection,
    header: &Header<'_>,
    action: &str,
    interactive: bool,
    gone: &CancellationToken,
) -> Result<(), String> {
    let broken = |error: &dyn std::fmt::Display| format!("polkit cannot be asked: {error}");
    let subject = Subject::new_for_message_header(header).map_err(|error| broken(&error))?;
    let (flags, patience) = if interactive {
        (CheckAuthorizationFlags::ALLOW_USER_INTERACTION, AUTHENTICATES)
    } else {
        (CheckAuthorizationFlags::empty(), ANSWERS)
    };
    // A name for the question, so that it can be taken back: a sender has no two calls of one number.
    let sender = header.sender().map(ToString::to_string).unwrap_or_default();
    let question = format!("{sender}/{}", header.primary().serial_num());
    let asked = async {
        let none: HashMap<&str, &str> = HashMap::new();
        let polkit = AuthorityProxy::new(connection).await?;
        // With flags, since a call without has the connection's limit of time, which is not a person's.
        polkit
            .inner()
            .call_with_flags::<_, _, AuthorizationResult>(
                "CheckAuthorization",
                MethodFlags::empty(),
                &(&subject, action, none, flags, &question),
            )
            .await
    };
    let answered = tokio::select! {
        answered = timeout(patience, asked) => answered,
        () = gone.cancelled() => {
            tokio::spawn(take_back(connection.clone(), question));
            return Err("the caller has left the bus".into());
        }
    };
    match answered {
        Ok(Ok(Some(result))) if result.is_authorized => Ok(()),
        Ok(Ok(Some(result))) if result.is_challenge && !interactive => Err(format!(
            "polkit wants somebody to authenticate for {action}, which the call does not allow"
        )),
        Ok(Ok(Some(result))) if result.is_challenge => {
            Err(format!("nobody has authenticated for {action}, as polkit wants it"))
        }
        Ok(Ok(_)) => Err(format!("polkit does not allow {action}")),
        Ok(Err(error)) if is_absent(&error) => {
            Err(format!("polkit, which could allow {action}, is not on the bus"))
        }
        Ok(Err(error)) => Err(broken(&error)),
        Err(_) => {
            tokio::spawn(take_back(connection.clone(), question));
            Err(broken(&format!("no answer in {} s", patience.as_secs())))
        }
    }
}

/// Has a dialog go away that nobody waits for any more.
async fn take_back(connection: Connection, question: String) {
    let cancelled = async {
        let polkit = AuthorityProxy::new(&connection).await?;
        polkit.cancel_check_authorization(&question).await
    };
    if let Ok(Err(error)) = timeout(ANSWERS, cancelled).await {
        tracing::debug!(%error, "a question to polkit cannot be taken back");
    }
}

fn is_absent(error: &zbus::Error) -> bool {
    let zbus::Error::FDO(error) = error else { return false };
    matches!(
        **error,
        fdo::Error::ServiceUnknown(_)
            | fdo::Error::NameHasNoOwner(_)
            | fdo::Error::SpawnFailed(_)
            | fdo::Error::SpawnChildExited(_)
            | fdo::Error::SpawnServiceNotFound(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(uid: u32) -> Client {
        Client { uid: Some(uid), ..Client::default() }
    }

    #[test]
    fn few_questions_are_open() {
        let polkit = Polkit::new(true);
        let of_one: Vec<_> =
            (0..OPEN_OF_ONE).map(|_| polkit.question(&client(7)).unwrap()).collect();
        assert!(matches!(polkit.question(&client(7)), Err(Error::Busy { .. })));
        let others: Vec<_> =
            (8..).map_while(|uid| polkit.question(&client(uid)).ok()).take(OPEN).collect();
        assert_eq!(of_one.len() + others.len(), OPEN);
        drop(of_one);
        assert!(polkit.question(&client(7)).is_ok());
        drop(others);
        assert!(polkit.open().is_empty());
    }
}
