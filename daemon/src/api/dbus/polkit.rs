//! Asks polkit about who has not the class `control`. Whatever goes wrong is a refusal.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::timeout;
use zbus::message::Header;
use zbus::proxy::MethodFlags;
use zbus::{Connection, fdo};
use zbus_polkit::policykit1::{
    AuthorityProxy, AuthorizationResult, CheckAuthorizationFlags, Subject,
};

/// How long polkit may take when it asks nobody.
const ANSWERS: Duration = Duration::from_secs(5);
/// How long a person may take to authenticate.
const AUTHENTICATES: Duration = Duration::from_secs(120);

/// Whether polkit allows the sender the action. The error says why not, to stand behind "and".
pub(super) async fn authorize(
    connection: &Connection,
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
    match timeout(patience, asked).await {
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
