//! A file of KV caches, damaged. What is in it is another target's: `kv_file`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::Vault;

const SESSION: u64 = 7;

/// A file that was well-formed until these bytes were put over it, by exclusive or; more of them go behind it.
pub(crate) fn run(folder: &Path, bytes: &[u8]) {
    let said = b"a secret conversation";
    let mut vault = Vault::open(&folder.join("spill")).unwrap();
    vault.write(SESSION, |out| out.write_all(said)).unwrap();
    let mut file = fs::read(vault.path(SESSION)).unwrap();
    file.resize(file.len().max(bytes.len()), 0);
    file.iter_mut().zip(bytes).for_each(|(byte, damage)| *byte ^= damage);
    fs::write(vault.path(SESSION), file).unwrap();
    let mut read = vec![0; said.len()];
    if vault.read(SESSION, |from| from.read_exact(&mut read)).is_ok() {
        assert_eq!(read, said);
    }
    // Whatever follows is no part of it.
    assert!(vault.read(SESSION, |from| from.read_to_end(&mut read)).is_err());
}
