//! The raw blocks of each quantized kind, unpacked for a band of rows at once.

#![allow(unsafe_code, reason = "raw blocks, lengths checked where products begin")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use std::marker::PhantomData;

use crate::kernels::bands::Band;
use crate::kernels::lanes::Lanes;
use crate::kernels::source::{Source, Words, unrolled};
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

    /// Bytes of a stretch of a row.
    const STRETCH_BYTES: usize = Self::KIND.block_bytes() * STRETCH / Self::KIND.block_len();

    /// How much greater all weights are than what they stand for; None where each scale comes with a
    /// minimum.
    #[inline(always)]
    fn offset<L: Lanes>() -> Option<f32> {
        None
    }

    /// Unpacks a stretch of each row, `offset` bytes into it.
    ///
    /// # Safety
    /// As for `product`; the rows have those bytes.
    unsafe fn stretch<L: Lanes>(rows: &mut Source<impl Band>, offset: usize, to: &mut impl Sink<L>);

    /// Unpacks one block of each row as the `number`-th of a stretch of which the rows have not got all.
    /// Only for kinds whose blocks have 32 columns; the others have stretches alone.
    ///
    /// # Safety
    /// As for `stretch`.
    #[inline(always)]
    unsafe fn block<L: Lanes>(
        _rows: &mut Source<impl Band>,
        _offset: usize,
        _number: usize,
        _to: &mut impl Sink<L>,
    ) {
    }
}

/// Unpacks so many blocks of 32 columns of each row: a stretch, or what is left of the rows.
///
/// # Safety
/// As for `Pack::stretch`.
#[inline(always)]
pub(super) unsafe fn unpack<L: Lanes, P: Pack>(
    rows: &mut Source<impl Band>,
    offset: usize,
    blocks: usize,
    to: &mut impl Sink<L>,
) {
    // SAFETY: the caller's.
    unsafe {
        if blocks == BLOCKS {
            return P::stretch::<L>(rows, offset, to);
        }
        for number in 0..blocks {
            P::block::<L>(rows, offset + number * P::KIND.block_bytes(), number, to);
        }
    }
}

/// Where unpacked weights go. Blocks are of 32 columns, counted from the beginning of the stretch.
pub(super) trait Sink<L: Lanes> {
    /// What one unit of the weights stands for, and what one unit of the activations takes away if
    /// that is not the scale times the kind's offset; of all columns of a block (`half` is 0), or of the
    /// 16 of a half. Comes before the weights.
    ///
    /// # Safety
    /// As for `product`.
    unsafe fn scale(&mut self, block: usize, half: usize, scale: L::F, minimum: Option<L::F>);

    /// The weights of 16 columns; the second half of a block comes after its first.
    ///
    /// # Safety
    /// As for `product`.
    unsafe fn weights(&mut self, block: usize, half: usize, weights: [L::I; 4]);
}

/// Puts blocks into a tile.
pub(super) struct Tiling<L: Lanes, P: Pack> {
    tile: *mut Tile<L>,
    pack: PhantomData<P>,
}

impl<L: Lanes, P: Pack> Tiling<L, P> {
    /// # Safety
    /// A tile lies there as long as this is used.
    pub(super) unsafe fn new(tile: *mut Tile<L>) -> Self {
        Self { tile, pack: PhantomData }
    }
}

impl<L: Lanes, P: Pack> Sink<L> for Tiling<L, P> {
    #[inline(always)]
    unsafe fn scale(&mut self, block: usize, half: usize, scale: L::F, minimum: Option<L::F>) {
        // SAFETY: the tile has those blocks.
        unsafe {
            let minimum = match (minimum, P::offset::<L>()) {
                (Some(minimum), _) => minimum,
                (None, offset) => L::mul(scale, L::splat(offset.unwrap_or(0.0))),
            };
            (*self.tile).scales[block][half] = scale;
            (*self.tile).minima[block][half] = minimum;
        }
    }

    #[inline(always)]
    unsafe fn weights(&mut self, block: usize, half: usize, weights: [L::I; 4]) {
        // SAFETY: as above.
        unsafe {
            let to = &raw mut (*self.tile).weights[block];
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
    fn offset<L: Lanes>() -> Option<f32> {
        Some(8.0)
    }

    #[inline(always)]
    unsafe fn stretch<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: eight blocks of 18 bytes; the caller vouches for the rest.
        unsafe {
            let mut words = Words::<L, _>::new(rows, offset);
            unrolled!(for pair in [0 1 2 3] {
                // The second block begins where the last word of the first has its middle.
                let mut word = words.next();
                let scale = L::and(word, L::splat_i(0xffff));
                let weights = words.four_from_middle(&mut word);
                nibbles(2 * pair, scale, weights, to);
                let scale = L::shr(word, 16);
                let weights = words.four();
                nibbles(2 * pair + 1, scale, weights, to);
            });
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        number: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: a block is 18 bytes; the caller vouches for the rest.
        unsafe {
            let scale = rows.gather_u16::<L>(offset);
            nibbles(number, scale, rows.gather::<L>(offset + 2), to);
        }
    }
}

/// A block of `Q4_0`.
#[inline(always)]
unsafe fn nibbles<L: Lanes>(number: usize, scale: L::I, packed: [L::I; 4], to: &mut impl Sink<L>) {
    // SAFETY: the caller's.
    unsafe {
        let nibbles = L::splat_i(NIBBLES);
        let scale = L::from_f16(scale);
        to.scale(number, 0, scale, None);
        to.weights(number, 0, packed.map(|w| L::and(w, nibbles)));
        to.weights(number, 1, packed.map(|w| L::and(L::shr(w, 4), nibbles)));
    }
}

impl Pack for Q8_0 {
    const KIND: Kind = Kind::Q8_0;
    const WIDE: bool = true;

    /// As unsigned bytes the weights are 128 greater.
    #[inline(always)]
    fn offset<L: Lanes>() -> Option<f32> {
        Some(if L::SIGNED { 0.0 } else { 128.0 })
    }

    #[inline(always)]
    unsafe fn stretch<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: eight blocks of 34 bytes; the caller vouches for the rest.
        unsafe {
            let mut words = Words::<L, _>::new(rows, offset);
            unrolled!(for pair in [0 1 2 3] {
                let mut word = words.next();
                let scale = L::and(word, L::splat_i(0xffff));
                let weights =
                    [words.four_from_middle(&mut word), words.four_from_middle(&mut word)];
                bytes(2 * pair, scale, weights, to);
                let scale = L::shr(word, 16);
                let weights = [words.four(), words.four()];
                bytes(2 * pair + 1, scale, weights, to);
            });
        }
    }

    #[inline(always)]
    unsafe fn block<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        number: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: a block is 34 bytes; the caller vouches for the rest.
        unsafe {
            let scale = rows.gather_u16::<L>(offset);
            let halves = [rows.gather::<L>(offset + 2), rows.gather::<L>(offset + 18)];
            bytes(number, scale, halves, to);
        }
    }
}

/// A block of `Q8_0`.
#[inline(always)]
unsafe fn bytes<L: Lanes>(
    number: usize,
    scale: L::I,
    halves: [[L::I; 4]; 2],
    to: &mut impl Sink<L>,
) {
    // SAFETY: the caller's.
    unsafe {
        let flip = L::splat_i(if L::SIGNED { 0 } else { 0x8080_8080_u32.cast_signed() });
        let scale = L::from_f16(scale);
        to.scale(number, 0, scale, None);
        to.weights(number, 0, halves[0].map(|w| L::xor(w, flip)));
        to.weights(number, 1, halves[1].map(|w| L::xor(w, flip)));
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
        unrolled!(for j in [0 1 2 3] {
            let shift = [0, 8, 16, 24][j];
            let scale = L::and(L::shr(head[1], shift), six);
            let minimum = L::and(L::shr(head[2], shift), six);
            // The upper bits are bits 6 and 7 of the bytes before; here they become bits 4 and 5.
            let up = |word| L::and(L::shr(L::shr(word, shift), 2), upper);
            let last = L::shr(head[3], shift);
            let scale2 = L::or(L::and(last, four), up(head[1]));
            let minimum2 = L::or(L::and(L::shr(last, 4), four), up(head[2]));
            let minima = [minimum, minimum2].map(|minimum| Some(L::mul(dmin, L::float(minimum))));
            to.scale(j, 0, L::mul(d, L::float(scale)), minima[0]);
            to.scale(j + 4, 0, L::mul(d, L::float(scale2)), minima[1]);
        });
    }
}

impl Pack for Q4K {
    const KIND: Kind = Kind::Q4_K;

    #[inline(always)]
    unsafe fn stretch<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: a block is 144 bytes and 256 columns; the caller vouches for the rest.
        unsafe {
            unpack_k_scales::<L>(rows.gather::<L>(offset), to);
            let nibbles = L::splat_i(NIBBLES);
            unrolled!(for pair in [0 1 2 3] {
                unrolled!(for half in [0 1] {
                    let packed = rows.gather::<L>(offset + 16 + 32 * pair + 16 * half);
                    to.weights(2 * pair, half, packed.map(|w| L::and(w, nibbles)));
                    to.weights(2 * pair + 1, half, packed.map(|w| L::and(L::shr(w, 4), nibbles)));
                });
            });
        }
    }
}

impl Pack for Q5K {
    const KIND: Kind = Kind::Q5_K;
    const SHORTS: usize = 4;

    #[inline(always)]
    unsafe fn stretch<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: a block is 176 bytes and 256 columns; the caller vouches for the rest.
        unsafe {
            unpack_k_scales::<L>(rows.gather::<L>(offset), to);
            let nibbles = L::splat_i(NIBBLES);
            let fifth = L::splat_i(0x1010_1010);
            unrolled!(for half in [0 1] {
                // Bit j of a byte is the fifth bit of that column in the j-th 32 columns.
                let bits = rows.gather::<L>(offset + 16 + 16 * half);
                unrolled!(for pair in [0 1 2 3] {
                    let packed = rows.gather::<L>(offset + 48 + 32 * pair + 16 * half);
                    let up = |k: usize, j: usize| {
                        let by = [4, 3, 2, 1, 0, -1, -2, -3][j];
                        let moved =
                            if by < 0 { L::shr(bits[k], -by) } else { L::shl(bits[k], by) };
                        L::and(moved, fifth)
                    };
                    let (mut low, mut high) = (packed, packed);
                    for k in 0..4 {
                        low[k] = L::or(L::and(packed[k], nibbles), up(k, 2 * pair));
                        let upper = L::and(L::shr(packed[k], 4), nibbles);
                        high[k] = L::or(upper, up(k, 2 * pair + 1));
                    }
                    to.weights(2 * pair, half, low);
                    to.weights(2 * pair + 1, half, high);
                });
            });
        }
    }
}

impl Pack for Q6K {
    const KIND: Kind = Kind::Q6_K;
    const HALVES: bool = true;
    const SHORTS: usize = 2;

    #[inline(always)]
    fn offset<L: Lanes>() -> Option<f32> {
        Some(32.0)
    }

    #[inline(always)]
    unsafe fn stretch<L: Lanes>(
        rows: &mut Source<impl Band>,
        offset: usize,
        to: &mut impl Sink<L>,
    ) {
        // SAFETY: a block is 210 bytes and 256 columns; the caller vouches for the rest.
        unsafe {
            let d = L::from_f16(rows.gather_u16::<L>(offset + 208));
            let bytes = rows.gather::<L>(offset + 192);
            let nibbles = L::splat_i(NIBBLES);
            let upper = L::splat_i(0x3030_3030);
            unrolled!(for group in [0 1] {
                unrolled!(for half in [0 1] {
                    let at = offset + 64 * group + 16 * half;
                    let packed = [rows.gather::<L>(at), rows.gather::<L>(at + 32)];
                    let bits = rows.gather::<L>(offset + 128 + 32 * group + 16 * half);
                    unrolled!(for block in [0 1 2 3] {
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
                        let at = 8 * group + 2 * block + half;
                        let byte = L::sar(L::shl(bytes[at / 4], [24, 16, 8, 0][at % 4]), 24);
                        let scale = L::mul(d, L::float(byte));
                        to.scale(4 * group + block, half, scale, None);
                        to.weights(4 * group + block, half, weights);
                    });
                });
            });
        }
    }
}
