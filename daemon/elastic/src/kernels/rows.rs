//! Products of matrices of floats with activations, for any instruction set: a row at a time.

#![allow(unsafe_code, reason = "the inner loops: raw rows, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use std::ops::Range;

use crate::kernels::lanes::Lanes;
use crate::kernels::{Input, Out};
use crate::tensor::Matrix;

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

/// The products of a row with `T` tokens, `U` sums for each.
#[inline(always)]
unsafe fn row<L: Lanes, W: Float, const T: usize, const U: usize>(
    w: *const u8,
    x: *const f32,
    cols: usize,
) -> [f32; T] {
    // SAFETY: the caller has `cols` weights and `cols` activations of each token.
    unsafe {
        let mut acc = [[L::splat(0.0); U]; T];
        let mut col = 0;
        while col + U * L::N <= cols {
            for u in 0..U {
                let at = col + u * L::N;
                let weights = W::load::<L>(w.add(at * W::BYTES));
                for t in 0..T {
                    acc[t][u] = L::fma(weights, L::load(x.add(t * cols + at)), acc[t][u]);
                }
            }
            col += U * L::N;
        }
        while col + L::N <= cols {
            let weights = W::load::<L>(w.add(col * W::BYTES));
            for t in 0..T {
                acc[t][0] = L::fma(weights, L::load(x.add(t * cols + col)), acc[t][0]);
            }
            col += L::N;
        }
        let mut sums = [0.0; T];
        for t in 0..T {
            let mut all = acc[t][0];
            for u in 1..U {
                all = L::add(all, acc[t][u]);
            }
            sums[t] = L::sum(all);
            for col in col..cols {
                sums[t] += W::one(w.add(col * W::BYTES)) * *x.add(t * cols + col);
            }
        }
        sums
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
    range: Range<usize>,
    x: &Input,
    out: &Out<'_>,
) {
    let cols = x.cols();
    for r in range {
        let weights = w.row(r).as_ptr();
        let mut token = 0;
        while token < x.tokens() {
            // SAFETY: the caller vouches for rows, columns and places.
            unsafe {
                let x4 = x.values().as_ptr().add(token * cols);
                if token + 4 <= x.tokens() {
                    let sums = row::<L, W, 4, 2>(weights, x4, cols);
                    for (t, sum) in sums.into_iter().enumerate() {
                        *out.at(token + t, r) = sum;
                    }
                    token += 4;
                } else {
                    let [sum] = row::<L, W, 1, 8>(weights, x4, cols);
                    *out.at(token, r) = sum;
                    token += 1;
                }
            }
        }
    }
}
