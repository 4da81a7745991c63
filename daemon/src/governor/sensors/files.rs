//! Small files of sysfs and procfs, read with distrust.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::OFlag;

/// An attribute is at most a page.
const LONGEST: u64 = 4096;
/// A class with more devices than this is not looked at to its end.
const MOST: usize = 256;

/// The text of an attribute without the white space around it. None: there is no such file, it
/// cannot be read now, or it holds no text. A FIFO in its place does not block.
pub fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .ok()?
        .take(LONGEST)
        .read_to_string(&mut text)
        .ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number in an attribute.
pub fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// What is in a folder, by name; nothing where there is no folder.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.flatten().take(MOST).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The last part of a path, where it is text.
pub fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x");
        assert_eq!(text(&path), None);
        assert_eq!(text(root.path()), None);
        fs::write(&path, " 12\n").unwrap();
        assert_eq!(number::<u64>(&path), Some(12));
        fs::write(&path, "-12\n").unwrap();
        assert_eq!(number::<u64>(&path), None);
        fs::write(&path, b"\xff\xfe").unwrap();
        assert_eq!(text(&path), None);
        fs::write(&path, " \n").unwrap();
        assert_eq!(text(&path), None);
        fs::write(&path, "7".repeat(1 << 20)).unwrap();
        assert_eq!(number::<u64>(&path), None);
        let fifo = root.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(text(&fifo), None);
    }
}
