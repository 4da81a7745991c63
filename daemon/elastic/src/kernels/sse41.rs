//! The vector operations with SSE4.1: 4 lanes, for small x86-64 CPUs without AVX2, such as the Atoms
//! of many boards.

#![allow(unsafe_code, reason = "vector instructions, checked for before the table is handed out")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(clippy::cast_ptr_alignment, reason = "loads and stores of any alignment")]

#[allow(clippy::wildcard_imports, reason = "intrinsics, named by their prefix")]
use std::arch::x86_64::*;

use half::f16;

use crate::kernels::lanes::{Lanes, operations, table};

#[derive(Clone, Copy)]
pub(super) struct Sse41;

type F = __m128;
type I = __m128i;

/// A shift's count.
#[inline(always)]
unsafe fn count(n: i32) -> I {
    // SAFETY: a value operation.
    unsafe { _mm_cvtsi32_si128(n) }
}

/// Four bytes.
#[inline(always)]
unsafe fn four(p: *const u8) -> I {
    // SAFETY: the caller has 4 bytes there.
    unsafe { _mm_cvtsi32_si128(p.cast::<i32>().read_unaligned()) }
}

/// Half floats, with zeros above: moved to where a float's exponent and mantissa are, and made 2^112
/// times as great as the exponents are offset differently, which is right for the smallest too.
#[inline(always)]
unsafe fn widen(a: I) -> F {
    // SAFETY: value operations.
    unsafe {
        let size = _mm_and_si128(a, _mm_set1_epi32(0x7fff));
        let sign = _mm_slli_epi32::<16>(_mm_andnot_si128(_mm_set1_epi32(0x7fff), a));
        let power = _mm_castsi128_ps(_mm_set1_epi32((127 + 112) << 23));
        let value = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32::<13>(size)), power);
        // Infinities and NaNs keep their mantissa.
        let most = _mm_cmpgt_epi32(size, _mm_set1_epi32(0x7bff));
        let exponent = _mm_and_si128(most, _mm_set1_epi32(0xff << 23));
        _mm_or_ps(value, _mm_castsi128_ps(_mm_or_si128(exponent, sign)))
    }
}

/// Rounds to half floats, one by one.
#[inline(always)]
unsafe fn store_f16(p: *mut u8, a: F) {
    let mut values = [0.0; 4];
    // SAFETY: the caller has 8 bytes there.
    unsafe {
        _mm_storeu_ps(values.as_mut_ptr(), a);
        p.cast::<[u16; 4]>().write_unaligned(values.map(|value| f16::from_f32(value).to_bits()));
    }
}

#[inline(always)]
unsafe fn store_i8(p: *mut i8, a: I) {
    // SAFETY: the caller has 4 bytes there.
    unsafe {
        let words = _mm_packs_epi32(a, a);
        p.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(_mm_packs_epi16(words, words)));
    }
}

#[inline(always)]
unsafe fn sum(a: F) -> f32 {
    // SAFETY: value operations.
    unsafe {
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
    }
}

#[inline(always)]
unsafe fn greatest(a: F) -> f32 {
    // SAFETY: value operations.
    unsafe {
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
    }
}

#[inline(always)]
unsafe fn sum_i(a: I) -> i32 {
    // SAFETY: value operations.
    unsafe {
        let a = _mm_add_epi32(a, _mm_shuffle_epi32::<0b1110>(a));
        _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32::<1>(a)))
    }
}

/// Products of bytes in 16 bits, which cannot overflow with weights of 7 bits, then pairs added and
/// multiplied with `by`.
#[inline(always)]
unsafe fn dot4(weights: I, x: I, by: i16) -> I {
    // SAFETY: value operations.
    unsafe { _mm_madd_epi16(_mm_maddubs_epi16(weights, x), _mm_set1_epi16(by)) }
}

#[inline(always)]
unsafe fn dp_wide(acc: I, weights: I, x: I) -> I {
    // SAFETY: value operations.
    unsafe {
        let low = _mm_and_si128(weights, _mm_set1_epi8(0x7f));
        let top = _mm_and_si128(_mm_srli_epi16::<7>(weights), _mm_set1_epi8(1));
        _mm_add_epi32(acc, _mm_add_epi32(dot4(low, x, 1), dot4(top, x, 128)))
    }
}

impl Lanes for Sse41 {
    type F = F;
    type I = I;
    const N: usize = 4;
    const SIGNED: bool = false;
    const SHORT: bool = true;

    operations! {
        fn prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T0>(p.cast());
        fn load(p: *const f32) -> F = _mm_loadu_ps(p);
        fn store(p: *mut f32, a: F) = _mm_storeu_ps(p, a);
        fn load_f16(p: *const u8) -> F = widen(_mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast())));
        fn store_f16(p: *mut u8, a: F) = store_f16(p, a);
        fn load_bf16(p: *const u8) -> F =
            _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(p.cast())));
        fn load_i8(p: *const u8) -> F = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(four(p)));
        fn load_i(p: *const u8) -> I = _mm_loadu_si128(p.cast());
        fn load_u16(p: *const u8) -> I = _mm_cvtepu16_epi32(_mm_loadl_epi64(p.cast()));
        fn load_u8(p: *const u8) -> I = _mm_cvtepu8_epi32(four(p));
        fn splat(a: f32) -> F = _mm_set1_ps(a);
        fn add(a: F, b: F) -> F = _mm_add_ps(a, b);
        fn mul(a: F, b: F) -> F = _mm_mul_ps(a, b);
        fn div(a: F, b: F) -> F = _mm_div_ps(a, b);
        fn fma(a: F, b: F, c: F) -> F = _mm_add_ps(_mm_mul_ps(a, b), c);
        fn fnma(a: F, b: F, c: F) -> F = _mm_sub_ps(c, _mm_mul_ps(a, b));
        fn min(a: F, b: F) -> F = _mm_min_ps(a, b);
        fn max(a: F, b: F) -> F = _mm_max_ps(a, b);
        fn abs(a: F) -> F = _mm_andnot_ps(_mm_set1_ps(-0.0), a);
        fn sum(a: F) -> f32 = sum(a);
        fn greatest(a: F) -> f32 = greatest(a);
        fn round(a: F) -> I = _mm_cvtps_epi32(a);
        fn float(a: I) -> F = _mm_cvtepi32_ps(a);
        fn from_bits(a: I) -> F = _mm_castsi128_ps(a);
        fn from_f16(a: I) -> F = widen(_mm_and_si128(a, _mm_set1_epi32(0xffff)));
        fn splat_i(a: i32) -> I = _mm_set1_epi32(a);
        fn add_i(a: I, b: I) -> I = _mm_add_epi32(a, b);
        fn sub_i(a: I, b: I) -> I = _mm_sub_epi32(a, b);
        fn and(a: I, b: I) -> I = _mm_and_si128(a, b);
        fn or(a: I, b: I) -> I = _mm_or_si128(a, b);
        fn xor(a: I, b: I) -> I = _mm_xor_si128(a, b);
        fn shl(a: I, n: i32) -> I = _mm_sll_epi32(a, count(n));
        fn shr(a: I, n: i32) -> I = _mm_srl_epi32(a, count(n));
        fn sar(a: I, n: i32) -> I = _mm_sra_epi32(a, count(n));
        fn sum_i(a: I) -> i32 = sum_i(a);
        fn store_i8(p: *mut i8, a: I) = store_i8(p, a);
        fn dp(acc: I, weights: I, x: I) -> I = _mm_add_epi32(acc, dot4(weights, x, 1));
        fn dp_wide(acc: I, weights: I, x: I) -> I = dp_wide(acc, weights, x);
        fn dp_short(acc: I, weights: I, x: I) -> I =
            _mm_add_epi16(acc, _mm_maddubs_epi16(weights, x));
        fn widen(acc: I, short: I) -> I =
            _mm_add_epi32(acc, _mm_madd_epi16(short, _mm_set1_epi16(1)));
    }

    #[inline(always)]
    unsafe fn gather(rows: *const *const u8, offset: usize) -> [I; 4] {
        // SAFETY: the caller's rows have 16 bytes there.
        unsafe {
            let row = |i: usize| _mm_loadu_si128((*rows.add(i)).add(offset).cast());
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
            let (ab2, cd2) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
            [
                _mm_unpacklo_epi64(ab, cd),
                _mm_unpackhi_epi64(ab, cd),
                _mm_unpacklo_epi64(ab2, cd2),
                _mm_unpackhi_epi64(ab2, cd2),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gather_u16(rows: *const *const u8, offset: usize) -> I {
        // SAFETY: the caller's rows have 2 bytes there.
        unsafe {
            let word =
                |i: usize| i32::from((*rows.add(i)).add(offset).cast::<u16>().read_unaligned());
            _mm_setr_epi32(word(0), word(1), word(2), word(3))
        }
    }
}

table!(Sse41, "sse4.1", "sse4.1,ssse3,sse3");
