//! Who calls, as the bus says.

use zbus::message::Header;
use zbus::{Connection, fdo};

use super::error::Failure;
use super::handles::{Handle, Handles};
use crate::types::{Client, Error};

/// Takes a path for the caller, and asks the bus who that is. In this order: a caller that leaves before
/// the bus answers is refused, one that leaves later finds its path in the list.
pub(super) async fn caller(
    handles: &Handles,
    token: Option<String>,
    header: &Header<'_>,
    connection: &Connection,
) -> Result<(Handle, Client), Failure> {
    let unknown = || Error::NotAllowed { what: "a call without a sender".into() };
    let sender = header.sender().ok_or_else(unknown)?;
    let handle = handles.take(sender, token)?;
    let credentials = fdo::DBusProxy::new(connection)
        .await?
        .get_connection_credentials(sender.into())
        .await
        .map_err(|error| Error::NotAllowed {
            what: format!("the bus does not know the caller: {error}"),
        })?;
    let client = Client {
        uid: credentials.unix_user_id(),
        pid: credentials.process_id(),
        name: sender.to_string(),
    };
    Ok((handle, client))
}
