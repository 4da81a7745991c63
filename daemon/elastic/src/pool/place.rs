//! How many threads there are, where they run, and who goes before whom.

use std::io;

use nix::libc;

use super::Settings;

/// How many threads compute.
pub(super) fn threads(settings: &Settings) -> io::Result<usize> {
    if settings.threads > 0 {
        return Ok(settings.threads);
    }
    let usable = std::thread::available_parallelism()?.get();
    // A list may name cores that this board does not have.
    Ok(if settings.cores.is_empty() { usable } else { settings.cores.len().min(usable) })
}

/// Puts the calling thread behind all others, for as long as it lives: what it does can wait for an idle core.
pub fn stand_back() {
    // SAFETY: a system call with plain numbers. On Linux 0 is the calling thread alone.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

/// Gives the calling thread, which has just begun, its core and its nice value. Both are wishes: a core
/// that is not there, or not allowed, leaves the thread where the system puts it.
pub(super) fn place(settings: &Settings, index: usize) {
    if let Some(core) = settings.cores.get(index % settings.cores.len().max(1)) {
        // SAFETY: a zeroed set is an empty one, and CPU_SET stays within it below its size.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            if *core < libc::CPU_SETSIZE as usize {
                libc::CPU_SET(*core, &mut set);
                libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
            }
        }
    }
    if settings.nice != 0 {
        // SAFETY: system calls with plain numbers. On Linux 0 is the calling thread alone.
        unsafe {
            let usual = libc::getpriority(libc::PRIO_PROCESS, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, usual.saturating_add(settings.nice));
        }
    }
}
