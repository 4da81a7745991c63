//! The SIGBUS handler behind [`crate::map`].
//!
//! A handler may only read what was there before: a fixed table of ranges in static memory, each an
//! address and a length that the mapping's owner writes and clears.

#![allow(unsafe_code, reason = "a signal handler that maps pages")]

use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::libc;

/// Mappings that can be watched at once: models and side files, old and new.
const PLACES: usize = 64;

struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static TABLE: [Place; PLACES] = [const {
    Place {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; PLACES];
static PAGE: AtomicUsize = AtomicUsize::new(4096);
static INSTALL: Once = Once::new();

/// A watched mapping's place in the table.
pub(crate) struct Guard {
    place: &'static Place,
}

/// Watches a mapping, until the guard is dropped.
pub(crate) fn watch(addresses: Range<usize>) -> std::io::Result<Guard> {
    INSTALL.call_once(install);
    let free = |place: &&'static Place| {
        place.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    };
    let place = TABLE.iter().find(free).ok_or_else(|| {
        std::io::Error::other(format!("more than {PLACES} files are mapped at once"))
    })?;
    place.faulted.store(false, Ordering::Relaxed);
    place.start.store(addresses.start, Ordering::Relaxed);
    place.end.store(addresses.end, Ordering::Release);
    Ok(Guard { place })
}

impl Guard {
    /// Whether a page of the mapping was found missing.
    pub(crate) fn faulted(&self) -> bool {
        self.place.faulted.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // An end of 0 is in front of every start.
        self.place.end.store(0, Ordering::Release);
        self.place.taken.store(false, Ordering::Release);
    }
}

fn install() {
    PAGE.store(crate::map::page_size(), Ordering::Relaxed);
    // SAFETY: `action` is a valid value of the system's structure, and the handler keeps to what a
    // handler may do. A failure leaves the default effect of the signal in place.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Puts a page of zeros where one of a watched mapping is gone; else restores the signal's default
/// effect, which follows when the instruction runs again. What a process sent has no address, and no
/// instruction that runs again.
extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the system passes a valid structure; mmap, signal and raise are system calls without state
    // of this process's own, and the page that is replaced belongs to the mapping that was found.
    unsafe {
        if (*info).si_code <= 0 {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            libc::raise(libc::SIGBUS);
            return;
        }
        let address = (*info).si_addr() as usize;
        for place in &TABLE {
            // The end first: whoever sees it sees its start, too.
            let end = place.end.load(Ordering::Acquire);
            if (place.start.load(Ordering::Relaxed)..end).contains(&address) {
                let page = PAGE.load(Ordering::Relaxed);
                let mapped = libc::mmap(
                    (address / page * page) as *mut libc::c_void,
                    page,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                );
                if mapped != libc::MAP_FAILED {
                    place.faulted.store(true, Ordering::Release);
                    return;
                }
            }
        }
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}
