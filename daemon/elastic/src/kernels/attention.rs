//! What attention does with a KV cache: products of queries with a head's keys, and sums of its values.
//!
//! Several query heads share a head of the cache (grouped-query attention, arXiv 2305.13245), so every
//! element is loaded, and made a float, once for up to four of them. Each sum is added up in the same
//! order however many queries there are, so results do not depend on how the work was divided.

#![allow(unsafe_code, reason = "raw rows, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use std::ops::Range;

use crate::kernels::lanes::Lanes;
use crate::kernels::rows::{F16, F32, Float};

/// The rows of a KV cache, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Cached<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// The bits of half floats.
    F16(&'a [u16]),
    /// Blocks of 32 values.
    Q8_0(&'a [u8]),
}

/// One head's part of successive rows of a cache, which may be a ring.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub(super) cached: Cached<'a>,
    /// Bytes of a row, and of what lies before the head in it.
    row: usize,
    before: usize,
    dim: usize,
    first: usize,
    len: usize,
    ring: usize,
}

impl<'a> Head<'a> {
    /// These columns of rows of `width` values, at these positions, of which each is in the row that is
    /// its remainder by `ring`. None if the cache has not got them all.
    #[must_use]
    pub fn new(
        cached: Cached<'a>,
        width: usize,
        columns: Range<usize>,
        ring: usize,
        positions: Range<usize>,
    ) -> Option<Self> {
        let (have, block, block_bytes) = match cached {
            Cached::F32(values) => (size_of_val(values), 1, 4),
            Cached::F16(values) => (size_of_val(values), 1, 2),
            Cached::Q8_0(bytes) => (bytes.len(), 32, 34),
        };
        let whole = [width, columns.start, columns.end].iter().all(|at| at.is_multiple_of(block));
        let row = (width / block).checked_mul(block_bytes)?;
        let fits = whole
            && columns.start < columns.end
            && columns.end <= width
            && positions.len() <= ring
            && row.checked_mul(ring)? <= have;
        fits.then(|| Self {
            cached,
            row,
            before: columns.start / block * block_bytes,
            dim: columns.len(),
            first: positions.start.checked_rem(ring).unwrap_or(0),
            len: positions.len(),
            ring,
        })
    }

    /// Values of the head in a row.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn start(&self) -> *const u8 {
        let start: *const u8 = match self.cached {
            Cached::F32(values) => values.as_ptr().cast(),
            Cached::F16(values) => values.as_ptr().cast(),
            Cached::Q8_0(bytes) => bytes.as_ptr(),
        };
        start.wrapping_add(self.before)
    }

    /// Where the head begins in the `i`-th of its rows.
    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> *const u8 {
        let row = self.first + i;
        let row = if row < self.ring { row } else { row - self.ring };
        self.start().wrapping_add(row * self.row)
    }
}

/// How values are cached.
pub(super) trait Store {
    /// # Safety
    /// The row has [`Lanes::N`] values from `col` on, which is a multiple of that.
    unsafe fn load<L: Lanes>(row: *const u8, col: usize) -> L::F;

    /// # Safety
    /// The row has a value at `col`.
    unsafe fn one(row: *const u8, col: usize) -> f32;
}

impl<F: Float> Store for F {
    #[inline(always)]
    unsafe fn load<L: Lanes>(row: *const u8, col: usize) -> L::F {
        // SAFETY: the caller's.
        unsafe { F::load::<L>(row.add(col * F::BYTES)) }
    }

    #[inline(always)]
    unsafe fn one(row: *const u8, col: usize) -> f32 {
        // SAFETY: the caller's.
        unsafe { F::one(row.add(col * F::BYTES)) }
    }
}

pub(super) struct Q8_0;

impl Store for Q8_0 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(row: *const u8, col: usize) -> L::F {
        // SAFETY: the caller's; a block begins with its scale, a half float.
        unsafe {
            let block = row.add(col / 32 * 34);
            let scale = L::splat_i(i32::from(block.cast::<u16>().read_unaligned()));
            L::mul(L::load_i8(block.add(2 + col % 32)), L::from_f16(scale))
        }
    }

    #[inline(always)]
    unsafe fn one(row: *const u8, col: usize) -> f32 {
        // SAFETY: the caller's.
        unsafe {
            let block = row.add(col / 32 * 34);
            <F16 as Float>::one(block) * f32::from(block.add(2 + col % 32).cast::<i8>().read())
        }
    }
}

/// Calls a function for the way that a head is cached.
macro_rules! by_store {
    ($head:expr, $name:ident<$($lanes:ty)?>($($arg:expr),*)) => {
        match $head.cached {
            Cached::F32(_) => $name::<$($lanes,)? F32>($($arg),*),
            Cached::F16(_) => $name::<$($lanes,)? F16>($($arg),*),
            Cached::Q8_0(_) => $name::<$($lanes,)? Q8_0>($($arg),*),
        }
    };
}
pub(super) use by_store;

/// Queries and keys that are multiplied at once, so that eight sums are under way.
const SUMS: usize = 8;

/// # Safety
/// `queries` has whole rows of the head's values, `out` as many rows of a place for each key.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes>(queries: &[f32], keys: &Head<'_>, out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { by_store!(keys, scores_of<L>(queries, keys, out)) }
}

#[inline(always)]
unsafe fn scores_of<L: Lanes, S: Store>(queries: &[f32], keys: &Head<'_>, out: &mut [f32]) {
    let count = queries.len() / keys.dim;
    let mut done = 0;
    // SAFETY: there are `count` queries, and as many rows of `out`.
    unsafe {
        while done < count {
            let queries = queries.as_ptr().add(done * keys.dim);
            let out = out.as_mut_ptr().add(done * keys.len);
            done += match count - done {
                4.. => with_keys::<L, S, 4, { SUMS / 4 }>(queries, keys, out),
                2.. => with_keys::<L, S, 2, { SUMS / 2 }>(queries, keys, out),
                _ => with_keys::<L, S, 1, SUMS>(queries, keys, out),
            };
        }
    }
}

/// `Q` queries with all keys, `K` at a time.
#[inline(always)]
unsafe fn with_keys<L: Lanes, S: Store, const Q: usize, const K: usize>(
    queries: *const f32,
    keys: &Head<'_>,
    out: *mut f32,
) -> usize {
    let mut key = 0;
    // SAFETY: the caller's.
    unsafe {
        while key + K <= keys.len {
            dots::<L, S, Q, K>(queries, keys, key, out);
            key += K;
        }
        while key < keys.len {
            dots::<L, S, Q, 1>(queries, keys, key, out);
            key += 1;
        }
    }
    Q
}

#[inline(always)]
unsafe fn dots<L: Lanes, S: Store, const Q: usize, const K: usize>(
    queries: *const f32,
    keys: &Head<'_>,
    key: usize,
    out: *mut f32,
) {
    let mut rows = [std::ptr::null(); K];
    for k in 0..K {
        rows[k] = keys.at(key + k);
    }
    // SAFETY: the rows are within the cache, there are `Q` queries, and a place for each result.
    unsafe {
        let mut acc = [[L::splat(0.0); K]; Q];
        let mut col = 0;
        while col + L::N <= keys.dim {
            let mut values = [L::splat(0.0); K];
            for k in 0..K {
                values[k] = S::load::<L>(rows[k], col);
            }
            for q in 0..Q {
                let query = L::load(queries.add(q * keys.dim + col));
                for k in 0..K {
                    acc[q][k] = L::fma(query, values[k], acc[q][k]);
                }
            }
            col += L::N;
        }
        for q in 0..Q {
            for k in 0..K {
                let mut sum = L::sum(acc[q][k]);
                for col in col..keys.dim {
                    sum += *queries.add(q * keys.dim + col) * S::one(rows[k], col);
                }
                *out.add(q * keys.len + key + k) = sum;
            }
        }
    }
}

/// # Safety
/// `weights` has whole rows of one for each value, `out` as many rows of the head's values.
#[inline(always)]
pub(super) unsafe fn blend<L: Lanes>(weights: &[f32], values: &Head<'_>, out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { by_store!(values, blend_of<L>(weights, values, out)) }
}

#[inline(always)]
unsafe fn blend_of<L: Lanes, S: Store>(weights: &[f32], values: &Head<'_>, out: &mut [f32]) {
    let count = out.len() / values.dim;
    let mut done = 0;
    // SAFETY: there are `count` rows of weights and of `out`.
    unsafe {
        while done < count {
            let weights = weights.as_ptr().add(done * values.len);
            let out = out.as_mut_ptr().add(done * values.dim);
            done += match count - done {
                4.. => with_values::<L, S, 4, { SUMS / 4 }>(weights, values, out),
                2.. => with_values::<L, S, 2, { SUMS / 2 }>(weights, values, out),
                _ => with_values::<L, S, 1, SUMS>(weights, values, out),
            };
        }
    }
}

/// `Q` rows of weights with all values, `R` registers of columns at a time.
#[inline(always)]
unsafe fn with_values<L: Lanes, S: Store, const Q: usize, const R: usize>(
    weights: *const f32,
    values: &Head<'_>,
    out: *mut f32,
) -> usize {
    let mut col = 0;
    // SAFETY: the caller's.
    unsafe {
        while col + R * L::N <= values.dim {
            sums::<L, S, Q, R>(weights, values, col, out);
            col += R * L::N;
        }
        while col + L::N <= values.dim {
            sums::<L, S, Q, 1>(weights, values, col, out);
            col += L::N;
        }
        for col in col..values.dim {
            for q in 0..Q {
                let mut sum = 0.0;
                for i in 0..values.len {
                    sum += *weights.add(q * values.len + i) * S::one(values.at(i), col);
                }
                *out.add(q * values.dim + col) = sum;
            }
        }
    }
    Q
}

#[inline(always)]
unsafe fn sums<L: Lanes, S: Store, const Q: usize, const R: usize>(
    weights: *const f32,
    values: &Head<'_>,
    col: usize,
    out: *mut f32,
) {
    // SAFETY: the rows are within the cache, there are `Q` rows of weights, and a place for each result.
    unsafe {
        let mut acc = [[L::splat(0.0); R]; Q];
        for i in 0..values.len {
            let row = values.at(i);
            let mut loaded = [L::splat(0.0); R];
            for r in 0..R {
                loaded[r] = S::load::<L>(row, col + r * L::N);
            }
            for q in 0..Q {
                let weight = L::splat(*weights.add(q * values.len + i));
                for r in 0..R {
                    acc[q][r] = L::fma(weight, loaded[r], acc[q][r]);
                }
            }
        }
        for q in 0..Q {
            for r in 0..R {
                L::store(out.add(q * values.dim + col + r * L::N), acc[q][r]);
            }
        }
    }
}
