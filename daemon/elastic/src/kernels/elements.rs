//! What is done with activations one by one, for any instruction set: int8 copies, half floats, the
//! activation function, softmax.

#![allow(unsafe_code, reason = "vector loads and stores, lengths checked at entry")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(clippy::indexing_slicing, reason = "slices up to the shorter length, arrays of four")]

use half::f16;

use crate::kernels::lanes::Lanes;
use crate::kernels::scalar;

/// Values at and above this are quantized; a block of smaller ones counts as zeros, since 127 / value
/// must be finite.
pub(super) const LEAST: f32 = 1e-36;

/// Int8 copies of whole blocks of 32 values, with the scale of each, scale times the sum of its
/// integers, and the latter for each half.
#[inline(always)]
pub(super) unsafe fn quantize<L: Lanes>(
    values: &[f32],
    q: &mut [i8],
    scales: &mut [f32],
    sums: &mut [f32],
    halves: &mut [f32],
) {
    let places = scales.iter_mut().zip(sums).zip(halves.chunks_exact_mut(2));
    let blocks = values.chunks_exact(32).zip(q.chunks_exact_mut(32)).zip(places);
    for ((values, q), ((scale, sum), halves)) in blocks {
        let (values, q) = (values.as_ptr(), q.as_mut_ptr());
        // SAFETY: 32 values and 32 bytes.
        unsafe {
            let mut greatest = L::splat(0.0);
            for i in (0..32).step_by(L::N) {
                greatest = L::max(greatest, L::abs(L::load(values.add(i))));
            }
            let greatest = L::greatest(greatest);
            let (by, inverse) =
                if greatest < LEAST { (0.0, 0.0) } else { (greatest / 127.0, 127.0 / greatest) };
            let inverse = L::splat(inverse);
            let mut total = [0; 2];
            for (half, total) in total.iter_mut().enumerate() {
                let mut sum = L::splat_i(0);
                for i in (16 * half..16 * half + 16).step_by(L::N) {
                    let rounded = L::round(L::mul(L::load(values.add(i)), inverse));
                    L::store_i8(q.add(i), rounded);
                    sum = L::add_i(sum, rounded);
                }
                *total = L::sum_i(sum);
            }
            *scale = by;
            *sum = by * total[0].wrapping_add(total[1]) as f32;
            for (half, total) in halves.iter_mut().zip(total) {
                *half = by * total as f32;
            }
        }
    }
}

#[inline(always)]
pub(super) unsafe fn to_f16<L: Lanes>(values: &[f32], out: &mut [f16]) {
    let len = values.len().min(out.len());
    let mut i = 0;
    // SAFETY: both have `len` elements.
    unsafe {
        while i + L::N <= len {
            L::store_f16(out.as_mut_ptr().add(i).cast(), L::load(values.as_ptr().add(i)));
            i += L::N;
        }
    }
    scalar::to_f16(&values[i..len], &mut out[i..len]);
}

/// e to the power of x: x = n ln 2 + r, then a Taylor series for r of at most 0.35 either side, its
/// first term left out less than 1e-8 of the result.
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: value operations.
    unsafe {
        // Beyond these the result is 0 or infinite anyway. The order keeps NaN.
        let x = L::min(L::splat(89.0), L::max(L::splat(-105.0), x));
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let whole = L::float(n);
        // ln 2 in two parts, the first with so few bits that its multiples are exact.
        let r = L::fnma(whole, L::splat(355.0 / 512.0), x);
        let r = L::fnma(whole, L::splat(-2.121_944_4e-4), r);
        let mut sum = L::splat(1.0 / 5040.0);
        for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            sum = L::fma(sum, r, L::splat(term));
        }
        // The power of two in two steps, so that the ends of the range come out right.
        let half = L::sar(n, 1);
        let power = |n| L::from_bits(L::shl(L::add_i(n, L::splat_i(127)), 23));
        L::mul(L::mul(sum, power(half)), power(L::sub_i(n, half)))
    }
}

/// gate = gelu(gate) up. With u = sqrt(2/pi) (x + 0.044715 x^3), 0.5 x (1 + tanh u) is
/// x / (1 + exp(-2 u)), which loses nothing where x is negative.
#[inline(always)]
pub(super) unsafe fn gelu_times<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    let len = gate.len().min(up.len());
    let mut i = 0;
    // SAFETY: both have `len` elements.
    unsafe {
        let one = L::splat(1.0);
        while i + L::N <= len {
            let to = gate.as_mut_ptr().add(i);
            let x = L::load(to);
            let [first, third] = scalar::GELU.map(|c| L::splat(-2.0 * c));
            let minus2u = L::mul(x, L::fma(L::mul(x, x), third, first));
            let y = L::div(x, L::add(one, exp::<L>(minus2u)));
            L::store(to, L::mul(y, L::load(up.as_ptr().add(i))));
            i += L::N;
        }
    }
    scalar::gelu_times(&mut gate[i..len], &up[i..len]);
}

/// values = exp(values - max), whose sum it returns.
#[inline(always)]
pub(super) unsafe fn exp_sub_sum<L: Lanes>(values: &mut [f32], max: f32) -> f32 {
    let mut i = 0;
    // SAFETY: within `values`.
    let sum = unsafe {
        let (one, max) = (L::splat(1.0), L::splat(max));
        let mut sum = L::splat(0.0);
        while i + L::N <= values.len() {
            let to = values.as_mut_ptr().add(i);
            let y = exp::<L>(L::fnma(max, one, L::load(to)));
            L::store(to, y);
            sum = L::add(sum, y);
            i += L::N;
        }
        L::sum(sum)
    };
    sum + scalar::exp_sub_sum(&mut values[i..], max)
}
