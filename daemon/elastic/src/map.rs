//! A model's file, mapped read-only, and what of it is in memory.
//!
//! A mapped file can be cut or overwritten while it is in use; reading a page that is no longer there
//! raises SIGBUS, which by itself ends the process. So: the file's identity, length and time of change
//! are kept from the moment it was opened and compared before each step ([`Mapping::check`]), and the
//! first mapping installs a handler that puts zeros where a page of a mapping is gone and notes it. The
//! computation ends with wrong numbers, `check` refuses them, and the model has to be loaded again. A
//! SIGBUS anywhere else has its default effect. Replace a model by renaming a new file over it: the old
//! one stays whole for those who have it open.

#![allow(unsafe_code, reason = "mapping, advice and the handler are system calls on raw memory")]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::error::{Error, Result};
use crate::fault;

/// Bytes that are read ahead with one call. Linux reads no more than the disk's `read_ahead_kb` or its
/// largest transfer, whichever is more, and silently drops the rest of what it is asked for.
const AHEAD: usize = 128 << 10;
/// Bytes that are looked at together before: asking for what is there makes the system search for every page.
const LOOK: usize = 2 << 20;
/// Where the system tells which pages of this process are in memory.
const PAGEMAP: &str = "/proc/self/pagemap";

/// A mapped file.
pub struct Mapping {
    path: PathBuf,
    file: File,
    opened: Identity,
    /// Its place among the mappings that the SIGBUS handler knows. In front of the mapping, so that it is
    /// dropped before the file is unmapped.
    guard: fault::Guard,
    map: Mmap,
}

/// What must stay as it was when the file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub len: u64,
    /// Seconds and nanoseconds.
    pub changed: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        let changed = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { len: metadata.len(), changed })
    }
}

impl Mapping {
    /// Opens and maps a file.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let opened = Identity::of(&file).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() || opened.len == 0 {
            return Err(Error::format(path.display().to_string(), "no file, or an empty one"));
        }
        // SAFETY: the file may be changed by others, and then the bytes change under their readers. No
        // reader here trusts them twice: headers are checked before they are used, weights are numbers
        // of which every value is allowed, and pages that are gone are met by the handler.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(io)?;
        let guard =
            fault::watch(map.as_ptr() as usize..map.as_ptr() as usize + map.len()).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, opened, guard, map })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file was when it was opened, whatever has its name now.
    pub(crate) fn opened(&self) -> Identity {
        self.opened
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Fails if the file is no longer what was opened.
    pub fn check(&self) -> Result<()> {
        let now = Identity::of(&self.file)
            .map_err(|source| Error::Io { path: self.path.clone(), source })?;
        if now == self.opened && !self.guard.faulted() { Ok(()) } else { Err(Error::FileChanged) }
    }

    /// Reads bytes through the file and not the mapping, so that they take no memory afterwards.
    pub fn read(&self, range: Range<usize>, out: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(out, range.start as u64)
            .map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// Lets the system take the pages of these ranges back, from this process and from the page cache.
    /// What is needed again is read again. Goes on from one range to the next for as long as `go_on` says
    /// so.
    pub fn give_back(&self, ranges: &[Range<usize>], go_on: &dyn Fn() -> bool) {
        for range in ranges {
            if !go_on() {
                return;
            }
            let Some(range) = self.whole_pages(range) else { continue };
            // SAFETY: the pages are a file's, mapped shared and read-only, so what is dropped is read
            // from the file again.
            let _ = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
            if let (Ok(start), Ok(len)) = (range.start.try_into(), range.len().try_into()) {
                let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                let _ = posix_fadvise(&self.file, start, len, advice);
            }
        }
    }

    /// Has the system read these ranges ahead, where they are not in memory, for as long as `go_on` says
    /// so. Returns before all of it is there, but a slow disk makes it wait.
    pub fn read_ahead(&self, ranges: &[Range<usize>], go_on: &dyn Fn() -> bool) {
        let pagemap = File::open(PAGEMAP).ok();
        let there = |part: &Range<usize>| {
            let pages = pagemap.as_ref().and_then(|pagemap| self.pages(pagemap, part).ok());
            pages.is_some_and(|(there, all)| there == all)
        };
        for range in ranges {
            let end = range.end.min(self.map.len());
            for first in (range.start..end).step_by(LOOK) {
                let part = first..end.min(first + LOOK);
                let there = there(&part);
                for start in part.clone().step_by(AHEAD) {
                    if !go_on() {
                        return;
                    }
                    if there {
                        break;
                    }
                    let len = AHEAD.min(part.end - start);
                    let _ = self.map.advise_range(Advice::WillNeed, start, len);
                }
            }
        }
    }

    /// Tells the system that these ranges are read a row here and a row there.
    pub fn expect_random(&self, range: &Range<usize>) {
        let end = range.end.min(self.map.len());
        if range.start < end {
            let _ = self.map.advise_range(Advice::Random, range.start, end - range.start);
        }
    }

    /// Bytes of these ranges that are in memory and mapped here, in whole pages.
    pub fn resident(&self, ranges: &[Range<usize>]) -> std::io::Result<u64> {
        let pagemap = File::open(PAGEMAP)?;
        let mut resident = 0;
        for range in ranges {
            resident += (self.pages(&pagemap, range)?.0 * page_size()) as u64;
        }
        Ok(resident)
    }

    /// The pages of a range that are in memory and mapped here, and all of them.
    fn pages(&self, pagemap: &File, range: &Range<usize>) -> std::io::Result<(usize, usize)> {
        let page = page_size();
        let base = self.map.as_ptr() as usize;
        let first = (base + range.start) / page;
        let end = (base + range.end.min(self.map.len())).div_ceil(page);
        let mut entries = [0_u8; 8 * 512];
        let mut there = 0;
        for at in (first..end).step_by(512) {
            let count = (end - at).min(512);
            let buffer = entries.get_mut(..8 * count).unwrap_or_default();
            pagemap.read_exact_at(buffer, 8 * at as u64)?;
            // Bit 63 says that the page is in memory.
            there += buffer.chunks_exact(8).filter(|entry| entry.last() >= Some(&0x80)).count();
        }
        Ok((there, end.saturating_sub(first)))
    }

    /// The pages that lie wholly in a range.
    fn whole_pages(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let page = page_size();
        let start = range.start.next_multiple_of(page);
        let end = range.end.min(self.map.len()) / page * page;
        (start < end).then_some(start..end)
    }
}

/// Bytes of a page.
pub(crate) fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}
