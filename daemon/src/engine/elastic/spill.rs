//! KV caches of sessions outside of memory: written when they have to go, and read back with the session's
//! next request, where that is faster than reading the conversation again.
//!
//! They hold the conversation, so they are encrypted (ChaCha20-Poly1305, in blocks) with a key that only
//! this process has and that is gone with it; what is left of an earlier one is removed. A thread of its own
//! reads and writes; the engine's asks it and goes on. What goes wrong costs time, never a conversation: the
//! transcript is whole without it.
//!
//! After "LLM as a System Service on Mobile Devices" (arXiv 2403.11805), which swaps caches of idle
//! conversations to storage likewise.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nestd_elastic::kv::{Sequence, Store};
use nestd_elastic::model::Model;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Plain bytes of a block.
const BLOCK: usize = 1 << 20;
/// What a block has more.
const TAG: usize = 16;

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
    work: Sender<Work>,
    done: Receiver<Done>,
    /// The least recently written first.
    kept: Vec<Kept>,
    limit: u64,
    /// Bytes a second that the storage takes and gives, once that is known.
    speed: Option<f64>,
}

struct Kept {
    session: u64,
    tokens: Vec<u32>,
    bytes: u64,
}

enum Work {
    Write(Away),
    Read { session: u64, reply: Sender<Option<Sequence>> },
    Remove(u64),
}

/// How a write went: it took so long, or failed.
struct Done {
    session: u64,
    bytes: u64,
    took: Option<Duration>,
}

impl Spill {
    /// Readies the folder and starts the thread. None if there is nothing to do, or the folder cannot be
    /// used, which is told.
    pub fn start(settings: &Settings, model: &Arc<Model>, store: Store) -> Option<Self> {
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
        Some(Self { work, done: results, kept: Vec::new(), limit: settings.mib << 20, speed: None })
    }

    /// Takes caches that have to leave memory, unless reading the tokens again (`prefill` a second, if
    /// that is known) is as fast as reading the caches.
    pub fn store(&mut self, away: Away, prefill: Option<f64>) {
        self.collect();
        let bytes = away.sequence.bytes();
        let again = prefill.map(|speed| away.tokens.len() as f64 / speed);
        let back = self.speed.map(|speed| bytes as f64 / speed);
        if bytes > self.limit || again.zip(back).is_some_and(|(again, back)| back >= again) {
            return;
        }
        self.forget(away.session);
        while self.kept.iter().map(|kept| kept.bytes).sum::<u64>() + bytes > self.limit {
            let oldest = self.kept.remove(0);
            let _ = self.work.send(Work::Remove(oldest.session));
        }
        let Away { session, ref tokens, .. } = away;
        self.kept.push(Kept { session, tokens: tokens.clone(), bytes });
        // A thread that has ended takes nothing and gives nothing back.
        let _ = self.work.send(Work::Write(away));
    }

    /// Whether there is something of a session.
    pub fn has(&self, session: u64) -> bool {
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
        let kept = self.kept.remove(index);
        let (reply, receiver) = channel();
        self.work.send(Work::Read { session, reply }).ok()?;
        Some((kept.tokens, receiver))
    }

    /// Forgets what a session left.
    pub fn forget(&mut self, session: u64) {
        self.kept.retain(|kept| kept.session != session);
        let _ = self.work.send(Work::Remove(session));
    }

    /// Learns how writes went.
    fn collect(&mut self) {
        while let Ok(Done { session, bytes, took }) = self.done.try_recv() {
            match took {
                Some(took) => self.speed = Some(bytes as f64 / took.as_secs_f64().max(1e-6)),
                None => self.kept.retain(|kept| kept.session != session),
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
                Work::Write(Away { session, sequence, .. }) => {
                    let began = Instant::now();
                    let written = self.vault.write(session, |out| sequence.write_to(out));
                    if let Err(error) = &written {
                        tracing::warn!(%error, "the KV cache of a session is dropped, not stored");
                        self.vault.remove(session);
                    }
                    let took = written.is_ok().then(|| began.elapsed());
                    let _ = done.send(Done { session, bytes: sequence.bytes(), took });
                }
                Work::Read { session, reply } => {
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

/// Encrypted files in a folder of their own.
struct Vault {
    dir: PathBuf,
    key: LessSafeKey,
    /// Counts blocks: a number is used once, as the cipher wants it.
    blocks: u64,
}

impl Vault {
    fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("no random numbers"))?;
        let key =
            UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| io::Error::other("no key"))?;
        let vault = Self { dir: dir.to_owned(), key: LessSafeKey::new(key), blocks: 0 };
        vault.clear();
        Ok(vault)
    }

    fn path(&self, session: u64) -> PathBuf {
        self.dir.join(format!("{session}.kv"))
    }

    /// Removes what is there, also of a daemon that ended before it could.
    fn clear(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "kv") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn remove(&self, session: u64) {
        // It may never have been written.
        let _ = fs::remove_file(self.path(session));
    }

    fn write(
        &mut self,
        session: u64,
        content: impl FnOnce(&mut Sealing<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(self.path(session))?;
        let mut sealing = Sealing {
            file,
            vault: self,
            session,
            index: 0,
            plain: Vec::with_capacity(BLOCK + TAG),
        };
        content(&mut sealing)?;
        sealing.flush()
    }

    fn read<T>(
        &self,
        session: u64,
        take: impl FnOnce(&mut Opening<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let file = BufReader::new(File::open(self.path(session))?);
        take(&mut Opening { file, vault: self, session, index: 0, plain: Vec::new(), at: 0 })
    }
}

/// Encrypts what is written: blocks of their number, their length, and the sealed bytes.
struct Sealing<'a> {
    file: File,
    vault: &'a mut Vault,
    session: u64,
    /// Blocks so far.
    index: u64,
    plain: Vec<u8>,
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.plain.len());
        self.plain.extend_from_slice(bytes.get(..taken).unwrap_or(bytes));
        if self.plain.len() == BLOCK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let number = self.vault.blocks;
        self.vault.blocks += 1;
        self.vault
            .key
            .seal_in_place_append_tag(
                nonce(number),
                place(self.session, self.index),
                &mut self.plain,
            )
            .map_err(|_| io::Error::other("a block cannot be sealed"))?;
        self.file.write_all(&number.to_le_bytes())?;
        self.file.write_all(&(self.plain.len() as u64).to_le_bytes())?;
        self.file.write_all(&self.plain)?;
        self.plain.clear();
        self.index += 1;
        Ok(())
    }
}

/// Decrypts what is read.
struct Opening<'a> {
    file: BufReader<File>,
    vault: &'a Vault,
    session: u64,
    /// Blocks so far.
    index: u64,
    plain: Vec<u8>,
    at: usize,
}

impl Opening<'_> {
    fn next(&mut self) -> io::Result<()> {
        let mut number = [0; 8];
        let mut len = [0; 8];
        self.file.read_exact(&mut number)?;
        self.file.read_exact(&mut len)?;
        let len = usize::try_from(u64::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > BLOCK + TAG {
            return Err(io::Error::other("the file is damaged"));
        }
        let mut block = vec![0; len];
        self.file.read_exact(&mut block)?;
        let plain = self
            .vault
            .key
            .open_in_place(
                nonce(u64::from_le_bytes(number)),
                place(self.session, self.index),
                &mut block,
            )
            .map_err(|_| io::Error::other("the file is damaged, or another's"))?
            .len();
        block.truncate(plain);
        (self.plain, self.at) = (block, 0);
        self.index += 1;
        Ok(())
    }
}

impl Read for Opening<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.plain.len() {
            self.next()?;
        }
        let read = self.plain.get(self.at..).unwrap_or_default().read(to)?;
        self.at += read;
        Ok(read)
    }
}

/// What a block is bound to: none can stand in another's place.
fn place(session: u64, index: u64) -> Aad<[u8; 16]> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&session.to_le_bytes());
    bytes[8..].copy_from_slice(&index.to_le_bytes());
    Aad::from(bytes)
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nobody_else_can() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("7.kv"), "left by another").unwrap();
        let mut vault = Vault::open(&folder.path().join(".")).unwrap();
        assert!(!folder.path().join("7.kv").exists());
        let said: Vec<u8> = b"a secret conversation ".repeat(120_000);
        vault.write(7, |out| out.write_all(&said)).unwrap();
        let file = fs::read(folder.path().join("7.kv")).unwrap();
        assert!(!file.windows(8).any(|bytes| bytes == b"a secret"));
        let read = |vault: &Vault, session| {
            vault.read(session, |from| {
                let mut back = vec![0; said.len()];
                from.read_exact(&mut back)?;
                Ok(back)
            })
        };
        assert_eq!(read(&vault, 7).unwrap(), said);
        // Another session's, a damaged one, one that is cut, and one of another process.
        fs::copy(folder.path().join("7.kv"), folder.path().join("8.kv")).unwrap();
        assert!(read(&vault, 8).is_err());
        let mut damaged = file.clone();
        damaged[file.len() / 2] ^= 1;
        fs::write(folder.path().join("7.kv"), &damaged).unwrap();
        assert!(read(&vault, 7).is_err());
        fs::write(folder.path().join("7.kv"), &file[..file.len() - 1]).unwrap();
        assert!(read(&vault, 7).is_err());
        let other = Vault::open(&folder.path().join("other")).unwrap();
        fs::write(folder.path().join("other/7.kv"), &file).unwrap();
        assert!(read(&other, 7).is_err());
        vault.clear();
        assert!(!folder.path().join("7.kv").exists());
    }
}
