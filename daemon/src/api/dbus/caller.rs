//! Who calls, as the bus says.

use zbus::message::Header;
use zbus::{Connection, fdo};

use super::error::Failure;
use super::handles::{Handle, Handles};
use crate::api::access::unit;
use crate::types::{Client, Error};

/// Takes a path for the caller, and asks the bus who that is. In this order: a caller that leaves before
/// the bus answers is refused, one that leaves later finds its path in the list.
pub(super) async fn caller(
    handles: &Handles,
    token: Option<String>,
    header: &Header<'_>,
    connection: &Connection,
) -> Result<(Handle, Client), Failure> {
    let handle = handles.take(header.sender().ok_or_else(nobody)?, token)?;
    Ok((handle, client(header, connection).await?))
}

/// Asks the bus who has sent a message.
pub(super) async fn client(
    header: &Header<'_>,
    connection: &Connection,
) -> Result<Client, Failure> {
    let sender = header.sender().ok_or_else(nobody)?;
    let credentials = fdo::DBusProxy::new(connection)
        .await?
        .get_connection_credentials(sender.into())
        .await
        .map_err(|error| Error::NotAllowed {
            what: format!("the bus does not know the caller: {error}"),
        })?;
    let pid = credentials.process_id();
    Ok(Client {
        uid: credentials.unix_user_id(),
        gids: credentials.unix_group_ids().cloned().unwrap_or_default(),
        pid,
        name: sender.to_string(),
        certificate: None,
        unit: unit(pid),
    })
}

fn nobody() -> Error {
    Error::NotAllowed { what: "a call without a sender".into() }
}
