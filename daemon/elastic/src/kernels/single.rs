//! The product with one token, which is what decode consists of: each block is multiplied as it is
//! unpacked, in registers. A tile would be written and read once.

#![allow(unsafe_code, reason = "the inner loop: raw blocks, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use std::marker::PhantomData;

use crate::kernels::lanes::Lanes;
use crate::kernels::pack::{BLOCKS, Pack, Sink};
use crate::kernels::product::Activations;

/// How many bytes ahead weights are asked for.
const AHEAD: usize = 512;

/// Sums of the products of one row for each lane.
struct Sums<L: Lanes, P: Pack> {
    x: Activations,
    sum: L::F,
    /// Of each block of 32 columns that is unpacked together, or of both its halves.
    scales: [[L::F; 2]; BLOCKS],
    minima: [[L::F; 2]; BLOCKS],
    /// What the first half of a block has come to.
    products: [L::I; BLOCKS],
    shorts: [L::I; BLOCKS],
    pack: PhantomData<P>,
}

impl<L: Lanes, P: Pack> Sink<L> for Sums<L, P> {
    #[inline(always)]
    unsafe fn scale(&mut self, block: usize, half: usize, scale: L::F, minimum: L::F) {
        self.scales[block][half] = scale;
        self.minima[block][half] = minimum;
    }

    #[inline(always)]
    unsafe fn weights(&mut self, block: usize, half: usize, weights: [L::I; 4]) {
        // SAFETY: the caller's contract; the activations have that block.
        unsafe {
            let (mut products, mut short) = (L::splat_i(0), L::splat_i(0));
            if half == 1 && !P::HALVES {
                (products, short) = (self.products[block], self.shorts[block]);
            }
            for k in 0..4 {
                let at = 4 * half + k;
                let x = self.x.columns(0, block, at).cast::<i32>().read_unaligned();
                let x = L::splat_i(x);
                if P::WIDE {
                    products = L::dp_wide(products, weights[k], x);
                } else if L::SHORT {
                    short = L::dp_short(short, weights[k], x);
                    if (at + 1).is_multiple_of(P::SHORTS) {
                        products = L::widen(products, short);
                        short = L::splat_i(0);
                    }
                } else {
                    products = L::dp(products, weights[k], x);
                }
            }
            if half == 0 && !P::HALVES {
                (self.products[block], self.shorts[block]) = (products, short);
                return;
            }
            let at = if P::HALVES { half } else { 0 };
            let (scale, minimum) = (self.scales[block][at], self.minima[block][at]);
            let products = L::mul(L::float(products), scale);
            self.sum = L::fma(products, L::splat(self.x.scale(block)), self.sum);
            let less = if P::HALVES { self.x.half(block, half) } else { self.x.sum(block) };
            self.sum = L::fnma(minimum, L::splat(less), self.sum);
        }
    }
}

/// The products of a band of as many rows as there are lanes, from their first bytes and those of the
/// next band's.
///
/// # Safety
/// The CPU has the features of `L`; the rows have `blocks` blocks of the kind each, and the
/// activations as many columns.
#[inline(always)]
pub(super) unsafe fn band<L: Lanes, P: Pack>(
    rows: *const *const u8,
    next: *const *const u8,
    blocks: usize,
    x: impl Fn(usize) -> Activations,
) -> L::F {
    let bytes = P::KIND.block_bytes();
    // Blocks for whose bytes one line of the cache, or a few, are asked for at a time.
    let group = (64 / bytes).max(1);
    let end = blocks * bytes;
    // SAFETY: the caller's contract; nothing is read through a pointer that only a prefetch takes.
    unsafe {
        let mut sum = L::splat(0.0);
        let mut block = 0;
        while block < blocks {
            let ahead = block * bytes + AHEAD;
            let (from, ahead) =
                if ahead < end { (rows, ahead) } else { (next, (ahead - end).min(end)) };
            for lane in 0..L::N {
                for line in (0..group * bytes).step_by(64) {
                    L::prefetch((*from.add(lane)).wrapping_add(ahead + line));
                }
            }
            let until = blocks.min(block + group);
            while block < until {
                let mut sums = Sums::<L, P> {
                    x: x(block * P::KIND.block_len()),
                    sum,
                    scales: [[L::splat(0.0); 2]; BLOCKS],
                    minima: [[L::splat(0.0); 2]; BLOCKS],
                    products: [L::splat_i(0); BLOCKS],
                    shorts: [L::splat_i(0); BLOCKS],
                    pack: PhantomData,
                };
                P::unpack::<L>(rows, block * bytes, &mut sums);
                sum = sums.sum;
                block += 1;
            }
        }
        sum
    }
}
