//! `org.nestd.Governor1`: the report from its properties, pins and holds.

use std::collections::HashMap;

use futures::{StreamExt, future::ready};
use nestd_proto::dbus::PATH;
use nestd_proto::v1::{ActiveHold, GovernorReport, HoldEvent, HoldRequest, Readings, SizeChange};
use zbus::{OwnedVariant, Variant};

use super::held::Held;
use super::{Dbus, GOVERNOR, convert::carried, watch};
use crate::{Error, Holding};

pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

pub(super) type Values = HashMap<String, OwnedVariant>;

impl Dbus {
    /// See [`crate::Client::governor`].
    pub async fn governor(&self) -> Result<GovernorReport, Error> {
        let values: Values = self.call_at(PATH, PROPERTIES, "GetAll", &GOVERNOR).await?;
        report(values)
    }

    /// See [`crate::Client::pin`].
    pub async fn pin(&self, size: &str) -> Result<(), Error> {
        carried(size, || "size".into())?;
        self.control(GOVERNOR, "Pin", &size).await
    }

    /// See [`crate::Client::hold`].
    pub async fn hold(&self, request: HoldRequest) -> Result<Holding, Error> {
        let HoldRequest { min_size, max_size, no_background, reason } = request;
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        for (key, value) in [("min_size", min_size), ("max_size", max_size), ("reason", reason)] {
            carried(&value, || key.into())?;
            if !value.is_empty() {
                options.insert(key, value.into());
            }
        }
        if no_background {
            options.insert("no_background", true.into());
        }
        let dbus = self.clone();
        let call = async move { dbus.call_at(PATH, GOVERNOR, "Hold", &options).await };
        let held = Held::take(self.clone(), GOVERNOR, "Release", call).await?;
        let mut told = None;
        let events = watch::governor(self.clone()).await?.filter_map(move |report| {
            // The stream owns the whole hold, not only its number: dropping it ends the hold.
            let held = &held;
            let id = held.id;
            let event = match report {
                Err(error) => Some(Err(error)),
                Ok(report) if told.as_ref() == Some(&report.active_size) => None,
                Ok(report) => {
                    told = Some(report.active_size.clone());
                    Some(Ok(HoldEvent { id, active_size: report.active_size }))
                }
            };
            ready(event)
        });
        Ok(events.boxed())
    }
}

pub(super) fn report(mut values: Values) -> Result<GovernorReport, Error> {
    let holds: Vec<(u64, String, String, String, bool, String)> = must(&mut values, "Holds")?;
    let (from, to, reason, duration_us): (String, String, String, u64) =
        must(&mut values, "LastChange")?;
    let readings = Readings {
        mem_available_mib: may(&mut values, "MemAvailableMib")?,
        mem_total_mib: may(&mut values, "MemTotalMib")?,
        swap_used_mib: may(&mut values, "SwapUsedMib")?,
        resident_mib: may(&mut values, "ResidentMib")?,
        psi_some_avg10: may(&mut values, "PsiSomeAvg10")?,
        psi_full_avg10: may(&mut values, "PsiFullAvg10")?,
        battery_percent: may(&mut values, "BatteryPercent")?,
        battery_power_w: may(&mut values, "BatteryPowerW")?,
        time_to_empty_s: may(&mut values, "TimeToEmptyS")?,
        battery_warning: may(&mut values, "BatteryWarning")?,
        on_ac: may(&mut values, "OnAc")?,
        temp_c: may(&mut values, "TempC")?,
        power_profile: may(&mut values, "PowerProfile")?,
    };
    Ok(GovernorReport {
        enabled: must(&mut values, "Enabled")?,
        profile: must(&mut values, "Profile")?,
        readings: Some(readings),
        active_size: must(&mut values, "ActiveSize")?,
        selected_size: must(&mut values, "SelectedSize")?,
        level: must(&mut values, "Level")?,
        cause: must(&mut values, "Cause")?,
        reason: must(&mut values, "Reason")?,
        next_threshold: must(&mut values, "NextThreshold")?,
        background_allowed: must(&mut values, "BackgroundAllowed")?,
        max_context_tokens: must(&mut values, "MaxContextTokens")?,
        max_parallel_requests: must(&mut values, "MaxParallelRequests")?,
        shed: must(&mut values, "Shed")?,
        holds: holds.into_iter().map(hold).collect(),
        pin: must(&mut values, "Pin")?,
        problem: must(&mut values, "Problem")?,
        energy_per_token_j: may(&mut values, "EnergyPerTokenJ")?,
        last_change: (!to.is_empty()).then_some(SizeChange { from, to, reason, duration_us }),
    })
}

fn hold(row: (u64, String, String, String, bool, String)) -> ActiveHold {
    let (id, client, min_size, max_size, no_background, reason) = row;
    ActiveHold { id, client, min_size, max_size, no_background, reason }
}

/// A property that is there only with its sensor.
pub(super) fn may<T: TryFrom<OwnedVariant>>(
    values: &mut Values,
    name: &str,
) -> Result<Option<T>, Error> {
    let Some(value) = values.remove(name) else { return Ok(None) };
    let wrong = || Error::Unexpected(format!("the property {name} is of another type"));
    T::try_from(value).map(Some).map_err(|_| wrong())
}

pub(super) fn must<T: TryFrom<OwnedVariant>>(values: &mut Values, name: &str) -> Result<T, Error> {
    let missing = || Error::Unexpected(format!("nestd has no property {name}: it is older"));
    may(values, name)?.ok_or_else(missing)
}
