//! The vector operations with AVX-512 and its int8 dot products: 16 lanes.

#![allow(unsafe_code, reason = "vector instructions, checked for before the table is handed out")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(clippy::cast_ptr_alignment, reason = "loads and stores of any alignment")]

#[allow(clippy::wildcard_imports, reason = "intrinsics, named by their prefix")]
use std::arch::x86_64::*;

use crate::kernels::lanes::{Lanes, operations, table};

#[derive(Clone, Copy)]
pub(super) struct Avx512;

type F = __m512;
type I = __m512i;

#[inline(always)]
unsafe fn count(n: i32) -> I {
    // SAFETY: a value operation.
    unsafe { _mm512_set1_epi32(n) }
}

/// 16 bytes at `offset` of one of the rows.
#[inline(always)]
unsafe fn bytes(rows: *const *const u8, row: usize, offset: usize) -> __m128i {
    // SAFETY: the caller's rows have these bytes.
    unsafe { _mm_loadu_si128((*rows.add(row)).add(offset).cast()) }
}

impl Lanes for Avx512 {
    type F = F;
    type I = I;
    const N: usize = 16;
    const SIGNED: bool = false;

    operations! {
        fn prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T0>(p.cast());
        fn load(p: *const f32) -> F = _mm512_loadu_ps(p);
        fn store(p: *mut f32, a: F) = _mm512_storeu_ps(p, a);
        fn load_f16(p: *const u8) -> F = _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()));
        fn store_f16(p: *mut u8, a: F) =
            _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a));
        fn load_bf16(p: *const u8) -> F = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))
        ));
        fn load_i8(p: *const u8) -> F =
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())));
        fn load_i(p: *const u8) -> I = _mm512_loadu_si512(p.cast());
        fn load_u16(p: *const u8) -> I = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        fn load_u8(p: *const u8) -> I = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        fn splat(a: f32) -> F = _mm512_set1_ps(a);
        fn add(a: F, b: F) -> F = _mm512_add_ps(a, b);
        fn mul(a: F, b: F) -> F = _mm512_mul_ps(a, b);
        fn div(a: F, b: F) -> F = _mm512_div_ps(a, b);
        fn fma(a: F, b: F, c: F) -> F = _mm512_fmadd_ps(a, b, c);
        fn fnma(a: F, b: F, c: F) -> F = _mm512_fnmadd_ps(a, b, c);
        fn min(a: F, b: F) -> F = _mm512_min_ps(a, b);
        fn max(a: F, b: F) -> F = _mm512_max_ps(a, b);
        fn abs(a: F) -> F = _mm512_abs_ps(a);
        fn sum(a: F) -> f32 = _mm512_reduce_add_ps(a);
        fn greatest(a: F) -> f32 = _mm512_reduce_max_ps(a);
        fn round(a: F) -> I = _mm512_cvtps_epi32(a);
        fn float(a: I) -> F = _mm512_cvtepi32_ps(a);
        fn from_bits(a: I) -> F = _mm512_castsi512_ps(a);
        fn from_f16(a: I) -> F = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
        fn splat_i(a: i32) -> I = _mm512_set1_epi32(a);
        fn add_i(a: I, b: I) -> I = _mm512_add_epi32(a, b);
        fn sub_i(a: I, b: I) -> I = _mm512_sub_epi32(a, b);
        fn and(a: I, b: I) -> I = _mm512_and_si512(a, b);
        fn or(a: I, b: I) -> I = _mm512_or_si512(a, b);
        fn xor(a: I, b: I) -> I = _mm512_xor_si512(a, b);
        fn shl(a: I, n: i32) -> I = _mm512_sllv_epi32(a, count(n));
        fn shr(a: I, n: i32) -> I = _mm512_srlv_epi32(a, count(n));
        fn sar(a: I, n: i32) -> I = _mm512_srav_epi32(a, count(n));
        fn sum_i(a: I) -> i32 = _mm512_reduce_add_epi32(a);
        fn store_i8(p: *mut i8, a: I) = _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(a));
        fn dp(acc: I, weights: I, x: I) -> I = _mm512_dpbusd_epi32(acc, weights, x);
        fn dp_wide(acc: I, weights: I, x: I) -> I = _mm512_dpbusd_epi32(acc, weights, x);
    }

    #[inline(always)]
    unsafe fn gather(rows: *const *const u8, offset: usize) -> [I; 4] {
        // SAFETY: the caller's rows have 16 bytes there.
        unsafe {
            // Register i holds rows i, 4 + i, 8 + i and 12 + i; then 4 x 4 words are turned.
            let four = |i: usize| {
                let a = _mm512_castsi128_si512(bytes(rows, i, offset));
                let a = _mm512_inserti32x4::<1>(a, bytes(rows, 4 + i, offset));
                let a = _mm512_inserti32x4::<2>(a, bytes(rows, 8 + i, offset));
                _mm512_inserti32x4::<3>(a, bytes(rows, 12 + i, offset))
            };
            let (a, b, c, d) = (four(0), four(1), four(2), four(3));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab2, cd2) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab2, cd2),
                _mm512_unpackhi_epi64(ab2, cd2),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gather_u16(rows: *const *const u8, offset: usize) -> I {
        // SAFETY: the caller's rows have 2 bytes there.
        unsafe {
            let mut words = [0_u16; 16];
            for (i, word) in words.iter_mut().enumerate() {
                *word = (*rows.add(i)).add(offset).cast::<u16>().read_unaligned();
            }
            Self::load_u16(words.as_ptr().cast())
        }
    }
}

table!(Avx512, "avx512vnni", "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c");
