//! What of a file is in the system's page cache. The end-to-end tests use it too.

#![allow(unsafe_code, reason = "the system tells of pages by address")]

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use memmap2::Mmap;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::unistd::{SysconfVar, sysconf};

/// A file on the disk and not in memory, as the page cache shows it to a mapping that nobody reads.
pub struct Watched {
    file: File,
    map: Mmap,
}

impl Watched {
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        // SAFETY: its bytes are never looked at.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        Self { file, map }
    }

    /// Has everything leave the page cache that nobody has mapped.
    pub fn drop_pages(&self) {
        self.file.sync_all().unwrap();
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    }

    /// How many of these bytes are in the page cache, in whole pages, and how many there are.
    pub fn cached(&self, ranges: &[Range<usize>]) -> (usize, usize) {
        let page = usize::try_from(sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap()).unwrap();
        let mut pages = vec![0_u8; self.map.len().div_ceil(page)];
        let start = self.map.as_ptr().cast_mut().cast();
        // SAFETY: it is all of the mapping, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(start, self.map.len(), pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let (mut cached, mut all) = (0, 0);
        for range in ranges {
            let pages = &pages[range.start / page..range.end.div_ceil(page)];
            cached += page * pages.iter().filter(|page| *page & 1 == 1).count();
            all += page * pages.len();
        }
        (cached, all)
    }

    /// Waits until all of these bytes are in the page cache.
    pub fn wait(&self, ranges: &[Range<usize>]) {
        self.until(ranges, |cached, all| cached == all);
    }

    /// Waits until as many are, of all.
    pub fn until(&self, ranges: &[Range<usize>], enough: impl Fn(usize, usize) -> bool) {
        let began = Instant::now();
        loop {
            let (cached, all) = self.cached(ranges);
            if enough(cached, all) {
                return;
            }
            let patient = began.elapsed() < Duration::from_secs(60);
            assert!(patient, "{cached} of {all} bytes are in memory");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
