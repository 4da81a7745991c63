//! The interface `org.nestd.Governor1`.

use nestd_policy::decide::Decision;
use nestd_policy::holds::Hold;
use nestd_policy::snapshot::Snapshot;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedVariant, Variant, fdo, interface};

use super::Parts;
use super::convert::{Options, clean, string, wish};
use super::error::Failure;
use super::held::Held;
use crate::governor::{Change, Report};
use crate::types::Error;

/// The object's second interface.
pub(super) struct Governor {
    parts: Parts,
    holds: Held,
}

/// `a(tsssbs)`
type HoldRow = (u64, String, String, String, bool, String);
/// `(ssst)`
type ChangeRow = (String, String, String, u64);

impl Governor {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts, holds: Held::default() }
    }

    fn report(&self) -> Report {
        self.parts.core.governor.report()
    }

    fn decided<T: Default>(&self, part: impl Fn(&Decision) -> T) -> T {
        self.report().decision.as_ref().map(part).unwrap_or_default()
    }

    fn reading<T>(&self, part: impl Fn(&Snapshot) -> Option<T>) -> fdo::Result<T> {
        let absent = || fdo::Error::UnknownProperty("there is no such sensor".into());
        part(&self.report().snapshot).ok_or_else(absent)
    }
}

// The interface macro wants headers by value.
#[allow(clippy::needless_pass_by_value)]
#[interface(name = "org.nestd.Governor1", introspection_docs = false)]
impl Governor {
    #[zbus(property)]
    fn enabled(&self) -> bool {
        self.report().enabled
    }

    #[zbus(property)]
    fn profile(&self) -> String {
        self.report().profile
    }

    #[zbus(property)]
    fn active_size(&self) -> String {
        self.report().active_size
    }

    #[zbus(property)]
    fn selected_size(&self) -> String {
        self.decided(|decision| decision.size.clone())
    }

    #[zbus(property)]
    fn level(&self) -> String {
        self.decided(|decision| decision.level.name().into())
    }

    #[zbus(property)]
    fn cause(&self) -> String {
        self.decided(|decision| decision.cause.name().into())
    }

    #[zbus(property)]
    fn reason(&self) -> String {
        self.decided(|decision| decision.reason.clone())
    }

    #[zbus(property)]
    fn next_threshold(&self) -> String {
        self.decided(|decision| decision.next_threshold.clone())
    }

    #[zbus(property)]
    fn background_allowed(&self) -> bool {
        self.report().decision.is_none_or(|decision| decision.background_allowed)
    }

    #[zbus(property)]
    fn max_context_tokens(&self) -> u32 {
        self.decided(|decision| decision.max_context)
    }

    #[zbus(property)]
    fn max_parallel_requests(&self) -> u32 {
        self.decided(|decision| decision.max_parallel)
    }

    #[zbus(property)]
    fn shed(&self) -> String {
        self.decided(|decision| decision.shed.name().into())
    }

    #[zbus(property)]
    fn holds(&self) -> Vec<HoldRow> {
        self.report().holds.holds.into_iter().map(hold_row).collect()
    }

    #[zbus(property)]
    fn pin(&self) -> String {
        self.report().holds.pin.unwrap_or_default()
    }

    #[zbus(property)]
    fn problem(&self) -> String {
        clean(&self.report().problem).into_owned()
    }

    #[zbus(property)]
    fn last_change(&self) -> ChangeRow {
        change_row(self.report().last_change.unwrap_or_default())
    }

    #[zbus(property)]
    fn energy_per_token_j(&self) -> fdo::Result<f64> {
        let unknown = || fdo::Error::UnknownProperty("it is not known yet".into());
        self.report().energy_per_token_j.ok_or_else(unknown)
    }

    #[zbus(property)]
    fn mem_available_mib(&self) -> fdo::Result<u64> {
        self.reading(|snapshot| Some(snapshot.memory?.available_mib))
    }

    #[zbus(property)]
    fn mem_total_mib(&self) -> fdo::Result<u64> {
        self.reading(|snapshot| Some(snapshot.memory?.total_mib))
    }

    #[zbus(property)]
    fn swap_used_mib(&self) -> fdo::Result<u64> {
        self.reading(|snapshot| Some(snapshot.memory?.swap_used_mib))
    }

    #[zbus(property)]
    fn resident_mib(&self) -> fdo::Result<u64> {
        self.reading(|snapshot| Some(snapshot.memory?.resident_mib))
    }

    #[zbus(property)]
    fn psi_some_avg10(&self) -> fdo::Result<f64> {
        self.reading(|snapshot| Some(snapshot.pressure?.some_avg10))
    }

    #[zbus(property)]
    fn psi_full_avg10(&self) -> fdo::Result<f64> {
        self.reading(|snapshot| Some(snapshot.pressure?.full_avg10))
    }

    #[zbus(property)]
    fn battery_percent(&self) -> fdo::Result<f64> {
        self.reading(|snapshot| Some(snapshot.battery?.percent))
    }

    #[zbus(property)]
    fn battery_power_w(&self) -> fdo::Result<f64> {
        self.reading(|snapshot| snapshot.battery?.power_w)
    }

    #[zbus(property)]
    fn time_to_empty_s(&self) -> fdo::Result<u64> {
        self.reading(|snapshot| snapshot.battery?.time_to_empty_s)
    }

    #[zbus(property)]
    fn battery_warning(&self) -> fdo::Result<String> {
        self.reading(|snapshot| Some(snapshot.battery?.warning?.name().to_owned()))
    }

    #[zbus(property)]
    fn on_ac(&self) -> fdo::Result<bool> {
        self.reading(|snapshot| snapshot.on_ac)
    }

    #[zbus(property)]
    fn temp_c(&self) -> fdo::Result<f64> {
        self.reading(|snapshot| snapshot.temperature_c)
    }

    #[zbus(property)]
    fn power_profile(&self) -> fdo::Result<String> {
        self.reading(|snapshot| Some(snapshot.power_profile?.name().into()))
    }

    #[zbus(signal)]
    pub(super) async fn size_changed(
        emitter: &SignalEmitter<'_>,
        from: &str,
        to: &str,
        reason: &str,
        duration_us: u64,
    ) -> zbus::Result<()>;

    #[zbus(out_args("hold"))]
    async fn hold(
        &self,
        options: Options,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<u64, Failure> {
        let wish = wish(options)?;
        let (handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        let held = self.parts.core.governor.hold(&client, wish)?;
        let id = held.id();
        self.holds.keep(id, held, client.name, handle);
        Ok(id)
    }

    fn release(&self, hold: u64, #[zbus(header)] header: Header<'_>) -> Result<(), Failure> {
        if self.holds.release(hold, &header) {
            return Ok(());
        }
        Err(Error::invalid("hold", "is not a hold of this caller").into())
    }

    #[zbus(name = "Pin")]
    async fn pin_size(
        &self,
        size: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), Failure> {
        let (_handle, client) = self.parts.callers.caller(None, &header, connection).await?;
        Ok(self.parts.core.governor.pin(&client, &size).await?)
    }
}

fn hold_row(hold: Hold) -> HoldRow {
    let Hold { id, client, min_size, max_size, no_background, reason } = hold;
    (id, client, min_size.unwrap_or_default(), max_size.unwrap_or_default(), no_background, reason)
}

fn change_row(change: Change) -> ChangeRow {
    (change.from, change.to, change.reason, change.duration_us)
}

/// Every property that there is, for `PropertiesChanged`.
pub(super) fn properties(report: &Report) -> zbus::Result<Vec<(&'static str, OwnedVariant)>> {
    let Report {
        enabled,
        profile,
        snapshot,
        active_size,
        decision,
        holds,
        problem,
        last_change,
        energy_per_token_j,
    } = report;
    let text =
        |part: fn(&Decision) -> &str| string(decision.as_ref().map(part).unwrap_or_default());
    let number = |part: fn(&Decision) -> u32| OwnedVariant::from(decision.as_ref().map_or(0, part));
    let background = decision.as_ref().is_none_or(|decision| decision.background_allowed);
    let rows: Vec<HoldRow> = holds.holds.iter().cloned().map(hold_row).collect();
    let change = change_row(last_change.clone().unwrap_or_default());
    let mut all = vec![
        ("Enabled", OwnedVariant::from(*enabled)),
        ("Profile", string(profile)),
        ("ActiveSize", string(active_size)),
        ("SelectedSize", text(|decision| &decision.size)),
        ("Level", text(|decision| decision.level.name())),
        ("Cause", text(|decision| decision.cause.name())),
        ("Reason", text(|decision| &decision.reason)),
        ("NextThreshold", text(|decision| &decision.next_threshold)),
        ("BackgroundAllowed", OwnedVariant::from(background)),
        ("MaxContextTokens", number(|decision| decision.max_context)),
        ("MaxParallelRequests", number(|decision| decision.max_parallel)),
        ("Shed", text(|decision| decision.shed.name())),
        ("Holds", Variant::from(rows).try_to_owned()?),
        ("Pin", string(holds.pin.as_deref().unwrap_or_default())),
        ("Problem", string(problem)),
        ("LastChange", Variant::from(change).try_to_owned()?),
    ];
    let Snapshot { memory, pressure, on_ac, battery, temperature_c, power_profile, sleeping: _ } =
        *snapshot;
    let readings = [
        ("MemAvailableMib", memory.map(|memory| memory.available_mib.into())),
        ("MemTotalMib", memory.map(|memory| memory.total_mib.into())),
        ("SwapUsedMib", memory.map(|memory| memory.swap_used_mib.into())),
        ("ResidentMib", memory.map(|memory| memory.resident_mib.into())),
        ("PsiSomeAvg10", pressure.map(|pressure| pressure.some_avg10.into())),
        ("PsiFullAvg10", pressure.map(|pressure| pressure.full_avg10.into())),
        ("BatteryPercent", battery.map(|battery| battery.percent.into())),
        ("BatteryPowerW", battery.and_then(|battery| Some(battery.power_w?.into()))),
        ("TimeToEmptyS", battery.and_then(|battery| Some(battery.time_to_empty_s?.into()))),
        ("BatteryWarning", battery.and_then(|battery| Some(string(battery.warning?.name())))),
        ("OnAc", on_ac.map(OwnedVariant::from)),
        ("TempC", temperature_c.map(OwnedVariant::from)),
        ("EnergyPerTokenJ", energy_per_token_j.map(OwnedVariant::from)),
        ("PowerProfile", power_profile.map(|profile| string(profile.name()))),
    ];
    all.extend(readings.into_iter().filter_map(|(name, value)| Some((name, value?))));
    Ok(all)
}
