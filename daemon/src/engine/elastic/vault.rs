//! Caches of KV in files: encrypted (ChaCha20-Poly1305, in blocks) with a key that only one engine has and
//! that is gone with it. `spill` says what goes here, and when.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::BuildHasher as _;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Plain bytes of a block.
const BLOCK: usize = 1 << 20;
/// What a block has more.
const TAG: usize = 16;
/// What the names of files end with.
const ENDING: &str = ".kv";

/// What the names of this process's files begin with.
static PROCESS: LazyLock<String> =
    LazyLock::new(|| format!("{:016x}-", RandomState::new().hash_one(0)));
/// Engines so far: two have files in the same folder while one takes the other's place.
static ENGINES: AtomicU64 = AtomicU64::new(0);

/// Removes what an earlier process left, which nobody can read any more.
pub fn clear_others(dir: &Path) {
    clear(dir, |name| !name.starts_with(&*PROCESS));
}

/// Removes files with caches whose names are like this.
fn clear(dir: &Path, like: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.ends_with(ENDING) && like(name)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Encrypted files of one engine, in a folder of their own.
pub struct Vault {
    dir: PathBuf,
    /// What the names of its files begin with.
    prefix: String,
    key: LessSafeKey,
    /// Counts blocks: a number is used once, as the cipher wants it.
    blocks: u64,
}

impl Vault {
    /// Makes the folder, if it is not there.
    pub fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("no random numbers"))?;
        let key =
            UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| io::Error::other("no key"))?;
        let prefix = format!("{}{}-", *PROCESS, ENGINES.fetch_add(1, Ordering::Relaxed));
        Ok(Self { dir: dir.to_owned(), prefix, key: LessSafeKey::new(key), blocks: 0 })
    }

    fn path(&self, session: u64) -> PathBuf {
        self.dir.join(format!("{}{session}{ENDING}", self.prefix))
    }

    /// Removes all that it wrote.
    pub fn clear(&self) {
        clear(&self.dir, |name| name.starts_with(&self.prefix));
    }

    /// Removes what was written of a session.
    pub fn remove(&self, session: u64) {
        // It may never have been written.
        let _ = fs::remove_file(self.path(session));
    }

    /// Writes a session's file.
    pub fn write(
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

    /// Reads a session's file back.
    pub fn read<T>(
        &self,
        session: u64,
        take: impl FnOnce(&mut Opening<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let file = BufReader::new(File::open(self.path(session))?);
        take(&mut Opening { file, vault: self, session, index: 0, plain: Vec::new(), at: 0 })
    }
}

/// Encrypts what is written: blocks of their number, their length, and the sealed bytes.
pub struct Sealing<'a> {
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
pub struct Opening<'a> {
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
        let mut vault = Vault::open(folder.path()).unwrap();
        let said: Vec<u8> = b"a secret conversation ".repeat(120_000);
        vault.write(7, |out| out.write_all(&said)).unwrap();
        let path = vault.path(7);
        let file = fs::read(&path).unwrap();
        assert!(!file.windows(8).any(|bytes| bytes == b"a secret"));
        let read = |vault: &Vault, session| {
            vault.read(session, |from| {
                let mut back = vec![0; said.len()];
                from.read_exact(&mut back)?;
                Ok(back)
            })
        };
        assert_eq!(read(&vault, 7).unwrap(), said);
        // Another session's, a damaged one, one that is cut, and one of another engine.
        fs::copy(&path, vault.path(8)).unwrap();
        assert!(read(&vault, 8).is_err());
        let mut damaged = file.clone();
        damaged[file.len() / 2] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(read(&vault, 7).is_err());
        fs::write(&path, &file[..file.len() - 1]).unwrap();
        assert!(read(&vault, 7).is_err());
        let other = Vault::open(folder.path()).unwrap();
        fs::write(other.path(7), &file).unwrap();
        assert!(read(&other, 7).is_err());
    }

    #[test]
    fn each_engine_clears_its_own_and_a_process_what_others_left() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("7.kv");
        let foreign = folder.path().join("7.txt");
        for path in [&left, &foreign] {
            fs::write(path, "left by another").unwrap();
        }
        let (mut old, mut new) =
            (Vault::open(folder.path()).unwrap(), Vault::open(folder.path()).unwrap());
        for vault in [&mut old, &mut new] {
            vault.write(7, |out| out.write_all(b"said")).unwrap();
        }
        old.clear();
        assert!(!old.path(7).exists() && new.path(7).exists());
        clear_others(folder.path());
        assert!(!left.exists() && foreign.exists() && new.path(7).exists());
    }
}
