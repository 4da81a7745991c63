//! The raw blocks of each quantized kind, unpacked for a band of rows at once.

#![allow(unsafe_code, reason = "raw blocks, lengths checked where products begin")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use crate::kernels::lanes::Lanes;
use crate::tensor::Kind;

/// Columns of a stretch.
pub(super) const STRETCH: usize = 256;
/// Blocks of 32 columns in a stretch.
pub(super) const BLOCKS: usize = STRETCH / 32;
/// A band's weights of one stretch.
#[repr(C, align(64))]
pub(super) struct Tile<L: Lanes> {
    pub(super) weights: [[L::I; 8]; BLOCKS],
    /// For each 16 columns, or twice the same.
    pub(super) scales: [[L::F; 2]; BLOCKS],
    /// What one unit of the activations takes away, for each 16 columns or once.
    pub(super) minima: [[L::F; 2]; BLOCKS],
}

/// One kind's blocks.
pub(super) trait Pack {
    const KIND: Kind;
    /// Whether each 16 columns have a scale of their own.
    const HALVES: bool = false;
    /// Whether weights have 8 bits.
    const WIDE: bool = false;
    /// How many products of two columns each, of a weight and an activation of at most 128, fit 16 bits:
    /// a divisor of the 8 of a block, or of the 4 of a half that has its own scale.
    const SHORTS: usize = 8;

    /// Unpacks one block of each row, `offset` bytes into it.
    ///
    /// # Safety
    /// As for `product`; the rows have those bytes.
    unsafe fn unpack<L: Lanes>(rows: *const *const u8, offset: usize, to: &mut impl Sink<L>);
}

/// Where unpacked weights go. Blocks are of 32 columns, counted from the first that was unpacked.
pub(super) trait Sink<L: Lanes> {
    /// What one unit of the weights stands for, and what one unit of the activations takes away; of all
    /// columns of a block (`half` is 0), or of the 16 of a half. Comes before the weights.
    ///
    /// # Safety
    /// As for `product`.
    unsafe fn scale(&mut self, block: usize, half: usize, scale: L::F, minimum: L::F);

    /// The weights of 16 columns; the second half of a block comes after its first.
    ///
    /// # Safety
    /// As for `product`.
    unsafe fn weights(&mut self, block: usize, half: usize, weights: [L::I; 4]);
}

/// Puts blocks into a tile.
pub(super) struct Tiling<L: Lanes> {
    pub(super) tile: *mut Tile<L>,
    /// The block of the tile where the first goes.
    pub(super) first: usize,
}

impl<L: Lanes> Sink<L> for Tiling<L> {
    #[inline(always)]
    unsafe fn scale(&mut self, block: usize, half: usize, scale: L::F, minimum: L::F) {
        // SAFETY: whoever made it has a tile there with those blocks.
        unsafe {
            (*self.tile).scales[self.first + block][half] = scale;
            (*self.tile).minima[self.first + block][half] = minimum;
        }
    }

    #[inline(always)]
    unsafe fn weights(&mut self, block: usize, half: usize, weights: [L::I; 4]) {
        // SAFETY: as above.
        unsafe {
            let to = &raw mut (*self.tile).weights[self.first + block];
            for k in 0..4 {
                (*to)[4 * half + k] = weights[k];
            }
        }
    }
}

pub(super) struct Q4_0;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

const NIBBLES: i32 = 0x0f0f_0f0f;

impl Pack for Q4_0 {
    const KIND: Kind = Kind::Q4_0;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(rows: *const *const u8, offset: usize, to: &mut impl Sink<L>) {
        // SAFETY: a block is 18 bytes; the caller vouches for the rest.
        unsafe {
            let nibbles = L::splat_i(NIBBLES);
            let scale = L::from_f16(L::gather_u16(rows, offset));
            to.scale(0, 0, scale, L::mul(scale, L::splat(8.0)));
            let packed = L::gather(rows, offset + 2);
            to.weights(0, 0, packed.map(|w| L::and(w, nibbles)));
            to.weights(0, 1, packed.map(|w| L::and(L::shr(w, 4), nibbles)));
        }
    }
}

impl Pack for Q8_0 {
    const KIND: Kind = Kind::Q8_0;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(rows: *const *const u8, offset: usize, to: &mut impl Sink<L>) {
        // SAFETY: a block is 34 bytes; the caller vouches for the rest.
        unsafe {
            // As unsigned bytes the weights are 128 greater.
            let flip = L::splat_i(if L::SIGNED { 0 } else { 0x8080_8080_u32.cast_signed() });
            let less = L::splat(if L::SIGNED { 0.0 } else { 128.0 });
            let scale = L::from_f16(L::gather_u16(rows, offset));
            to.scale(0, 0, scale, L::mul(scale, less));
            for half in 0..2 {
                let packed = L::gather(rows, offset + 2 + 16 * half);
                to.weights(0, half, packed.map(|w| L::xor(w, flip)));
            }
        }
    }
}

/// The scales and minima of a `Q4_K` or `Q5_K` block from its first 16 bytes: d and dmin as half
/// floats, then 8 scales and 8 minima of 6 bits, the upper bits of the last four of each apart.
#[inline(always)]
unsafe fn unpack_k_scales<L: Lanes>(head: [L::I; 4], to: &mut impl Sink<L>) {
    // SAFETY: value operations, and the caller's contract.
    unsafe {
        let d = L::from_f16(L::and(head[0], L::splat_i(0xffff)));
        let dmin = L::from_f16(L::shr(head[0], 16));
        let six = L::splat_i(63);
        let four = L::splat_i(15);
        let upper = L::splat_i(0x30);
        for (j, shift) in [(0, 0), (1, 8), (2, 16), (3, 24)] {
            let scale = L::and(L::shr(head[1], shift), six);
            let minimum = L::and(L::shr(head[2], shift), six);
            // The upper bits are bits 6 and 7 of the bytes before; here they become bits 4 and 5.
            let up = |word| L::and(L::shr(L::shr(word, shift), 2), upper);
            let last = L::shr(head[3], shift);
            let scale2 = L::or(L::and(last, four), up(head[1]));
            let minimum2 = L::or(L::and(L::shr(last, 4), four), up(head[2]));
            to.scale(j, 0, L::mul(d, L::float(scale)), L::mul(dmin, L::float(minimum)));
            to.scale(j + 4, 0, L::mul(d, L::float(scale2)), L::mul(dmin, L::float(minimum2)));
        }
    }
}

impl Pack for Q4K {
    const KIND: Kind = Kind::Q4_K;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(rows: *const *const u8, offset: usize, to: &mut impl Sink<L>) {
        // SAFETY: a block is 144 bytes and 256 columns; the caller vouches for the rest.
        unsafe {
            unpack_k_scales::<L>(L::gather(rows, offset), to);
            let nibbles = L::splat_i(NIBBLES);
            for pair in 0..4 {
                for half in 0..2 {
                    let packed = L::gather(rows, offset + 16 + 32 * pair + 16 * half);
                    to.weights(2 * pair, half, packed.map(|w| L::and(w, nibbles)));
                    to.weights(2 * pair + 1, half, packed.map(|w| L::and(L::shr(w, 4), nibbles)));
                }
            }
        }
    }
}

impl Pack for Q5K {
    const KIND: Kind = Kind::Q5_K;
    const SHORTS: usize = 4;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(rows: *const *const u8, offset: usize, to: &mut impl Sink<L>) {
        // SAFETY: a block is 176 bytes and 256 columns; the caller vouches for the rest.
        unsafe {
            unpack_k_scales::<L>(L::gather(rows, offset), to);
            let nibbles = L::splat_i(NIBBLES);
            let fifth = L::splat_i(0x1010_1010);
            for half in 0..2 {
                // Bit j of a byte is the fifth bit of that column in the j-th 32 columns.
                let bits = L::gather(rows, offset + 16 + 16 * half);
                for (pair, j) in [(0, 0), (1, 2), (2, 4), (3, 6)] {
                    let packed = L::gather(rows, offset + 48 + 32 * pair + 16 * half);
                    let up = |k: usize, j: i32| {
                        let moved = match j {
                            0..4 => L::shl(bits[k], 4 - j),
                            _ => L::shr(bits[k], j - 4),
                        };
                        L::and(moved, fifth)
                    };
                    let (mut low, mut high) = (packed, packed);
                    for k in 0..4 {
                        low[k] = L::or(L::and(packed[k], nibbles), up(k, j));
                        high[k] = L::or(L::and(L::shr(packed[k], 4), nibbles), up(k, j + 1));
                    }
                    to.weights(2 * pair, half, low);
                    to.weights(2 * pair + 1, half, high);
                }
            }
        }
    }
}

impl Pack for Q6K {
    const KIND: Kind = Kind::Q6_K;
    const HALVES: bool = true;
    const SHORTS: usize = 2;

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(rows: *const *const u8, offset: usize, to: &mut impl Sink<L>) {
        // SAFETY: a block is 210 bytes and 256 columns; the caller vouches for the rest.
        unsafe {
            let d = L::from_f16(L::gather_u16(rows, offset + 208));
            let less = L::splat(32.0);
            let bytes = L::gather(rows, offset + 192);
            for block in 0..BLOCKS {
                for half in 0..2 {
                    let at = 2 * block + half;
                    let byte = L::sar(L::shl(bytes[at / 4], [24, 16, 8, 0][at % 4]), 24);
                    let scale = L::mul(d, L::float(byte));
                    to.scale(block, half, scale, L::mul(scale, less));
                }
            }
            let nibbles = L::splat_i(NIBBLES);
            let upper = L::splat_i(0x3030_3030);
            for group in 0..2 {
                for half in 0..2 {
                    let at = offset + 64 * group + 16 * half;
                    let packed = [L::gather(rows, at), L::gather(rows, at + 32)];
                    let bits = L::gather(rows, offset + 128 + 32 * group + 16 * half);
                    for block in 0..4 {
                        let mut weights = packed[block % 2];
                        for k in 0..4 {
                            let lower = match block {
                                0 | 1 => packed[block % 2][k],
                                _ => L::shr(packed[block % 2][k], 4),
                            };
                            let up = match block {
                                0 => L::shl(bits[k], 4),
                                1 => L::shl(bits[k], 2),
                                2 => bits[k],
                                _ => L::shr(bits[k], 2),
                            };
                            weights[k] = L::or(L::and(lower, nibbles), L::and(up, upper));
                        }
                        to.weights(4 * group + block, half, weights);
                    }
                }
            }
        }
    }
}
