//! Products of a matrix by columns with few inputs, for any instruction set.

#![allow(unsafe_code, reason = "the inner loops: raw columns, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    reason = "small arrays of registers, indexed by counters of unrolled loops"
)]

use std::ops::Range;

use crate::kernels::columns::{Columns, Group};
use crate::kernels::lanes::Lanes;
use crate::tensor::Kind;

/// How many inputs ahead weights are asked for.
const AHEAD: usize = 4;

/// 32 sums, two times 16 rows.
type Sums<L> = [[<L as Lanes>::F; 4]; 2];

/// Adds up the values of 32 rows over the columns of a group. `column` bytes lie from column to
/// column.
#[inline(always)]
unsafe fn sum<L: Lanes, const WIDE: bool>(
    values: *const u8,
    column: usize,
    inputs: &[(u32, f32)],
) -> Sums<L> {
    // SAFETY: the caller has values for 32 rows in each column.
    unsafe {
        let mut sums = [[L::splat(0.0); 4]; 2];
        let low = L::splat_i(15);
        for (col, input) in inputs {
            let values = values.add(*col as usize % 32 * column);
            let input = L::splat(*input);
            for j in 0..16 / L::N {
                let at = values.add(j * L::N);
                if WIDE {
                    sums[0][j] = L::fma(L::load_i8(at), input, sums[0][j]);
                    sums[1][j] = L::fma(L::load_i8(at.add(16)), input, sums[1][j]);
                } else {
                    let both = L::load_u8(at);
                    sums[0][j] = L::fma(L::float(L::and(both, low)), input, sums[0][j]);
                    sums[1][j] = L::fma(L::float(L::shr(both, 4)), input, sums[1][j]);
                }
            }
        }
        sums
    }
}

/// Adds a group's inputs to the output of these rows.
#[inline(always)]
unsafe fn add_group<L: Lanes>(
    kind: Kind,
    column: usize,
    group: &Group<'_>,
    rows: Range<usize>,
    inputs: &[(u32, f32)],
    out: *mut f32,
) {
    let total: f32 = inputs.iter().map(|(_, input)| input).sum();
    for first in rows.step_by(32) {
        // SAFETY: the group has places for all rows, and rows come by 32.
        unsafe {
            let sums = if kind == Kind::Q8_0 {
                sum::<L, true>(group.values.as_ptr().add(first), column, inputs)
            } else {
                sum::<L, false>(group.values.as_ptr().add(first / 2), column, inputs)
            };
            for half in 0..2 {
                for j in 0..16 / L::N {
                    let row = first + 16 * half + j * L::N;
                    let d = L::load_f16(group.d.as_ptr().add(2 * row));
                    let (scale, less) = match kind {
                        Kind::Q4_K => {
                            let scale = L::load_u8(group.scales.as_ptr().add(row));
                            let minimum = L::load_u8(group.minima.as_ptr().add(row));
                            let dmin = L::load_f16(group.dmin.as_ptr().add(2 * row));
                            (L::mul(d, L::float(scale)), L::mul(dmin, L::float(minimum)))
                        }
                        Kind::Q4_0 => (d, L::mul(d, L::splat(8.0))),
                        _ => (d, L::splat(0.0)),
                    };
                    let to = out.add(row);
                    let sum = L::fma(sums[half][j], scale, L::load(to));
                    L::store(to, L::fnma(less, L::splat(total), sum));
                }
            }
        }
    }
}

/// out[r] = sum over the inputs (c, x) of w[r][c] x, for these rows.
///
/// # Safety
/// The CPU has the features of `L`; the rows are `w`'s, beginning and ending at multiples of 32; the
/// inputs' columns ascend and are `w`'s; `out` has a place for each of `w`'s rows.
#[inline(always)]
pub(super) unsafe fn product<L: Lanes>(
    w: &Columns<'_>,
    rows: Range<usize>,
    inputs: &[(u32, f32)],
    out: *mut f32,
) {
    let column = w.column_bytes();
    // SAFETY: the caller vouches for rows, columns and places; prefetching may go anywhere.
    unsafe {
        for row in rows.clone() {
            out.add(row).write(0.0);
        }
        let mut done = 0;
        for inputs_ in inputs.chunk_by(|a, b| a.0 / 32 == b.0 / 32) {
            for ahead in inputs.iter().skip(done + AHEAD).take(inputs_.len()) {
                prefetch::<L>(w, column, rows.clone(), ahead.0 as usize);
            }
            done += inputs_.len();
            if let Some(group) = inputs_.first().and_then(|(col, _)| w.group(*col as usize / 32)) {
                add_group::<L>(w.kind(), column, &group, rows.clone(), inputs_, out);
            }
        }
    }
}

/// Asks for what a column's product will read.
#[inline(always)]
unsafe fn prefetch<L: Lanes>(w: &Columns<'_>, column: usize, rows: Range<usize>, col: usize) {
    let Some(group) = w.group(col / 32) else { return };
    let part = |all: &[u8], width: usize| {
        let first = all.as_ptr().wrapping_add(rows.start * width / 2);
        for line in (0..rows.len() * width / 2).step_by(64) {
            // SAFETY: a hint, for any address.
            unsafe { L::prefetch(first.wrapping_add(line)) }
        }
    };
    let width = if w.kind() == Kind::Q8_0 { 2 } else { 1 };
    part(group.values.get(col % 32 * column..).unwrap_or_default(), width);
    part(group.d, 4);
    if w.kind() == Kind::Q4_K {
        part(group.scales, 2);
        part(group.minima, 2);
    }
}
