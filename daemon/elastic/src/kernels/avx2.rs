//! The vector operations with AVX2: 8 lanes, and two tables, for CPUs with and without the int8 dot
//! products of AVX-VNNI.

#![allow(unsafe_code, reason = "vector instructions, checked for before the table is handed out")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(clippy::cast_ptr_alignment, reason = "loads and stores of any alignment")]

#[allow(clippy::wildcard_imports, reason = "intrinsics, named by their prefix")]
use std::arch::x86_64::*;

use crate::kernels::lanes::{Lanes, operations};

#[derive(Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>;

type F = __m256;
type I = __m256i;

#[inline(always)]
unsafe fn count(n: i32) -> I {
    // SAFETY: a value operation.
    unsafe { _mm256_set1_epi32(n) }
}

/// 16 bytes at `offset` of one of the rows.
#[inline(always)]
unsafe fn bytes(rows: *const *const u8, row: usize, offset: usize) -> __m128i {
    // SAFETY: the caller's rows have these bytes.
    unsafe { _mm_loadu_si128((*rows.add(row)).add(offset).cast()) }
}

/// The lower 16 bits of each lane side by side.
#[inline(always)]
unsafe fn narrow(a: I) -> __m128i {
    // SAFETY: value operations.
    unsafe {
        let low = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
        let packed = _mm256_packus_epi32(low, low);
        _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(packed))
    }
}

#[inline(always)]
unsafe fn sum(a: F) -> f32 {
    // SAFETY: value operations.
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
    }
}

#[inline(always)]
unsafe fn greatest(a: F) -> f32 {
    // SAFETY: value operations.
    unsafe {
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
    }
}

#[inline(always)]
unsafe fn sum_i(a: I) -> i32 {
    // SAFETY: value operations.
    unsafe {
        let a = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        let a = _mm_add_epi32(a, _mm_shuffle_epi32::<0b1110>(a));
        _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32::<1>(a)))
    }
}

#[inline(always)]
unsafe fn store_i8(p: *mut i8, a: I) {
    // SAFETY: the caller has 8 bytes there.
    unsafe {
        let words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        _mm_storel_epi64(p.cast(), _mm_packs_epi16(words, words));
    }
}

/// Products of bytes in 16 bits, which cannot overflow with weights of 7 bits, then pairs added and
/// multiplied with `by`.
#[inline(always)]
unsafe fn dot4(weights: I, x: I, by: i16) -> I {
    // SAFETY: value operations.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(by)) }
}

#[inline(always)]
unsafe fn dp<const VNNI: bool>(acc: I, weights: I, x: I) -> I {
    // SAFETY: value operations.
    unsafe {
        if VNNI {
            _mm256_dpbusd_avx_epi32(acc, weights, x)
        } else {
            _mm256_add_epi32(acc, dot4(weights, x, 1))
        }
    }
}

#[inline(always)]
unsafe fn dp_wide<const VNNI: bool>(acc: I, weights: I, x: I) -> I {
    // SAFETY: value operations.
    unsafe {
        if VNNI {
            return _mm256_dpbusd_avx_epi32(acc, weights, x);
        }
        let low = _mm256_and_si256(weights, _mm256_set1_epi8(0x7f));
        let top = _mm256_and_si256(_mm256_srli_epi16::<7>(weights), _mm256_set1_epi8(1));
        _mm256_add_epi32(acc, _mm256_add_epi32(dot4(low, x, 1), dot4(top, x, 128)))
    }
}

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type F = F;
    type I = I;
    const N: usize = 8;
    const SIGNED: bool = false;
    const SHORT: bool = !VNNI;

    operations! {
        fn prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T0>(p.cast());
        fn load(p: *const f32) -> F = _mm256_loadu_ps(p);
        fn store(p: *mut f32, a: F) = _mm256_storeu_ps(p, a);
        fn load_f16(p: *const u8) -> F = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
        fn store_f16(p: *mut u8, a: F) =
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a));
        fn load_bf16(p: *const u8) -> F = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(
            _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))
        ));
        fn load_i8(p: *const u8) -> F =
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
        fn load_i(p: *const u8) -> I = _mm256_loadu_si256(p.cast());
        fn load_u16(p: *const u8) -> I = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        fn load_u8(p: *const u8) -> I = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        fn splat(a: f32) -> F = _mm256_set1_ps(a);
        fn add(a: F, b: F) -> F = _mm256_add_ps(a, b);
        fn mul(a: F, b: F) -> F = _mm256_mul_ps(a, b);
        fn div(a: F, b: F) -> F = _mm256_div_ps(a, b);
        fn fma(a: F, b: F, c: F) -> F = _mm256_fmadd_ps(a, b, c);
        fn fnma(a: F, b: F, c: F) -> F = _mm256_fnmadd_ps(a, b, c);
        fn min(a: F, b: F) -> F = _mm256_min_ps(a, b);
        fn max(a: F, b: F) -> F = _mm256_max_ps(a, b);
        fn abs(a: F) -> F = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        fn sum(a: F) -> f32 = sum(a);
        fn greatest(a: F) -> f32 = greatest(a);
        fn round(a: F) -> I = _mm256_cvtps_epi32(a);
        fn float(a: I) -> F = _mm256_cvtepi32_ps(a);
        fn from_bits(a: I) -> F = _mm256_castsi256_ps(a);
        fn from_f16(a: I) -> F = _mm256_cvtph_ps(narrow(a));
        fn splat_i(a: i32) -> I = _mm256_set1_epi32(a);
        fn add_i(a: I, b: I) -> I = _mm256_add_epi32(a, b);
        fn sub_i(a: I, b: I) -> I = _mm256_sub_epi32(a, b);
        fn and(a: I, b: I) -> I = _mm256_and_si256(a, b);
        fn or(a: I, b: I) -> I = _mm256_or_si256(a, b);
        fn xor(a: I, b: I) -> I = _mm256_xor_si256(a, b);
        fn shl(a: I, n: i32) -> I = _mm256_sllv_epi32(a, count(n));
        fn shr(a: I, n: i32) -> I = _mm256_srlv_epi32(a, count(n));
        fn sar(a: I, n: i32) -> I = _mm256_srav_epi32(a, count(n));
        fn sum_i(a: I) -> i32 = sum_i(a);
        fn store_i8(p: *mut i8, a: I) = store_i8(p, a);
        fn dp(acc: I, weights: I, x: I) -> I = dp::<VNNI>(acc, weights, x);
        fn dp_wide(acc: I, weights: I, x: I) -> I = dp_wide::<VNNI>(acc, weights, x);
        fn dp_short(acc: I, weights: I, x: I) -> I =
            _mm256_add_epi16(acc, _mm256_maddubs_epi16(weights, x));
        fn widen(acc: I, short: I) -> I =
            _mm256_add_epi32(acc, _mm256_madd_epi16(short, _mm256_set1_epi16(1)));
    }

    #[inline(always)]
    unsafe fn gather(rows: *const *const u8, offset: usize) -> [I; 4] {
        // SAFETY: the caller's rows have 16 bytes there.
        unsafe {
            // Register i holds rows i and 4 + i; then 4 x 4 words are turned.
            let two = |i: usize| {
                _mm256_inserti128_si256::<1>(
                    _mm256_castsi128_si256(bytes(rows, i, offset)),
                    bytes(rows, 4 + i, offset),
                )
            };
            let (a, b, c, d) = (two(0), two(1), two(2), two(3));
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab2, cd2) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab2, cd2),
                _mm256_unpackhi_epi64(ab2, cd2),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gather_u16(rows: *const *const u8, offset: usize) -> I {
        // SAFETY: the caller's rows have 2 bytes there.
        unsafe {
            let mut words = [0_u16; 8];
            for (i, word) in words.iter_mut().enumerate() {
                *word = (*rows.add(i)).add(offset).cast::<u16>().read_unaligned();
            }
            Self::load_u16(words.as_ptr().cast())
        }
    }
}

/// Without AVX-VNNI.
pub(super) mod plain {
    crate::kernels::lanes::table!(super::Avx2<false>, "avx2", "avx2,fma,f16c");
}

/// With AVX-VNNI.
pub(super) mod vnni {
    crate::kernels::lanes::table!(super::Avx2<true>, "avxvnni", "avx2,fma,f16c,avxvnni");
}
