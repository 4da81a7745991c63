//! In which order products go through the rows of a matrix, and how they find them.
//!
//! A band has one row for each lane. Where rows lie one after the other ([`ByRows`]), each lane walks through
//! rows that follow each other in memory, far enough that it is alone in a page: the CPU's prefetcher follows
//! one stream a page. A tiled matrix ([`ByTiles`], [`crate::tiles`]) is one stream.

#![allow(unsafe_code, reason = "raw rows, lengths checked where products begin")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]

use crate::kernels::lanes::Lanes;
use crate::kernels::{Out, Rows};
use crate::tensor::Matrix;
use crate::tiles;

/// Bytes that a lane reads without a gap, where rows are shorter.
const STREAM: usize = 24576;

/// Where the rows of a band lie.
pub(super) trait Band: Copy {
    /// What is kept of a group while its bands are multiplied.
    type Held<const LANES: usize>: Copy;

    /// Rows that are multiplied in turn, a stretch of each, where registers hold as many as given.
    fn rows(lanes: usize) -> usize;

    /// Finds the rows of a group.
    fn hold<const LANES: usize>(group: Group, w: &Matrix<'_>, all: Rows<'_>) -> Self::Held<LANES>;

    /// The rows that were found.
    fn of<const LANES: usize>(held: &Self::Held<LANES>) -> Self;

    /// The rows from this one of the band on.
    fn lanes_from(self, lane: usize) -> Self;

    /// As [`Lanes::gather`].
    ///
    /// # Safety
    /// As for `product`; the rows have those bytes.
    unsafe fn gather<L: Lanes>(self, offset: usize) -> [L::I; 4];

    /// As [`Lanes::gather_u16`].
    ///
    /// # Safety
    /// As for `product`; the rows have those bytes.
    unsafe fn gather_u16<L: Lanes>(self, offset: usize) -> L::I;

    /// Whether something is asked for ahead with the gather of that number in a stretch.
    fn asks(gathered: usize) -> bool;

    /// Asks for what is gathered from `offset` on until it is asked again.
    ///
    /// # Safety
    /// As for `product`.
    unsafe fn ask<L: Lanes>(self, offset: usize);

    /// Asks for that many bytes of each of so many rows.
    ///
    /// # Safety
    /// As for `product`.
    unsafe fn ask_for<L: Lanes>(self, rows: usize, offset: usize, bytes: usize);
}

/// A pointer for each lane.
#[derive(Clone, Copy)]
pub(super) struct ByRows(*const *const u8);

impl Band for ByRows {
    type Held<const LANES: usize> = [*const u8; LANES];

    #[inline(always)]
    fn rows(lanes: usize) -> usize {
        lanes
    }

    /// Of lanes without a row the last row again: nobody keeps their products.
    #[inline(always)]
    fn hold<const LANES: usize>(group: Group, w: &Matrix<'_>, all: Rows<'_>) -> [*const u8; LANES] {
        std::array::from_fn(|lane| {
            let row = group.row + lane.min(group.lanes - 1) * group.bands;
            w.start().wrapping_add(all.row(row) * w.row_stride())
        })
    }

    #[inline(always)]
    fn of<const LANES: usize>(held: &[*const u8; LANES]) -> Self {
        Self(held.as_ptr())
    }

    #[inline(always)]
    fn lanes_from(self, lane: usize) -> Self {
        Self(self.0.wrapping_add(lane))
    }

    #[inline(always)]
    unsafe fn gather<L: Lanes>(self, offset: usize) -> [L::I; 4] {
        // SAFETY: the caller's.
        unsafe { L::gather(self.0, offset) }
    }

    #[inline(always)]
    unsafe fn gather_u16<L: Lanes>(self, offset: usize) -> L::I {
        // SAFETY: the caller's.
        unsafe { L::gather_u16(self.0, offset) }
    }

    /// Every 64 bytes: each line of the cache once.
    #[inline(always)]
    fn asks(gathered: usize) -> bool {
        gathered.is_multiple_of(4)
    }

    #[inline(always)]
    unsafe fn ask<L: Lanes>(self, offset: usize) {
        for lane in 0..L::N {
            // SAFETY: the caller's; nothing is read through a pointer that only a prefetch takes.
            unsafe { L::prefetch((*self.0.add(lane)).wrapping_add(offset)) }
        }
    }

    #[inline(always)]
    unsafe fn ask_for<L: Lanes>(self, rows: usize, offset: usize, bytes: usize) {
        for row in 0..rows {
            for line in (0..bytes).step_by(64) {
                // SAFETY: as above.
                unsafe { L::prefetch((*self.0.add(row)).wrapping_add(offset + line)) }
            }
        }
    }
}

/// The rows of a band of a tiled matrix, from some lane on.
#[derive(Clone, Copy)]
pub(super) struct ByTiles {
    band: *const u8,
    lane: usize,
    /// Bytes from a band to the next.
    stride: usize,
}

impl Band for ByTiles {
    type Held<const LANES: usize> = Self;

    /// Of a tile all rows, as their bytes share lines of the cache.
    #[inline(always)]
    fn rows(lanes: usize) -> usize {
        lanes.max(tiles::ROWS)
    }

    #[inline(always)]
    fn hold<const LANES: usize>(group: Group, w: &Matrix<'_>, _: Rows<'_>) -> Self {
        let band = w.start().wrapping_add(group.row * w.row_stride());
        Self { band, lane: 0, stride: tiles::ROWS * w.row_stride() }
    }

    #[inline(always)]
    fn of<const LANES: usize>(held: &Self) -> Self {
        *held
    }

    #[inline(always)]
    fn lanes_from(self, lane: usize) -> Self {
        let lane = self.lane + lane;
        let band = self.band.wrapping_add(lane / tiles::ROWS * self.stride);
        Self { band, lane: lane % tiles::ROWS, ..self }
    }

    #[inline(always)]
    unsafe fn gather<L: Lanes>(self, offset: usize) -> [L::I; 4] {
        // SAFETY: the caller's; 16 bytes of each row are four words of all of them.
        unsafe {
            let words = self.band.add(tiles::ROWS * offset + 4 * self.lane);
            let word = |at: usize| words.add(4 * tiles::ROWS * at);
            [L::load_i(word(0)), L::load_i(word(1)), L::load_i(word(2)), L::load_i(word(3))]
        }
    }

    #[inline(always)]
    unsafe fn gather_u16<L: Lanes>(self, offset: usize) -> L::I {
        // SAFETY: the caller's.
        unsafe { L::load_u16(self.band.add(tiles::ROWS * offset + 2 * self.lane)) }
    }

    #[inline(always)]
    fn asks(_: usize) -> bool {
        true
    }

    /// Each part of the lanes asks for its share of the lines of all.
    #[inline(always)]
    unsafe fn ask<L: Lanes>(self, offset: usize) {
        let first = self.band.wrapping_add(tiles::ROWS * (offset + self.lane));
        for line in 0..L::N / 4 {
            // SAFETY: the caller's.
            unsafe { L::prefetch(first.wrapping_add(64 * line)) }
        }
    }

    #[inline(always)]
    unsafe fn ask_for<L: Lanes>(self, rows: usize, offset: usize, bytes: usize) {
        for band in 0..rows / tiles::ROWS {
            let first = self.band.wrapping_add(band * self.stride + tiles::ROWS * offset);
            for line in (0..tiles::ROWS * bytes).step_by(64) {
                // SAFETY: the caller's.
                unsafe { L::prefetch(first.wrapping_add(line)) }
            }
        }
    }
}

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
pub(super) struct Start<B: Band> {
    pub(super) rows: B,
    /// Bytes from there.
    pub(super) offset: usize,
}

impl Group {
    /// Where one of its bands begins, and the band after it, from its rows and those of the next group.
    #[inline(always)]
    pub(super) fn starts<B: Band>(
        self,
        band: usize,
        w: &Matrix<'_>,
        rows: B,
        next: B,
    ) -> [Start<B>; 2] {
        let here = Start { rows, offset: band * w.row_stride() };
        let next = if band + 1 < self.bands {
            Start { offset: here.offset + w.row_stride(), ..here }
        } else {
            Start { rows: next, offset: 0 }
        };
        [here, next]
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
    /// ones do not follow each other, and those of tiles are side by side in any case.
    pub(super) fn new(w: &Matrix<'_>, all: Rows<'_>, lanes: usize, tokens: usize) -> Self {
        let streams = tokens <= 8 && all.list.is_none() && !w.kind().is_tiled();
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
