//! `[sessions]`

use std::path::PathBuf;
use std::time::Duration;

use super::reader::Reader;
use crate::types::SessionSettings;

pub(super) fn read(read: &mut Reader) -> SessionSettings {
    SessionSettings {
        dir: read.parsed("sessions.dir", dir),
        total: read.u32("sessions.total", 0..=4096),
        per_user: read.u32("sessions.per_user", 0..=4096),
        ttl: Duration::from_secs(read.u64("sessions.ttl_s", 1..=31_536_000)),
    }
}

fn dir(text: &str) -> Result<PathBuf, String> {
    match PathBuf::from(text) {
        dir if text.is_empty() || dir.is_absolute() => Ok(dir),
        _ => Err("is not an absolute path, nor empty".into()),
    }
}
