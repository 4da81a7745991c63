//! Products of quantized matrices with int8 activations, for any instruction set.
//!
//! A band of rows is taken at a time, one row for each lane. For a stretch of up to 256 columns the
//! raw blocks of the band are unpacked once into a tile of bytes that stays in the nearest cache,
//! where one register holds four consecutive columns of every row of the band. Then every token is
//! multiplied with it: no sums across lanes, and as the scales of 16 rows are worked out at once,
//! reading `Q4_K` is as cheap as reading `Q4_0`. One token alone needs no tile (`single`).

#![allow(unsafe_code, reason = "the inner loops: raw blocks, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use std::mem::MaybeUninit;

use crate::kernels::bands::{Band, Groups, Start};
use crate::kernels::lanes::Lanes;
use crate::kernels::pack::{BLOCKS, Pack, STRETCH, Tile, Tiling, unpack};
use crate::kernels::source::Source;
use crate::kernels::{Out, Rows, Window, single};
use crate::tensor::Matrix;

/// Fewer tokens are multiplied one by one: for them it does not pay to rearrange the weights.
const PAIRED: usize = 4;
/// Tokens whose sums are kept at once; a band is unpacked again for the next ones.
const TOKENS: usize = 128;

/// How many stretches ahead weights are asked for.
const AHEAD: usize = 2;
/// Rows of the largest band.
const MOST_ROWS: usize = 32;
/// Sums of integers of each half of a block.
type Halves<I, const R: usize, const T: usize> = [[[I; R]; T]; 2];

/// The products of one block; the second half's sums go on with the first's where one scale serves both.
///
/// # Safety
/// As for `multiply`.
#[inline(always)]
unsafe fn products<L: Lanes, P: Pack, const R: usize, const T: usize>(
    tiles: *const Tile<L>,
    block: usize,
    x: Activations,
) -> Halves<L::I, R, T> {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let mut halves = [[[L::splat_i(0); R]; T]; 2];
        let mut shorts = [[L::splat_i(0); R]; T];
        for half in 0..2 {
            if half == 1 && !P::HALVES {
                halves[1] = halves[0];
            }
            for k in 4 * half..4 * half + 4 {
                let mut weights = [L::splat_i(0); R];
                for r in 0..R {
                    weights[r] = (*tiles.add(r)).weights[block][k];
                }
                for t in 0..T {
                    let x = L::splat_i(x.columns(t, block, k).cast::<i32>().read_unaligned());
                    for r in 0..R {
                        let acc = &mut halves[half][t][r];
                        if P::WIDE {
                            *acc = L::dp_wide(*acc, weights[r], x);
                        } else if L::SHORT {
                            let short = &mut shorts[t][r];
                            *short = L::dp_short(*short, weights[r], x);
                            if (k + 1) % P::SHORTS == 0 {
                                *acc = L::widen(*acc, *short);
                                *short = L::splat_i(0);
                            }
                        } else {
                            *acc = L::dp(*acc, weights[r], x);
                        }
                    }
                }
            }
        }
        halves
    }
}

/// The same of a tile that was paired, two tokens at a time; an odd last one is taken twice.
///
/// # Safety
/// As for `multiply`.
#[inline(always)]
unsafe fn products_by_pairs<L: Lanes, P: Pack, const R: usize, const T: usize>(
    tiles: *const Tile<L>,
    block: usize,
    x: Activations,
) -> Halves<L::I, R, T> {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let mut halves = [[[L::splat_i(0); R]; T]; 2];
        for t in (0..T).step_by(2) {
            let other = (t + 1).min(T - 1);
            let mut sums = [[L::splat_i(0); 2]; R];
            for half in 0..2 {
                if half == 1 && P::HALVES {
                    sums = [[L::splat_i(0); 2]; R];
                }
                for k in [4 * half, 4 * half + 2] {
                    let x = L::two(x.columns(t, block, k), x.columns(other, block, k));
                    for r in 0..R {
                        let weights = &raw const (*tiles.add(r)).weights[block];
                        sums[r][0] = L::dp_pair(sums[r][0], (*weights)[k], x);
                        sums[r][1] = L::dp_pair(sums[r][1], (*weights)[k + 1], x);
                    }
                }
                if half == 1 || P::HALVES {
                    for r in 0..R {
                        let [first, second] = L::unzip(sums[r][0], sums[r][1]);
                        halves[half][other][r] = second;
                        halves[half][t][r] = first;
                    }
                }
            }
        }
        halves
    }
}

/// Rearranges a tile for `products_by_pairs`.
///
/// # Safety
/// The tile has that many blocks.
#[inline(always)]
unsafe fn pair<L: Lanes>(tile: *mut Tile<L>, blocks: usize) {
    // SAFETY: the caller vouches for the tile.
    unsafe {
        for block in 0..blocks {
            let weights = &raw mut (*tile).weights[block];
            for k in [0, 2, 4, 6] {
                [(*weights)[k], (*weights)[k + 1]] = L::zip((*weights)[k], (*weights)[k + 1]);
            }
        }
    }
}

/// Adds the products of `T` tokens with `R` tiles to their sums.
///
/// # Safety
/// As for `product`; the pointers have `blocks` blocks for each of `T` tokens at their strides, and
/// `acc` has `T` times `R` registers.
#[inline(always)]
unsafe fn multiply<L: Lanes, P: Pack, const R: usize, const T: usize>(
    tiles: *const Tile<L>,
    blocks: usize,
    paired: bool,
    x: Activations,
    acc: *mut L::F,
) {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let mut sums = [[L::splat(0.0); R]; T];
        for t in 0..T {
            for r in 0..R {
                sums[t][r] = *acc.add(t * R + r);
            }
        }
        for block in 0..blocks {
            let halves = if L::PAIRS && paired {
                products_by_pairs::<L, P, R, T>(tiles, block, x)
            } else {
                products::<L, P, R, T>(tiles, block, x)
            };
            for t in 0..T {
                let at = t * (x.stride / 32) + block;
                let scale = L::splat(*x.scales.add(at));
                for r in 0..R {
                    let tile = tiles.add(r);
                    // Without a scale for each half only the first of both was written.
                    let scales = &raw const (*tile).scales[block];
                    let minima = &raw const (*tile).minima[block];
                    let sum = &mut sums[t][r];
                    if P::HALVES {
                        let first = L::mul(L::float(halves[0][t][r]), (*scales)[0]);
                        let both = L::fma(L::float(halves[1][t][r]), (*scales)[1], first);
                        *sum = L::fma(both, scale, *sum);
                        *sum = L::fnma((*minima)[0], L::splat(*x.halves.add(2 * at)), *sum);
                        *sum = L::fnma((*minima)[1], L::splat(*x.halves.add(2 * at + 1)), *sum);
                    } else {
                        let products = L::mul(L::float(halves[1][t][r]), (*scales)[0]);
                        *sum = L::fma(products, scale, *sum);
                        *sum = L::fnma((*minima)[0], L::splat(*x.sums.add(at)), *sum);
                    }
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                *acc.add(t * R + r) = sums[t][r];
            }
        }
    }
}

/// Where a token's activations of a stretch begin.
#[derive(Clone, Copy)]
pub(super) struct Activations {
    /// Values from one token to the next.
    stride: usize,
    q: *const i8,
    scales: *const f32,
    sums: *const f32,
    halves: *const f32,
}

impl Activations {
    /// From the k-th four columns of a block on.
    ///
    /// # Safety
    /// The input has that token and block.
    #[inline(always)]
    pub(super) unsafe fn columns(&self, token: usize, block: usize, k: usize) -> *const i8 {
        // SAFETY: the caller vouches for the place.
        unsafe { self.q.add(token * self.stride + 32 * block + 4 * k) }
    }

    /// What one unit of the first token's int8 copies stands for in a block.
    ///
    /// # Safety
    /// The input has that block, as for the following.
    #[inline(always)]
    pub(super) unsafe fn scale(&self, block: usize) -> f32 {
        // SAFETY: the caller vouches for the place.
        unsafe { *self.scales.add(block) }
    }

    /// The first token's scaled sum of a block.
    #[inline(always)]
    pub(super) unsafe fn sum(&self, block: usize) -> f32 {
        // SAFETY: the caller vouches for the place.
        unsafe { *self.sums.add(block) }
    }

    /// The same of half a block.
    #[inline(always)]
    pub(super) unsafe fn half(&self, block: usize, half: usize) -> f32 {
        // SAFETY: the caller vouches for the place.
        unsafe { *self.halves.add(2 * block + half) }
    }

    /// # Safety
    /// The input has that token and column.
    #[inline(always)]
    pub(super) unsafe fn at(x: Window<'_>, token: usize, col: usize) -> Self {
        let first = token * x.stride() + col;
        // SAFETY: the caller vouches for the place, and the input's buffers fit each other.
        unsafe {
            Self {
                stride: x.stride(),
                q: x.q().as_ptr().add(first),
                scales: x.scales().as_ptr().add(first / 32),
                sums: x.sums().as_ptr().add(first / 32),
                halves: x.halves().as_ptr().add(first / 16),
            }
        }
    }
}

/// The products of a band of `R` registers with every token. `store` gets each token and its sums.
///
/// # Safety
/// As for `product`.
#[inline(always)]
unsafe fn multiply_band<L: Lanes, P: Pack, B: Band, const R: usize, const T: usize>(
    here: Start<B>,
    next: Start<B>,
    x: Window<'_>,
    store: impl Fn(usize, &[f32]),
) {
    let blocks = x.cols() / 32;
    let stretches = blocks.div_ceil(BLOCKS);
    let step = P::STRETCH_BYTES;
    let mut tiles = MaybeUninit::<[Tile<L>; R]>::uninit();
    let tiles = tiles.as_mut_ptr().cast::<Tile<L>>();
    let mut acc = MaybeUninit::<[[L::F; R]; TOKENS]>::uninit();
    let acc = acc.as_mut_ptr().cast::<L::F>();
    // SAFETY: `product` has checked that the rows have x.cols() columns and the output its rows;
    // a stretch never goes past the last block, a group never past the last token.
    unsafe {
        for first in (0..x.tokens()).step_by(TOKENS) {
            let tokens = (x.tokens() - first).min(TOKENS);
            let paired = L::PAIRS && tokens >= PAIRED;
            for i in 0..tokens * R {
                acc.add(i).write(L::splat(0.0));
            }
            for stretch in 0..stretches {
                let ahead = stretch + AHEAD;
                let (start, ahead) = match ahead.checked_sub(stretches) {
                    None => (here, here.offset + ahead * step),
                    Some(ahead) => (next, next.offset + ahead * step),
                };
                start.rows.ask_for::<L>(R * L::N, ahead, step);
                let count = (blocks - stretch * BLOCKS).min(BLOCKS);
                for r in 0..R {
                    let mut rows = Source::new(here.rows.lanes_from(r * L::N), None);
                    let mut to = Tiling::<L, P>::new(tiles.add(r));
                    unpack::<L, P>(&mut rows, here.offset + stretch * step, count, &mut to);
                    if paired {
                        pair(tiles.add(r), count);
                    }
                }
                let mut token = 0;
                while token < tokens {
                    let at = Activations::at(x, first + token, stretch * STRETCH);
                    let acc = acc.add(token * R);
                    match (tokens - token).min(T) {
                        1 => multiply::<L, P, R, 1>(tiles, count, paired, at, acc),
                        2 => multiply::<L, P, R, 2>(tiles, count, paired, at, acc),
                        3 => multiply::<L, P, R, 3>(tiles, count, paired, at, acc),
                        _ => multiply::<L, P, R, 4>(tiles, count, paired, at, acc),
                    }
                    token += T;
                }
            }
            for token in 0..tokens {
                let mut sums = [0.0; MOST_ROWS];
                for r in 0..R {
                    L::store(sums.as_mut_ptr().add(r * L::N), *acc.add(token * R + r));
                }
                store(first + token, &sums[..R * L::N]);
            }
        }
    }
}

/// Multiplies the rows in bands of `R` registers.
///
/// # Safety
/// As for `product`.
#[inline(always)]
unsafe fn multiply_rows<L: Lanes, P: Pack, B: Band, const R: usize, const T: usize>(
    w: &Matrix<'_>,
    all: Rows<'_>,
    x: Window<'_>,
    out: &Out<'_>,
) {
    let mut groups = Groups::new(w, all, R * L::N, x.tokens());
    let mut next = groups.next();
    while let Some(group) = next {
        next = groups.next();
        let rows = B::hold::<MOST_ROWS>(group, w, all);
        let after = next.map_or(rows, |next| B::hold::<MOST_ROWS>(next, w, all));
        for band in 0..group.bands {
            let [here, next] =
                group.starts(band, w, B::of::<MOST_ROWS>(&rows), B::of::<MOST_ROWS>(&after));
            // SAFETY: the caller's contract is that of `multiply_band`.
            unsafe {
                let store = |token, sums: &[f32]| group.store(band, sums, token, out);
                multiply_band::<L, P, B, R, T>(here, next, x, store);
            }
        }
    }
}

/// The products of these rows with every token.
///
/// # Safety
/// The CPU has the features of `L`; the matrix is of `P`'s kind and has those rows and as many
/// columns as the input, which is quantized; the output has a place for each token and row.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes, P: Pack, B: Band>(
    w: &Matrix<'_>,
    all: Rows<'_>,
    x: Window<'_>,
    out: &Out<'_>,
) {
    if x.tokens() == 1 {
        // SAFETY: the caller's contract is that of `single::product`.
        return unsafe { single::product::<L, P, B>(w, all, x, out) };
    }
    // Several registers of rows share each activation. Few rows would leave some of them empty.
    let rows = if L::N == 4 { 4 * L::N } else { 2 * L::N };
    let middle = all.start + (all.end - all.start) / rows * rows;
    let (first, rest) = (Rows { end: middle, ..all }, Rows { start: middle, ..all });
    // SAFETY: the caller's contract is that of `multiply_rows`.
    unsafe {
        // Sums in integers and in floats of all rows and tokens, and more, must fit 32 registers, or
        // 16 with AVX2, which keeps some in memory and is still faster so.
        if L::N == 4 {
            multiply_rows::<L, P, B, 4, 2>(w, first, x, out);
        } else {
            multiply_rows::<L, P, B, 2, 4>(w, first, x, out);
        }
        multiply_rows::<L, P, B, 1, 4>(w, rest, x, out);
    }
}
