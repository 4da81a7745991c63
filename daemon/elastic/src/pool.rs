//! The threads that compute, and how work is divided among them.
//!
//! The thread that calls [`Pool::run`] works too; the others wait for it. They look for work a few
//! microseconds long, because the next product mostly follows at once, and then sleep. Pieces of work
//! are taken one by one from a common counter, so a thread that the system has put aside delays only
//! the piece that it holds, and one that has not woken yet delays nothing: `run` waits for those that
//! took a piece, not for all.
//!
//! Cores and nice value ([`Settings`]) are the pool's own threads', from when they begin until they end, and
//! nobody else's: a thread hands both down to those that it starts, and without privileges no nice value is
//! ever taken back. So whoever has the pool stays as it was, and has a whole step computed by the first
//! of the pool's threads ([`Pool::lead`]), which is the one that calls `run` then.

#![allow(unsafe_code, reason = "threads borrow the caller's closure while it waits for them")]

mod lead;
mod place;

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use self::lead::Lead;
pub use self::place::stand_back;

/// How long a thread looks for work before it sleeps. Between two products of a token pass 5 to 20
/// microseconds, and waking a thread takes about 50.
const LOOK: Duration = Duration::from_micros(60);

/// How to run the threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Threads in all; 0 is one for each of `cores`, or for each core that this process may use.
    pub threads: usize,
    /// The cores for the threads, in turn; empty leaves it to the system.
    pub cores: Vec<usize>,
    /// Added to the nice value of whoever starts them, so that the compositor goes first.
    pub nice: i32,
}

/// A number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    /// None while it leads.
    lead: Option<Lead>,
    /// All others.
    threads: Vec<JoinHandle<()>>,
}

/// The caller's closure; it is there as long as somebody is in its job.
type Job = &'static (dyn Fn(usize) + Sync);

struct Shared {
    /// The number of the job, whether it is open, and how many threads are in it.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    pieces: AtomicUsize,
    next: AtomicUsize,
    sleeping: AtomicUsize,
    /// A piece panicked.
    broken: AtomicBool,
    end: AtomicBool,
    /// Who waits for the last piece.
    caller: UnsafeCell<Option<Thread>>,
}

// SAFETY: `job` and `caller` are written only by the thread in `Pool::run`, which is one because it has
// the pool by `&mut`, and only while no other thread is in the job; others read them only after they
// have entered the job through `state`, which is written after (release) and read before (acquire).
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is used only within `Pool::run`, which outlives every use.
unsafe impl Send for Shared {}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const NUMBER: u32 = 32;

impl Pool {
    /// Starts the threads.
    pub fn new(settings: &Settings) -> std::io::Result<Self> {
        let threads = place::threads(settings)?;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            pieces: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            end: AtomicBool::new(false),
            caller: UnsafeCell::new(None),
        });
        let lead = Some(Lead::start(settings.clone())?);
        let mut pool = Self { shared, lead, threads: Vec::new() };
        for index in 1..threads {
            let (shared, settings) = (Arc::clone(&pool.shared), settings.clone());
            let thread = std::thread::Builder::new().name(format!("nestd-compute-{index}"));
            pool.threads.push(thread.spawn(move || {
                place::place(&settings, index);
                work(&shared);
            })?);
        }
        Ok(pool)
    }

    /// How many threads compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Has a step computed by the thread that leads the others, and returns when that is done.
    ///
    /// # Panics
    /// If the step does.
    pub fn lead(&mut self, step: impl FnOnce(&mut Self) + Send) {
        // Whoever is led already needs nobody else.
        let Some(lead) = self.lead.take() else { return step(self) };
        let mut result: Result<(), Box<dyn Any + Send>> = Ok(());
        lead.run(Box::new(|| result = catch_unwind(AssertUnwindSafe(|| step(self)))));
        self.lead = Some(lead);
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    /// Calls `job` with every number below `pieces`, on the pool's threads and the calling one, and returns
    /// when all are done.
    ///
    /// # Panics
    /// If a piece panicked.
    pub fn run(&mut self, pieces: usize, job: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() || pieces < 2 {
            return (0..pieces).for_each(job);
        }
        let shared = &*self.shared;
        // SAFETY: nobody is in a job (the last call waited for that), so nobody reads these. The
        // lifetime is taken away; this function does not return before everybody has left the job.
        unsafe {
            let job = std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(
                job,
            );
            *shared.job.get() = Some(job);
            *shared.caller.get() = Some(std::thread::current());
        }
        // Set still where the last job's caller panicked too.
        shared.broken.store(false, Ordering::Relaxed);
        shared.pieces.store(pieces, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) >> NUMBER).wrapping_add(1) << NUMBER;
        shared.state.store(number | OPEN, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.threads.iter().for_each(|thread| thread.thread().unpark());
        }
        // A panic here must not free what the others still use.
        let leave = Leave { shared };
        shared.pieces_of(job);
        drop(leave);
        assert!(!shared.broken.swap(false, Ordering::Relaxed), "a computing thread panicked");
    }

    /// Calls `job` with each row of a buffer, on all threads.
    pub fn rows<A: Send>(
        &mut self,
        buffer: &mut [A],
        width: usize,
        job: impl Fn(usize, &mut [A]) + Sync,
    ) {
        let mut none: [(); 0] = [];
        self.rows2(buffer, width, &mut none, 0, |row, a, _| job(row, a));
    }

    /// Calls `job` with the rows of two buffers that have the same number, on all threads.
    pub fn rows2<A: Send, B: Send>(
        &mut self,
        a: &mut [A],
        a_width: usize,
        b: &mut [B],
        b_width: usize,
        job: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        let rows = a.len() / a_width.max(1);
        debug_assert!(a.len() == rows * a_width && b.len() >= rows * b_width);
        if b.len() < rows * b_width {
            return;
        }
        let (a, b) = (Start(a.as_mut_ptr()), Start(b.as_mut_ptr()));
        self.run(rows, &|row| {
            // SAFETY: every row is within its buffer, and is lent to one call only.
            let (a, b) = unsafe {
                (
                    std::slice::from_raw_parts_mut(a.at(row * a_width), a_width),
                    std::slice::from_raw_parts_mut(b.at(row * b_width), b_width),
                )
            };
            job(row, a, b);
        });
    }
}

/// The start of a buffer whose rows are lent to several threads.
struct Start<T>(*mut T);

// SAFETY: it only hands out places; see `Pool::rows2` for who uses them.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// # Safety
    /// The place is within the buffer, or at its end.
    unsafe fn at(&self, index: usize) -> *mut T {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(index) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Closes the job, and waits for those who are in it.
struct Leave<'s> {
    shared: &'s Shared,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let begun = Instant::now();
        while self.shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            if begun.elapsed() < LOOK {
                std::hint::spin_loop();
            } else {
                // The last to leave wakes this thread; the time is for a wake that came before.
                std::thread::park_timeout(Duration::from_micros(500));
            }
        }
    }
}

impl Shared {
    fn pieces_of(&self, job: &(dyn Fn(usize) + Sync)) {
        let pieces = self.pieces.load(Ordering::Relaxed);
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            job(piece);
        }
    }

    /// Enters the job if there is an open one after number `seen`; gives its number.
    fn enter(&self, seen: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        let number = state >> NUMBER;
        if number == seen || state & OPEN == 0 {
            return None;
        }
        let entered =
            self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
        entered.is_ok().then_some(number)
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    let mut since = Instant::now();
    while !shared.end.load(Ordering::Relaxed) {
        let Some(number) = shared.enter(seen) else {
            if since.elapsed() < LOOK {
                std::hint::spin_loop();
                continue;
            }
            shared.sleeping.fetch_add(1, Ordering::SeqCst);
            // Looks once more: a job that came before the count was raised wakes nobody.
            let state = shared.state.load(Ordering::SeqCst);
            if (state >> NUMBER == seen || state & OPEN == 0) && !shared.end.load(Ordering::SeqCst)
            {
                std::thread::park();
            }
            shared.sleeping.fetch_sub(1, Ordering::SeqCst);
            since = Instant::now();
            continue;
        };
        seen = number;
        // SAFETY: this thread is in the job, so the closure and the caller's handle stay until it has
        // left; see `Shared`.
        let (job, caller) = unsafe { (*shared.job.get(), (*shared.caller.get()).clone()) };
        if let Some(job) = job {
            let pieces = AssertUnwindSafe(|| shared.pieces_of(job));
            if catch_unwind(pieces).is_err() {
                shared.broken.store(true, Ordering::Relaxed);
            }
        }
        let before = shared.state.fetch_sub(1, Ordering::AcqRel);
        let last = before & INSIDE == 1 && before & OPEN == 0;
        if let Some(caller) = caller.filter(|_| last) {
            caller.unpark();
        }
        since = Instant::now();
    }
}

#[cfg(test)]
mod tests;
