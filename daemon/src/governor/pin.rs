//! The pinned size on disk: one line of TOML, written so that a power cut leaves the old or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A pin file is never longer than this; anything longer is not one.
const LONGEST: u64 = 4096;

/// The pin in this file; None if there is none, or if the file is damaged, which is logged.
pub fn read(path: &Path) -> Option<String> {
    let text = match fs::metadata(path) {
        Ok(metadata) if metadata.len() <= LONGEST => fs::read_to_string(path),
        Ok(_) => Err(io::Error::other("it is too long")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error),
    };
    let size = text.and_then(|text| {
        let line = text.trim().strip_prefix("size = \"").and_then(|rest| rest.strip_suffix('"'));
        let size = line.filter(|size| is_size(size));
        size.map(str::to_owned).ok_or_else(|| io::Error::other("it holds no size"))
    });
    size.inspect_err(|error| {
        tracing::warn!(path = %path.display(), %error, "the pinned size cannot be read");
    })
    .ok()
}

/// Whether this could be the name of a size: what a sizes table may hold, without what TOML would quote.
pub fn is_size(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.chars().all(|c| !c.is_control() && c != '"' && c != '\\')
}

/// Keeps the pin, or forgets it.
pub fn write(path: &Path, size: Option<&str>) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("it has no folder"))?;
    match size {
        None => match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        },
        Some(size) => {
            make(folder)?;
            let fresh = path.with_extension("new");
            let mut file = File::create(&fresh)?;
            writeln!(file, "size = \"{size}\"")?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
        }
    }
    // The name in the folder is on disk only when the folder is.
    File::open(folder)?.sync_all()
}

/// Makes a folder and those that it lies in, names on disk included.
fn make(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    make(parent)?;
    fs::create_dir(folder)?;
    File::open(Path::new(".").join(parent))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_is_no_pin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/of/it/pin.toml");
        assert_eq!(read(&path), None);
        write(&path, None).unwrap();
        write(&path, Some("E2B")).unwrap();
        assert_eq!(read(&path).as_deref(), Some("E2B"));
        write(&path, Some("E2.97M (half)")).unwrap();
        assert_eq!(read(&path).as_deref(), Some("E2.97M (half)"));
        write(&path, None).unwrap();
        write(&path, None).unwrap();
        assert_eq!(read(&path), None);
        for damage in ["", "size = ", "size = \"\"", "\u{0}\u{0}", "size = \"a\"\nsize = \"b\""] {
            fs::write(&path, damage).unwrap();
            assert_eq!(read(&path), None, "{damage:?}");
        }
        fs::write(&path, [0xff; 10]).unwrap();
        assert_eq!(read(&path), None);
        fs::write(&path, "x".repeat(10_000)).unwrap();
        assert_eq!(read(&path), None);
    }
}
