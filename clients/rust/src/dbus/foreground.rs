//! `HoldForeground` of `org.nestd.Manager1`, and its property `Foreground`.

use std::collections::HashMap;

use futures::{StreamExt, future::ready};
use nestd_proto::dbus::PATH;
use nestd_proto::v1::{App, ForegroundEvent, ForegroundLease, HoldForegroundRequest};
use zbus::Variant;

use super::governor::{PROPERTIES, Values, may, must};
use super::held::Held;
use super::{Dbus, MANAGER, convert::carried, watch};
use crate::{Error, Leased};

impl Dbus {
    /// See [`crate::Client::hold_foreground`].
    pub async fn hold_foreground(&self, request: HoldForegroundRequest) -> Result<Leased, Error> {
        let HoldForegroundRequest { app, reason } = request;
        let App { uid, unit, connection, certificate } = app.unwrap_or_default();
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        let texts = [
            ("unit", unit),
            ("connection", connection),
            ("certificate", certificate),
            ("reason", reason),
        ];
        for (key, value) in texts {
            carried(&value, || key.into())?;
            if !value.is_empty() {
                options.insert(key, value.into());
            }
        }
        options.extend(uid.map(|uid| ("uid", uid.into())));
        let dbus = self.clone();
        let call = async move { dbus.control(MANAGER, "HoldForeground", &options).await };
        let held = Held::take(self.clone(), MANAGER, "ReleaseForeground", call).await?;
        let mut told = None;
        let events = watch::foreground(self.clone()).await?.filter_map(move |newest| {
            // The stream owns the whole lease, not only its number: dropping it ends the lease.
            let held = &held;
            let id = held.id;
            let event = match newest {
                Err(error) => Some(Err(error)),
                Ok(newest) => {
                    let in_force = newest.0.is_some_and(|newest| newest.id == id);
                    let new = told.replace(in_force) != Some(in_force);
                    new.then_some(Ok(ForegroundEvent { id, in_force }))
                }
            };
            ready(event)
        });
        Ok(events.boxed())
    }
}

/// The lease in force.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Newest(pub(super) Option<ForegroundLease>);

pub(super) async fn newest(dbus: &Dbus) -> Result<Newest, Error> {
    let mut all: Values = dbus.call_at(PATH, PROPERTIES, "GetAll", &MANAGER).await?;
    let values: Values = must(&mut all, "Foreground")?;
    Ok(Newest(if values.is_empty() { None } else { Some(lease(values)?) }))
}

pub(super) fn lease(mut values: Values) -> Result<ForegroundLease, Error> {
    let app = App {
        uid: may(&mut values, "uid")?,
        unit: may(&mut values, "unit")?.unwrap_or_default(),
        connection: may(&mut values, "connection")?.unwrap_or_default(),
        certificate: may(&mut values, "certificate")?.unwrap_or_default(),
    };
    Ok(ForegroundLease {
        id: must(&mut values, "id")?,
        client: must(&mut values, "client")?,
        app: Some(app),
        reason: must(&mut values, "reason")?,
    })
}
