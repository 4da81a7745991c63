//! KV caches of sessions outside of memory: written when they have to go, and read back with the session's
//! next request, where that is faster than reading the conversation again.
//!
//! They hold the conversation, so they are encrypted (`vault`). A thread of its own reads and writes; the
//! engine's asks it and goes on. What waits for the storage is still in memory, so it is bounded: what is
//! more is dropped, and what nobody wants any more is not written. What goes wrong costs time, never a
//! conversation: the transcript is whole without it.
//!
//! After "LLM as a System Service on Mobile Devices" (arXiv 2403.11805), which swaps caches of idle
//! conversations to storage likewise.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nestd_elastic::kv::{Sequence, Store};
use nestd_elastic::model::Model;

use super::vault::{Vault, clear_others};

/// The caches of a session, with the tokens that they are of.
pub struct Away {
    /// Whose they are.
    pub session: u64,
    /// The conversation so far.
    pub tokens: Vec<u32>,
    /// Its caches.
    pub sequence: Sequence,
}

/// Where caches go, from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// A folder of their own.
    pub dir: PathBuf,
    /// All of them together; 0: they go nowhere.
    pub mib: u64,
}

/// The caches that are outside of memory.
pub struct Spill {
    /// The least recently written first. Goes before the channel does, so that nothing more is written
    /// when this is dropped.
    kept: Vec<Kept>,
    work: Sender<Work>,
    done: Receiver<Done>,
    limit: u64,
    /// Bytes of caches that wait to be written, or are being written.
    waiting: Arc<AtomicU64>,
    /// The most of them.
    backlog: u64,
    /// Bytes a second that the storage takes and gives, once that is known.
    speed: Option<f64>,
}

struct Kept {
    session: u64,
    tokens: Vec<u32>,
    bytes: u64,
    wanted: Wanted,
}

/// What is written is wanted while this is there.
type Wanted = Arc<()>;

enum Work {
    Write { away: Away, wanted: Weak<()>, waits: Waits },
    Read { session: u64, _wanted: Wanted, reply: Sender<Option<Sequence>> },
    Remove(u64),
}

/// Counts what waits to be written.
struct Waits {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Waits {
    fn new(bytes: u64, all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, all: Arc::clone(all) }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a write went: it took so long, or failed.
struct Done {
    wanted: Weak<()>,
    bytes: u64,
    took: Option<Duration>,
}

impl Spill {
    /// Readies the folder and starts the thread. `backlog` bytes may wait to be written. None if there is
    /// nothing to do, or the folder cannot be used, which is told.
    pub fn start(
        settings: &Settings,
        model: &Arc<Model>,
        store: Store,
        backlog: u64,
    ) -> Option<Self> {
        clear_others(&settings.dir);
        if settings.mib == 0 {
            return None;
        }
        let (work, todo) = channel();
        let (done, results) = channel();
        let started = Vault::open(&settings.dir).and_then(|vault| {
            let worker = Worker { vault, model: Arc::clone(model), store };
            let thread = std::thread::Builder::new().name("nestd-spill".into());
            thread.spawn(move || worker.run(&todo, &done)).map(drop)
        });
        if let Err(error) = started {
            let dir = settings.dir.display();
            tracing::warn!(%dir, %error, "KV caches of idle sessions are dropped, not stored");
            return None;
        }
        Some(Self::new(work, results, settings.mib << 20, backlog))
    }

    fn new(work: Sender<Work>, done: Receiver<Done>, limit: u64, backlog: u64) -> Self {
        let (kept, waiting) = (Vec::new(), Arc::default());
        Self { kept, work, done, limit, waiting, backlog, speed: None }
    }

    /// The memory of caches that are not written yet.
    pub fn waiting(&self) -> &Arc<AtomicU64> {
        &self.waiting
    }

    /// Takes caches that have to leave memory, unless too much waits already, or reading the tokens again
    /// (`prefill` a second, if that is known) is as fast as reading the caches.
    pub fn store(&mut self, away: Away, prefill: Option<f64>) {
        self.collect();
        let bytes = away.sequence.bytes();
        let again = prefill.map(|speed| away.tokens.len() as f64 / speed);
        let back = self.speed.map(|speed| bytes as f64 / speed);
        let waiting = self.waiting.load(Ordering::Relaxed);
        if bytes > self.limit
            || waiting.saturating_add(bytes) > self.backlog
            || again.zip(back).is_some_and(|(again, back)| back >= again)
        {
            return;
        }
        self.forget(away.session);
        while self.kept.iter().map(|kept| kept.bytes).sum::<u64>() + bytes > self.limit {
            let oldest = self.kept.remove(0);
            let _ = self.work.send(Work::Remove(oldest.session));
        }
        let Away { session, ref tokens, .. } = away;
        let (tokens, wanted) = (tokens.clone(), Wanted::default());
        let waits = Waits::new(bytes, &self.waiting);
        let write = Work::Write { away, wanted: Arc::downgrade(&wanted), waits };
        self.kept.push(Kept { session, tokens, bytes, wanted });
        // A thread that has ended takes nothing and gives nothing back.
        let _ = self.work.send(write);
    }

    /// Whether there is something of a session.
    fn has(&self, session: u64) -> bool {
        self.kept.iter().any(|kept| kept.session == session)
    }

    /// How many of a prompt's tokens the caches of its session are of.
    pub fn known(&self, session: u64, prompt: &[u32]) -> usize {
        let kept = self.kept.iter().find(|kept| kept.session == session);
        let common =
            |kept: &Kept| kept.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        kept.map_or(0, common)
    }

    /// Has the caches of a session brought back. The receiver gets them, or nothing.
    pub fn fetch(&mut self, session: u64) -> Option<(Vec<u32>, Receiver<Option<Sequence>>)> {
        let index = self.kept.iter().position(|kept| kept.session == session)?;
        let Kept { tokens, wanted, .. } = self.kept.remove(index);
        let (reply, receiver) = channel();
        self.work.send(Work::Read { session, _wanted: wanted, reply }).ok()?;
        Some((tokens, receiver))
    }

    /// Forgets what a session left.
    pub fn forget(&mut self, session: u64) {
        if self.has(session) {
            self.kept.retain(|kept| kept.session != session);
            let _ = self.work.send(Work::Remove(session));
        }
    }

    /// Learns how writes went.
    fn collect(&mut self) {
        while let Ok(Done { wanted, bytes, took }) = self.done.try_recv() {
            match took {
                Some(took) => self.speed = Some(bytes as f64 / took.as_secs_f64().max(1e-6)),
                None => self.kept.retain(|kept| Arc::as_ptr(&kept.wanted) != wanted.as_ptr()),
            }
        }
    }
}

struct Worker {
    vault: Vault,
    model: Arc<Model>,
    store: Store,
}

impl Worker {
    /// Works until the engine is gone; then removes everything.
    fn run(mut self, todo: &Receiver<Work>, done: &Sender<Done>) {
        for work in todo {
            match work {
                Work::Write { away: Away { session, sequence, .. }, wanted, waits } => {
                    let began = Instant::now();
                    let written = self.vault.write(session, |out| {
                        sequence.write_to(&mut WhileWanted { out, wanted: &wanted })
                    });
                    drop(sequence);
                    if let Err(error) = &written {
                        if wanted.strong_count() > 0 {
                            tracing::warn!(%error, "the KV cache of a session is dropped, not stored");
                        }
                        self.vault.remove(session);
                    }
                    let took = written.is_ok().then(|| began.elapsed());
                    let _ = done.send(Done { wanted, bytes: waits.bytes, took });
                }
                Work::Read { session, reply, .. } => {
                    let read = self.vault.read(session, |from| {
                        Sequence::read_from(self.model.config(), self.store, from)
                    });
                    if let Err(error) = &read {
                        tracing::warn!(%error, "the KV cache of a session cannot be read back");
                    }
                    self.vault.remove(session);
                    // The request may have been cancelled.
                    let _ = reply.send(read.ok());
                }
                Work::Remove(session) => self.vault.remove(session),
            }
        }
        self.vault.clear();
    }
}

/// Writes as long as what is written is wanted.
struct WhileWanted<'a, W> {
    out: W,
    wanted: &'a Weak<()>,
}

impl<W: Write> Write for WhileWanted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.wanted.strong_count() == 0 {
            return Err(io::Error::other("its session has ended"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use nestd_elastic::forward::{Logits, Part, Runner};
    use nestd_elastic::kv::Shape;
    use nestd_elastic::pool::{self, Pool};

    use super::*;

    /// Caches of 20 tokens of a session; a thread that does not begin yet, and room for two of them.
    fn ready(dir: &std::path::Path) -> (Sequence, Spill, Worker, Receiver<Work>, Sender<Done>) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../models/demo/nestd-demo-Q8_0.gguf");
        let model = Arc::new(Model::open(&path).unwrap());
        let mut sequence = Sequence::new(&Shape::new(model.config(), 32, Store::F16));
        let part = Part { sequence: &mut sequence, tokens: &[2; 20], logits: Logits::None };
        let pool = Pool::new(&pool::Settings::default()).unwrap();
        Runner::new(pool, None).step(&model, &model.full(), &mut [part]).unwrap();
        let worker = Worker { vault: Vault::open(dir).unwrap(), model, store: Store::F16 };
        let ((work, todo), (done, results)) = (channel(), channel());
        let spill = Spill::new(work, results, 1 << 30, sequence.bytes() * 2);
        (sequence, spill, worker, todo, done)
    }

    fn away(session: u64, sequence: &Sequence) -> Away {
        Away { session, tokens: vec![2; 20], sequence: sequence.clone() }
    }

    #[test]
    fn what_waits_for_a_slow_disk_is_bounded_and_what_has_ended_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let (sequence, mut spill, worker, todo, done) = ready(folder.path());
        for session in 0..9 {
            spill.store(away(session, &sequence), None);
        }
        assert_eq!(spill.waiting().load(Ordering::Relaxed), sequence.bytes() * 2);
        assert_eq!(spill.kept.iter().map(|kept| kept.session).collect::<Vec<_>>(), [0, 1]);
        spill.forget(0);
        let (tokens, back) = spill.fetch(1).unwrap();
        let worker = std::thread::spawn(move || worker.run(&todo, &done));
        let back = back.recv().unwrap().unwrap();
        assert_eq!((tokens.len(), back.len()), (20, 20));
        let took: Vec<_> = spill.done.try_iter().map(|done| done.took.is_some()).collect();
        assert_eq!(took, [false, true], "only what was still wanted is written");
        assert_eq!(spill.waiting().load(Ordering::Relaxed), 0);
        spill.store(away(2, &sequence), None);
        assert!(spill.has(2), "there is room again");
        drop(spill);
        worker.join().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_engine_that_goes_writes_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let (sequence, mut spill, worker, todo, done) = ready(folder.path());
        for session in 0..2 {
            spill.store(away(session, &sequence), None);
        }
        let (waiting, results) = (Arc::clone(spill.waiting()), channel().1);
        let results = std::mem::replace(&mut spill.done, results);
        drop(spill);
        worker.run(&todo, &done);
        assert!(results.try_iter().all(|done| done.took.is_none()));
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_earlier_process_left_goes_where_nothing_is_stored_too() {
        let folder = tempfile::tempdir().unwrap();
        let (_, _, Worker { model, store, .. }, ..) = ready(folder.path());
        let left = folder.path().join("7.kv");
        std::fs::write(&left, "left by another").unwrap();
        let settings = Settings { dir: folder.path().to_owned(), mib: 0 };
        assert!(Spill::start(&settings, &model, store, 1).is_none());
        assert!(!left.exists());
    }
}
