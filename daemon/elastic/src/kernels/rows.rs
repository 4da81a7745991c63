//! Products of matrices of floats with activations, for any instruction set: a row at a time.

#![allow(unsafe_code, reason = "the inner loops: raw rows, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use crate::kernels::lanes::Lanes;
use crate::kernels::{Out, Rows, Window};
use crate::tensor::Matrix;

/// Tokens that are multiplied with a row before the next row is read.
const TOKENS: usize = 64;

/// How many bytes ahead weights are asked for.
const AHEAD: usize = 1024;

/// One kind of floats.
pub(super) trait Float {
    const BYTES: usize;

    /// # Safety
    /// As for [`Lanes::load`].
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F;

    /// # Safety
    /// `p` has one element.
    unsafe fn one(p: *const u8) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's.
        unsafe { L::load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller's.
        unsafe { p.cast::<f32>().read_unaligned() }
    }
}

impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's.
        unsafe { L::load_f16(p) }
    }

    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller's.
        unsafe { half::f16::from_bits(p.cast::<u16>().read_unaligned()).to_f32() }
    }
}

impl Float for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's.
        unsafe { L::load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: the caller's.
        unsafe { f32::from_bits(u32::from(p.cast::<u16>().read_unaligned()) << 16) }
    }
}

/// The products of `R` rows with `T` tokens, `U` sums for each.
///
/// # Safety
/// As for `product`; there are that many rows from `row` on, and tokens from `token` on.
#[inline(always)]
unsafe fn multiply<L: Lanes, W: Float, const R: usize, const T: usize, const U: usize>(
    w: &Matrix<'_>,
    all: Rows<'_>,
    row: usize,
    x: Window<'_>,
    token: usize,
    out: &Out<'_>,
) {
    let (cols, stride) = (x.cols(), x.stride());
    let mut rows = [std::ptr::null::<u8>(); R];
    for (i, pointer) in rows.iter_mut().enumerate() {
        *pointer = w.start().wrapping_add(all.row(row + i) * w.row_stride());
    }
    // SAFETY: the rows have `cols` weights, the tokens as many values.
    unsafe {
        let x = x.values().as_ptr().add(token * stride);
        let mut acc = [[[L::splat(0.0); U]; T]; R];
        let mut col = 0;
        while col + U * L::N <= cols {
            if T == 1 {
                // One token: memory is what limits.
                for row in &rows {
                    for line in (0..U * L::N * W::BYTES).step_by(64) {
                        L::prefetch(row.wrapping_add(col * W::BYTES + line + AHEAD));
                    }
                }
            }
            for u in 0..U {
                let at = col + u * L::N;
                let mut values = [L::splat(0.0); T];
                for t in 0..T {
                    values[t] = L::load(x.add(t * stride + at));
                }
                for r in 0..R {
                    let weights = W::load::<L>(rows[r].add(at * W::BYTES));
                    for t in 0..T {
                        acc[r][t][u] = L::fma(weights, values[t], acc[r][t][u]);
                    }
                }
            }
            col += U * L::N;
        }
        for r in 0..R {
            for t in 0..T {
                let mut all = acc[r][t][0];
                for u in 1..U {
                    all = L::add(all, acc[r][t][u]);
                }
                let mut sum = L::sum(all);
                for col in col..cols {
                    sum += W::one(rows[r].add(col * W::BYTES)) * *x.add(t * stride + col);
                }
                *out.at(token + t, row + r) = sum;
            }
        }
    }
}

/// The products of these rows with every token.
///
/// # Safety
/// The CPU has the features of `L`; the matrix is of `W`'s kind and has those rows and as many
/// columns as the input; the output has a place for each token and row.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes, W: Float>(
    w: &Matrix<'_>,
    all: Rows<'_>,
    x: Window<'_>,
    out: &Out<'_>,
) {
    // The values of so many tokens stay in the nearer caches while all rows pass.
    for first in (0..x.tokens()).step_by(TOKENS) {
        let tokens = first..x.tokens().min(first + TOKENS);
        let mut row = all.start;
        while row < all.end {
            // Rows and tokens so many that their sums fit 32 registers, or 16 with AVX2.
            let rows = match all.end - row {
                0..4 => 1,
                _ if L::N == 8 => 2,
                _ => 4,
            };
            let mut token = tokens.start;
            while token < tokens.end {
                // SAFETY: the caller vouches for rows, columns and places.
                unsafe {
                    if token + 4 <= tokens.end {
                        match rows {
                            1 => multiply::<L, W, 1, 4, 2>(w, all, row, x, token, out),
                            2 => multiply::<L, W, 2, 4, 1>(w, all, row, x, token, out),
                            _ => multiply::<L, W, 4, 4, 1>(w, all, row, x, token, out),
                        }
                        token += 4;
                    } else {
                        match rows {
                            1 => multiply::<L, W, 1, 1, 8>(w, all, row, x, token, out),
                            2 => multiply::<L, W, 2, 1, 4>(w, all, row, x, token, out),
                            _ => multiply::<L, W, 4, 1, 2>(w, all, row, x, token, out),
                        }
                        token += 1;
                    }
                }
            }
            row += rows;
        }
    }
}
