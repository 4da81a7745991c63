//! Asks polkit about who has not the class `control`. Whatever goes wrong is a refusal.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::timeout;
use zbus::message::Header;
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{AuthorityProxy, CheckAuthorizationFlags, Subject};

use super::Bus;

/// How long polkit may take when it asks nobody.
const ANSWERS: Duration = Duration::from_secs(5);
/// How long a person may take to authenticate.
const AUTHENTICATES: Duration = Duration::from_secs(120);

/// Where polkit is. The connection is its own, since the daemon's gives no answer time enough for a person.
pub(super) struct Polkit {
    bus: Bus,
    connection: OnceCell<Connection>,
    /// Numbers the questions, so that one can be taken back.
    questions: AtomicU64,
}

impl Polkit {
    pub(super) fn new(bus: Bus) -> Self {
        Self { bus, connection: OnceCell::new(), questions: AtomicU64::new(0) }
    }

    /// Whether polkit allows the sender the action. The error says why not, to stand behind "and".
    pub(super) async fn authorize(
        &self,
        header: &Header<'_>,
        action: &str,
        interactive: bool,
    ) -> Result<(), String> {
        let broken = |error: &dyn std::fmt::Display| format!("polkit cannot be asked: {error}");
        let subject = Subject::new_for_message_header(header).map_err(|error| broken(&error))?;
        let (flags, patience) = if interactive {
            (CheckAuthorizationFlags::ALLOW_USER_INTERACTION, AUTHENTICATES)
        } else {
            (CheckAuthorizationFlags::empty(), ANSWERS)
        };
        let question = format!("nestd{}", self.questions.fetch_add(1, Ordering::Relaxed));
        let asked = async {
            let connection = self.connection.get_or_try_init(|| self.bus.builder().build()).await?;
            let polkit = AuthorityProxy::new(connection).await?;
            polkit
                .check_authorization(&subject, action, &HashMap::new(), flags, &question)
                .await
        };
        match timeout(patience, asked).await {
            Ok(Ok(result)) if result.is_authorized => Ok(()),
            Ok(Ok(result)) if result.is_challenge && !interactive => Err(format!(
                "polkit wants somebody to authenticate for {action}, for which the call must allow \
                 interactive authorization"
            )),
            Ok(Ok(_)) => Err(format!("polkit does not allow {action}")),
            Ok(Err(error)) if is_absent(&error) => {
                Err(format!("polkit, which could allow {action}, is not on the bus"))
            }
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => {
                self.take_back(&question).await;
                Err(broken(&format!("no answer in {} s", patience.as_secs())))
            }
        }
    }

    /// Has a dialog go away that nobody waits for any more.
    async fn take_back(&self, question: &str) {
        let Some(connection) = self.connection.get() else { return };
        let (connection, question) = (connection.clone(), question.to_owned());
        tokio::spawn(async move {
            let cancelled = async {
                let polkit = AuthorityProxy::new(&connection).await?;
                polkit.cancel_check_authorization(&question).await
            };
            if let Ok(Err(error)) = timeout(ANSWERS, cancelled).await {
                tracing::debug!(%error, "a question to polkit cannot be taken back");
            }
        });
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
