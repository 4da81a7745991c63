//! The service `nestd.v1.Governor`.

use futures::{StreamExt, stream};
use nestd_policy::decide::Decision;
use nestd_policy::holds::Hold;
use nestd_policy::snapshot::Snapshot;
use nestd_proto::v1;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::error::status;
use super::services::{Api, Streaming, client, refuse};
use crate::governor::{Change, Report, Wish};
use crate::types::Error;

#[tonic::async_trait]
impl v1::governor_server::Governor for Api {
    async fn get(
        &self,
        _: Request<v1::GetGovernorRequest>,
    ) -> Result<Response<v1::GovernorReport>, Status> {
        Ok(Response::new(report(self.core.governor.report())))
    }

    type WatchStream = Streaming<v1::GovernorReport>;

    async fn watch(
        &self,
        _: Request<v1::WatchGovernorRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let reports = WatchStream::new(self.core.governor.watch()).map(|told| Ok(report(told)));
        Ok(Response::new(self.until_stopped(reports)))
    }

    type HoldStream = Streaming<v1::HoldEvent>;

    async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let client = client(&request);
        let v1::HoldRequest { min_size, max_size, no_background, reason } = request.into_inner();
        let wish = Wish { min_size, max_size, no_background, reason };
        let held = self.core.governor.hold(&client, wish).map_err(refuse)?;
        let mut told = None;
        let events = WatchStream::new(self.core.governor.watch()).filter_map(move |report| {
            // The stream owns the hold: dropping it ends the hold.
            let id = held.id();
            let new = told.as_ref() != Some(&report.active_size);
            let active_size = report.active_size;
            let event = new.then(|| {
                told = Some(active_size.clone());
                Ok(v1::HoldEvent { id, active_size })
            });
            async move { event }
        });
        Ok(Response::new(self.until_stopped(events)))
    }

    async fn pin(
        &self,
        request: Request<v1::PinRequest>,
    ) -> Result<Response<v1::PinResponse>, Status> {
        let client = client(&request);
        self.core.governor.pin(&client, &request.into_inner().size).await.map_err(refuse)?;
        Ok(Response::new(v1::PinResponse {}))
    }
}

impl Api {
    /// A stream that goes on until the daemon stops, and then says so.
    pub(super) fn until_stopped<T: Send + 'static>(
        &self,
        items: impl futures::Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Streaming<T> {
        let end = stream::once(async { Err(status(&Error::ShuttingDown)) });
        Box::pin(items.take_until(self.stop.clone().cancelled_owned()).chain(end))
    }
}

fn report(report: Report) -> v1::GovernorReport {
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
    let parts = decision.as_ref();
    let text = |part: fn(&Decision) -> &str| parts.map(part).unwrap_or_default().to_owned();
    v1::GovernorReport {
        enabled,
        profile,
        readings: Some(readings(&snapshot)),
        active_size,
        selected_size: text(|decision| &decision.size),
        level: text(|decision| decision.level.name()),
        cause: text(|decision| decision.cause.name()),
        reason: text(|decision| &decision.reason),
        next_threshold: text(|decision| &decision.next_threshold),
        background_allowed: parts.is_none_or(|decision| decision.background_allowed),
        max_context_tokens: parts.map_or(0, |decision| decision.max_context),
        max_parallel_requests: parts.map_or(0, |decision| decision.max_parallel),
        shed: text(|decision| decision.shed.name()),
        holds: holds.holds.into_iter().map(hold).collect(),
        pin: holds.pin.unwrap_or_default(),
        problem,
        last_change: last_change.map(|change| {
            let Change { from, to, reason, duration_us, .. } = change;
            v1::SizeChange { from, to, reason, duration_us }
        }),
        energy_per_token_j,
    }
}

fn hold(hold: Hold) -> v1::ActiveHold {
    let Hold { id, client, min_size, max_size, no_background, reason } = hold;
    v1::ActiveHold {
        id,
        client,
        min_size: min_size.unwrap_or_default(),
        max_size: max_size.unwrap_or_default(),
        no_background,
        reason,
    }
}

fn readings(snapshot: &Snapshot) -> v1::Readings {
    let Snapshot { memory, pressure, on_ac, battery, temperature_c, power_profile, sleeping: _ } =
        *snapshot;
    v1::Readings {
        mem_available_mib: memory.map(|memory| memory.available_mib),
        mem_total_mib: memory.map(|memory| memory.total_mib),
        swap_used_mib: memory.map(|memory| memory.swap_used_mib),
        resident_mib: memory.map(|memory| memory.resident_mib),
        psi_some_avg10: pressure.map(|pressure| pressure.some_avg10),
        psi_full_avg10: pressure.map(|pressure| pressure.full_avg10),
        battery_percent: battery.map(|battery| battery.percent),
        battery_power_w: battery.and_then(|battery| battery.power_w),
        time_to_empty_s: battery.and_then(|battery| battery.time_to_empty_s),
        battery_warning: battery.and_then(|battery| Some(battery.warning?.name().to_owned())),
        on_ac,
        temp_c: temperature_c,
        power_profile: power_profile.map(|profile| profile.name().to_owned()),
    }
}
