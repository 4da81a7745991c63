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

use crate::kernels::bands::{Band, Groups, Start};
use crate::kernels::lanes::Lanes;
use crate::kernels::pack::{BLOCKS, Pack, STRETCH, Sink};
use crate::kernels::product::Activations;
use crate::kernels::source::Source;
use crate::kernels::{Out, Rows, Window};
use crate::tensor::Matrix;

/// How many bytes ahead weights are asked for.
const AHEAD: usize = 768;
/// Rows of a band.
const ROWS: usize = 16;
/// Lanes of the narrowest registers.
const LEAST_LANES: usize = 4;

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

impl<L: Lanes, P: Pack> Sums<L, P> {
    #[inline(always)]
    unsafe fn new(x: Activations, sum: L::F) -> Self {
        // SAFETY: the caller's.
        let (zero, none) = unsafe { (L::splat(0.0), L::splat_i(0)) };
        Self {
            x,
            sum,
            scales: [[zero; 2]; BLOCKS],
            minima: [[zero; 2]; BLOCKS],
            products: [none; BLOCKS],
            shorts: [none; BLOCKS],
            pack: PhantomData,
        }
    }
}

impl<L: Lanes, P: Pack> Sink<L> for Sums<L, P> {
    #[inline(always)]
    unsafe fn scale(&mut self, block: usize, half: usize, scale: L::F, minimum: Option<L::F>) {
        self.scales[block][half] = scale;
        if let Some(minimum) = minimum {
            self.minima[block][half] = minimum;
        }
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
            let (scale, x) = (self.scales[block][at], L::splat(self.x.scale(block)));
            let less = if P::HALVES { self.x.half(block, half) } else { self.x.sum(block) };
            let (less, products) = (L::splat(less), L::float(products));
            self.sum = if let Some(offset) = P::offset::<L>() {
                let products = L::fnma(L::splat(offset), less, L::mul(products, x));
                L::fma(products, scale, self.sum)
            } else {
                let sum = L::fma(L::mul(products, scale), x, self.sum);
                L::fnma(self.minima[block][at], less, sum)
            };
        }
    }
}

/// The products of a band that begins at `here`, before the one at `next`: a register for each part of its
/// rows.
///
/// # Safety
/// The CPU has the features of `L`; the rows have as many columns as the one token of the activations.
#[inline(always)]
unsafe fn band<L: Lanes, P: Pack, B: Band>(
    here: Start<B>,
    next: Start<B>,
    x: Window<'_>,
) -> [L::F; ROWS / LEAST_LANES] {
    let blocks = x.cols() / 32;
    let (whole, rest) = (blocks / BLOCKS, blocks % BLOCKS);
    let end = whole * P::STRETCH_BYTES + rest * P::KIND.block_bytes();
    // SAFETY: the caller's contract.
    unsafe {
        let mut parts = [L::splat(0.0); ROWS / LEAST_LANES];
        for stretch in 0..whole {
            let offset = stretch * P::STRETCH_BYTES;
            let ahead = offset + AHEAD;
            let (start, ahead) = if ahead < end {
                (here.rows, here.offset + ahead)
            } else {
                (next.rows, next.offset + (ahead - end).min(end))
            };
            for part in 0..B::rows(L::N) / L::N {
                let x = Activations::at(x, 0, STRETCH * stretch);
                let mut sums = Sums::<L, P>::new(x, parts[part]);
                let lane = part * L::N;
                let ahead = Some((start.lanes_from(lane), ahead));
                let mut source = Source::new(here.rows.lanes_from(lane), ahead);
                P::stretch::<L>(&mut source, here.offset + offset, &mut sums);
                parts[part] = sums.sum;
            }
        }
        // Of rows that lie in tiles nothing is left.
        for block in 0..rest {
            let offset = here.offset + whole * P::STRETCH_BYTES + block * P::KIND.block_bytes();
            let x = Activations::at(x, 0, STRETCH * whole + 32 * block);
            let mut sums = Sums::<L, P>::new(x, parts[0]);
            P::block::<L>(&mut Source::new(here.rows, None), offset, 0, &mut sums);
            parts[0] = sums.sum;
        }
        parts
    }
}

/// The products of these rows with one token.
///
/// # Safety
/// As for `product::product`; there is one token.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes, P: Pack, B: Band>(
    w: &Matrix<'_>,
    all: Rows<'_>,
    x: Window<'_>,
    out: &Out<'_>,
) {
    let mut groups = Groups::new(w, all, B::rows(L::N), 1);
    let mut next = groups.next();
    while let Some(group) = next {
        next = groups.next();
        let rows = B::hold::<ROWS>(group, w, all);
        let after = next.map_or(rows, |next| B::hold::<ROWS>(next, w, all));
        for number in 0..group.bands {
            let [here, next] = group.starts(number, w, B::of::<ROWS>(&rows), B::of::<ROWS>(&after));
            let mut sums = [0.0; ROWS];
            // SAFETY: the caller's contract.
            unsafe {
                let parts = band::<L, P, B>(here, next, x);
                for part in 0..B::rows(L::N) / L::N {
                    L::store(sums.as_mut_ptr().add(part * L::N), parts[part]);
                }
                group.store(number, &sums[..B::rows(L::N)], 0, out);
            }
        }
    }
}
