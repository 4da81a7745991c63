//! `nestctl foreground`: says which app is in the foreground, until it is ended.

use futures::StreamExt;
use nestd_client::Client;
use nestd_client::v1::{App, ForegroundEvent, ForegroundLease, HoldForegroundRequest};
use serde_json::{Value, json};

use crate::args::ForegroundArgs;
use crate::problem::Problem;
use crate::render::Screen;

/// Holds the lease until it is interrupted, and tells whether it is in force.
pub async fn hold(
    client: &Client,
    args: &ForegroundArgs,
    screen: &mut Screen,
) -> Result<(), Problem> {
    let ForegroundArgs { uid, unit, connection, certificate, reason } = args;
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let app = App {
        uid: *uid,
        unit: name(unit),
        connection: name(connection),
        certificate: name(certificate),
    };
    let request = HoldForegroundRequest { app: Some(app), reason: reason.clone() };
    let mut lease = client.hold_foreground(request).await?;
    while let Some(event) = lease.next().await {
        let ForegroundEvent { id, in_force } = event?;
        if screen.json {
            screen.value(&json!({ "id": id, "in_force": in_force }))?;
        } else {
            let how = if in_force { "is in force" } else { "waits behind a newer one" };
            screen.line(&format!("lease {id} {how}; Ctrl-C ends it"))?;
        }
    }
    Ok(())
}

/// An app in a line.
pub fn app(app: &App) -> String {
    let App { uid, unit, connection, certificate } = app;
    let mut parts: Vec<_> = uid.iter().map(|uid| format!("uid {uid}")).collect();
    for (what, name) in [("unit", unit), ("connection", connection), ("certificate", certificate)] {
        parts.extend((!name.is_empty()).then(|| format!("{what} {name}")));
    }
    parts.join(" ")
}

/// The object that `--json` prints.
pub fn value(lease: &ForegroundLease) -> Value {
    let App { uid, unit, connection, certificate } = lease.app.clone().unwrap_or_default();
    json!({
        "id": lease.id,
        "client": lease.client,
        "app": {
            "uid": uid, "unit": unit, "connection": connection, "certificate": certificate,
        },
        "reason": lease.reason,
    })
}
