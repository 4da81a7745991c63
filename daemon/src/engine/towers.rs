//! The folder that mistral.rs is pointed at: links to a model's own files, its sizes in plain numbers,
//! and, where the checkpoint has no vision or audio tower, a file that stands in for them.
//!
//! mistral.rs loads both towers whether they are used or not. The stand-in is a safetensors file whose
//! data is a hole: it takes no room on the disk and a second to make. The folder lives in the cache,
//! appears there by a rename, and is made again when one of the model's files changes. Called by
//! `mistralrs` before a load.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nestd_elastic::sizes;
use serde_json::{Map, Value, json};

use super::checkpoint::safetensors::Tensor;
use super::checkpoint::{Checkpoint, SIZES_FILE, Wanted};

/// Goes up when what is written changes, so that older folders are not used.
const FORMAT: u32 = 1;
/// The type of the published towers.
const DTYPE: &str = "BF16";

/// Makes the folder for a model, unless it is there, and tells where. The error names the path.
pub fn folder(model: &str, checkpoint: &Checkpoint, cache_dir: &Path) -> io::Result<PathBuf> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("model.cache_dir {}: {error}", cache_dir.display()))
    };
    make(model, checkpoint, cache_dir).map_err(named)
}

fn make(model: &str, checkpoint: &Checkpoint, cache_dir: &Path) -> io::Result<PathBuf> {
    let name = format!("{model}-{:016x}", fingerprint(checkpoint)?);
    let folder = cache_dir.join(&name);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(cache_dir)?;
    let unfinished = cache_dir.join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir(&unfinished)?;
    // A folder that is there is taken to be whole, after a power cut too.
    let made = fill(&unfinished, checkpoint)
        .and_then(|()| sync(&unfinished))
        .and_then(|()| fs::rename(&unfinished, &folder))
        .and_then(|()| sync(cache_dir));
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&unfinished);
        // Someone else may have been quicker.
        return if folder.is_dir() { Ok(folder) } else { Err(error) };
    }
    remove_older(model, &name, cache_dir);
    Ok(folder)
}

/// Brings the names in a folder to the disk.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn fill(folder: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    for file in &checkpoint.files {
        symlink(fs::canonicalize(file)?, folder.join(file.file_name().unwrap_or_default()))?;
    }
    let lacking = &checkpoint.lacking;
    let total = checkpoint.weights.len() + usize::from(!lacking.is_empty());
    let shard = |index: usize| folder.join(format!("model-{index:05}-of-{total:05}.safetensors"));
    for (index, file) in checkpoint.weights.iter().enumerate() {
        symlink(fs::canonicalize(file)?, shard(index + 1))?;
    }
    if !lacking.is_empty() {
        write_hole(&shard(total), lacking)?;
    }
    if checkpoint.sliced {
        let mut file = File::create_new(folder.join(SIZES_FILE))?;
        file.write_all(sizes::write(&checkpoint.sizes).as_bytes())?;
        file.sync_all()?;
    }
    Ok(())
}

/// Writes a safetensors file with these tensors, all of them zeros that are not there.
fn write_hole(path: &Path, tensors: &[Wanted]) -> io::Result<()> {
    let mut header = Map::new();
    let mut end: u64 = 0;
    for wanted in tensors {
        let bytes = Tensor::new(DTYPE, wanted.shape.clone()).bytes();
        let from = end;
        end = bytes.and_then(|bytes| from.checked_add(bytes)).ok_or_else(|| {
            io::Error::other(format!("{} has the shape {:?}", wanted.name, wanted.shape))
        })?;
        let entry = json!({ "dtype": DTYPE, "shape": wanted.shape, "data_offsets": [from, end] });
        header.insert(wanted.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create_new(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.set_len(8 + header.len() as u64 + end)?;
    file.sync_all()
}

/// Changes when a file of the model does.
fn fingerprint(checkpoint: &Checkpoint) -> io::Result<u64> {
    let mut hash = DefaultHasher::new();
    FORMAT.hash(&mut hash);
    for file in checkpoint.weights.iter().chain(&checkpoint.files) {
        let file = fs::canonicalize(file)?;
        let metadata = fs::metadata(&file)?;
        let changed = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        (file, metadata.len(), changed.unwrap_or_default()).hash(&mut hash);
    }
    sizes::write(&checkpoint.sizes).hash(&mut hash);
    Ok(hash.finish())
}

/// Removes the folders that were made for earlier states of the model. What cannot be removed only
/// takes a few blocks.
fn remove_older(model: &str, current: &str, cache_dir: &Path) {
    for entry in fs::read_dir(cache_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let hash = name.strip_prefix(model).and_then(|rest| rest.strip_prefix('-'));
        let ours = hash.is_some_and(|hash| {
            hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if ours && name != current {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::super::checkpoint::tests::Fixture;
    use super::*;

    #[test]
    fn the_folder_is_whole_takes_no_room_and_follows_the_model() {
        let fixture = Fixture::new();
        let cache = tempfile::tempdir().unwrap();
        let checkpoint = fixture.open().unwrap();
        let first = folder("demo", &checkpoint, cache.path()).unwrap();
        assert_eq!(folder("demo", &checkpoint, cache.path()).unwrap(), first);

        // What was made is a model that lacks nothing.
        let made = Checkpoint::open("made", &first).unwrap();
        assert_eq!(made.lacking, []);
        assert_eq!(made.weights.len(), 2);
        let hole = fs::metadata(first.join("model-00002-of-00002.safetensors")).unwrap();
        assert!(hole.len() > 500 << 20, "{}", hole.len());
        assert!(hole.blocks() * 512 < 1 << 20, "{}", hole.blocks());

        // Another state of the model takes the place of the first; other models' folders stay.
        let other = folder("other", &checkpoint, cache.path()).unwrap();
        let tokenizer = fixture.path().join("tokenizer.json");
        fs::write(&tokenizer, "{ }").unwrap();
        let second = folder("demo", &fixture.open().unwrap(), cache.path()).unwrap();
        assert_ne!(first, second);
        assert!(!first.exists() && other.exists());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_told_by_path() {
        let fixture = Fixture::new();
        let file = fixture.path().join("config.json");
        let error = folder("demo", &fixture.open().unwrap(), &file).unwrap_err();
        assert!(error.to_string().contains("model.cache_dir /"), "{error}");
    }
}
