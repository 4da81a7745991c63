//! In which order products go through the rows of a matrix.
//!
//! A band has one row for each lane. Each lane walks through rows that follow each other in memory, far enough
//! that it is alone in a page: the CPU's prefetcher follows one stream a page.

#![allow(clippy::inline_always, reason = "must take on the caller's target features")]

use crate::kernels::{Out, Rows};
use crate::tensor::Matrix;

/// Bytes that a lane reads without a gap, where rows are shorter.
const STREAM: usize = 24576;

/// Bands that follow each other: every lane goes on to its next row.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// The first lane's first row.
    row: usize,
    /// How many bands, and rows from lane to lane.
    pub(super) bands: usize,
    /// Lanes that have rows.
    lanes: usize,
}

/// Where a band begins in the row of each lane.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) rows: *const *const u8,
    /// Bytes from there.
    pub(super) offset: usize,
}

impl Group {
    /// Where one of its bands begins, and the band after it, from its rows and those of the next group.
    #[inline(always)]
    pub(super) fn starts(
        self,
        band: usize,
        w: &Matrix<'_>,
        rows: &[*const u8],
        next: &[*const u8],
    ) -> [Start; 2] {
        let here = Start { rows: rows.as_ptr(), offset: band * w.row_stride() };
        let next = if band + 1 < self.bands {
            Start { offset: here.offset + w.row_stride(), ..here }
        } else {
            Start { rows: next.as_ptr(), offset: 0 }
        };
        [here, next]
    }

    /// Where the first row of each lane begins, and of those without one the last row again: nobody keeps
    /// their products.
    #[inline(always)]
    pub(super) fn rows<const LANES: usize>(
        self,
        w: &Matrix<'_>,
        all: Rows<'_>,
    ) -> [*const u8; LANES] {
        std::array::from_fn(|lane| {
            let row = self.row + lane.min(self.lanes - 1) * self.bands;
            w.start().wrapping_add(all.row(row) * w.row_stride())
        })
    }

    /// Writes the sums of one of its bands and a token.
    ///
    /// # Safety
    /// The output has a place for that token and each of the rows.
    #[inline(always)]
    pub(super) unsafe fn store(self, band: usize, sums: &[f32], token: usize, out: &Out<'_>) {
        for (lane, sum) in sums.iter().enumerate().take(self.lanes) {
            // SAFETY: the caller vouches for the places.
            unsafe { *out.at(token, self.row + lane * self.bands + band) = *sum }
        }
    }
}

/// The groups of some rows.
pub(super) struct Groups {
    row: usize,
    end: usize,
    lanes: usize,
    most: usize,
}

impl Groups {
    /// In bands of that many lanes. For many tokens rows lie side by side, as they are not read as fast; listed
    /// ones do not follow each other.
    pub(super) fn new(w: &Matrix<'_>, all: Rows<'_>, lanes: usize, tokens: usize) -> Self {
        let streams = tokens <= 8 && all.list.is_none();
        // An odd count, lest all lanes begin at the same place of a page and so compete for the same lines of
        // the cache.
        let most = if streams { STREAM.div_ceil(w.row_stride().max(1)) | 1 } else { 1 };
        Self { row: all.start, end: all.end, lanes, most }
    }
}

impl Iterator for Groups {
    type Item = Group;

    #[inline(always)]
    fn next(&mut self) -> Option<Group> {
        let left = self.end - self.row;
        if left == 0 {
            return None;
        }
        let bands = self.most.min(left / self.lanes).max(1);
        let group = Group { row: self.row, bands, lanes: self.lanes.min(left) };
        self.row += group.lanes * bands;
        Some(group)
    }
}
