//! `[quotas]`

use super::reader::Reader;
use crate::types::Quotas;

pub(super) fn read(read: &mut Reader) -> Quotas {
    Quotas {
        parallel_requests: read.u32("quotas.parallel_requests", 0..=64),
        queued_requests: read.u32("quotas.queued_requests", 0..=4096),
        tokens_per_minute: read.u64("quotas.tokens_per_minute", 0..=1_000_000_000),
        energy_j_per_hour: read.u64("quotas.energy_j_per_hour", 0..=1_000_000_000),
    }
}
