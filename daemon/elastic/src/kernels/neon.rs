//! The vector operations with NEON: 4 lanes, and three tables, for CPUs without and with the int8 dot
//! products of Armv8.2, and with the int8 matrix products of Armv8.6.

#![allow(unsafe_code, reason = "vector instructions, checked for before the table is handed out")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]
#![allow(clippy::cast_ptr_alignment, reason = "loads and stores of any alignment")]

#[allow(clippy::wildcard_imports, reason = "intrinsics, named by their prefix")]
use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernels::lanes::{Lanes, operations};

#[derive(Clone, Copy)]
pub(super) struct Neon<const DOT: bool, const PAIRS: bool>;

type F = float32x4_t;
type I = int32x4_t;

/// Half floats to floats. The intrinsic has a type that Rust 1.90 lacks.
#[inline(always)]
unsafe fn widen(a: uint16x4_t) -> F {
    let wide: F;
    // SAFETY: a value operation of every Armv8 CPU.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Floats to half floats.
#[inline(always)]
unsafe fn narrow(a: F) -> uint16x4_t {
    let half: uint16x4_t;
    // SAFETY: a value operation of every Armv8 CPU.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) half, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    half
}

#[inline(always)]
unsafe fn prefetch(p: *const u8) {
    // SAFETY: a hint, for any address.
    unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) p, options(nostack, preserves_flags)) }
}

/// Four bytes as integers.
#[inline(always)]
unsafe fn four(p: *const u8) -> I {
    // SAFETY: the caller has 4 bytes there.
    unsafe {
        let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
        vmovl_s16(vget_low_s16(vmovl_s8(bytes)))
    }
}

/// Four bytes as integers without a sign.
#[inline(always)]
unsafe fn four_unsigned(p: *const u8) -> I {
    // SAFETY: the caller has 4 bytes there.
    unsafe {
        let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
        vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))))
    }
}

#[inline(always)]
unsafe fn store_i8(p: *mut i8, a: I) {
    // SAFETY: the caller has 4 bytes there.
    unsafe {
        let words = vqmovn_s32(a);
        let bytes = vqmovn_s16(vcombine_s16(words, words));
        p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)));
    }
}

#[inline(always)]
unsafe fn dp<const DOT: bool>(acc: I, weights: I, x: I) -> I {
    // SAFETY: value operations; those of Armv8.2 only where DOT says that the CPU has them.
    unsafe {
        if DOT {
            let mut sum = acc;
            // The intrinsic is not stable in Rust 1.90.
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) weights,
                in(vreg) x, options(pure, nomem, nostack, preserves_flags));
            return sum;
        }
        let (w, x) = (vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(x));
        // Two products of bytes fit 16 bits, as no activation is -128.
        let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
        let pairs = vpaddq_s16(low, vmull_high_s8(w, x));
        vpadalq_s16(acc, pairs)
    }
}

#[inline(always)]
unsafe fn dp_pair<const PAIRS: bool>(acc: I, weights: I, x: I) -> I {
    let mut sum = acc;
    if PAIRS {
        // SAFETY: a value operation of Armv8.6; PAIRS says that the CPU has it.
        unsafe {
            // The intrinsic is not stable in Rust 1.90.
            asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) weights,
                in(vreg) x, options(pure, nomem, nostack, preserves_flags));
        }
    }
    sum
}

impl<const DOT: bool, const PAIRS: bool> Lanes for Neon<DOT, PAIRS> {
    type F = F;
    type I = I;
    const N: usize = 4;
    const SIGNED: bool = true;
    const PAIRS: bool = PAIRS;

    operations! {
        fn prefetch(p: *const u8) = prefetch(p);
        fn load(p: *const f32) -> F = vreinterpretq_f32_u8(vld1q_u8(p.cast()));
        fn store(p: *mut f32, a: F) = vst1q_u8(p.cast(), vreinterpretq_u8_f32(a));
        fn load_f16(p: *const u8) -> F = widen(vreinterpret_u16_u8(vld1_u8(p)));
        fn store_f16(p: *mut u8, a: F) = vst1_u8(p, vreinterpret_u8_u16(narrow(a)));
        fn load_bf16(p: *const u8) -> F =
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(p))));
        fn load_i8(p: *const u8) -> F = vcvtq_f32_s32(four(p));
        fn load_i(p: *const u8) -> I = vreinterpretq_s32_u8(vld1q_u8(p));
        fn load_u16(p: *const u8) -> I =
            vreinterpretq_s32_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p))));
        fn load_u8(p: *const u8) -> I = four_unsigned(p);
        fn splat(a: f32) -> F = vdupq_n_f32(a);
        fn add(a: F, b: F) -> F = vaddq_f32(a, b);
        fn mul(a: F, b: F) -> F = vmulq_f32(a, b);
        fn div(a: F, b: F) -> F = vdivq_f32(a, b);
        fn fma(a: F, b: F, c: F) -> F = vfmaq_f32(c, a, b);
        fn fnma(a: F, b: F, c: F) -> F = vfmsq_f32(c, a, b);
        fn min(a: F, b: F) -> F = vminq_f32(a, b);
        fn max(a: F, b: F) -> F = vmaxq_f32(a, b);
        fn abs(a: F) -> F = vabsq_f32(a);
        fn sum(a: F) -> f32 = vaddvq_f32(a);
        fn greatest(a: F) -> f32 = vmaxvq_f32(a);
        fn round(a: F) -> I = vcvtnq_s32_f32(a);
        fn float(a: I) -> F = vcvtq_f32_s32(a);
        fn from_bits(a: I) -> F = vreinterpretq_f32_s32(a);
        fn from_f16(a: I) -> F = widen(vmovn_u32(vreinterpretq_u32_s32(a)));
        fn splat_i(a: i32) -> I = vdupq_n_s32(a);
        fn add_i(a: I, b: I) -> I = vaddq_s32(a, b);
        fn sub_i(a: I, b: I) -> I = vsubq_s32(a, b);
        fn and(a: I, b: I) -> I = vandq_s32(a, b);
        fn or(a: I, b: I) -> I = vorrq_s32(a, b);
        fn xor(a: I, b: I) -> I = veorq_s32(a, b);
        fn shl(a: I, n: i32) -> I = vshlq_s32(a, vdupq_n_s32(n));
        fn shr(a: I, n: i32) -> I =
            vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-n)));
        fn sar(a: I, n: i32) -> I = vshlq_s32(a, vdupq_n_s32(-n));
        fn sum_i(a: I) -> i32 = vaddvq_s32(a);
        fn store_i8(p: *mut i8, a: I) = store_i8(p, a);
        fn dp(acc: I, weights: I, x: I) -> I = dp::<DOT>(acc, weights, x);
        fn dp_wide(acc: I, weights: I, x: I) -> I = dp::<DOT>(acc, weights, x);
        fn zip(a: I, b: I) -> [I; 2] = [vzip1q_s32(a, b), vzip2q_s32(a, b)];
        fn unzip(a: I, b: I) -> [I; 2] = [vuzp1q_s32(a, b), vuzp2q_s32(a, b)];
        fn two(first: *const i8, second: *const i8) -> I =
            vreinterpretq_s32_s8(vcombine_s8(vld1_s8(first), vld1_s8(second)));
        fn dp_pair(acc: I, weights: I, x: I) -> I = dp_pair::<PAIRS>(acc, weights, x);
    }

    #[inline(always)]
    unsafe fn gather(rows: *const *const u8, offset: usize) -> [I; 4] {
        // SAFETY: the caller's rows have 16 bytes there.
        unsafe {
            let row = |i: usize| vreinterpretq_s32_u8(vld1q_u8((*rows.add(i)).add(offset)));
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            let turn = |a, b| {
                let (even, odd) = (vtrn1q_s32(a, b), vtrn2q_s32(a, b));
                (vreinterpretq_s64_s32(even), vreinterpretq_s64_s32(odd))
            };
            let ((ab, ab2), (cd, cd2)) = (turn(a, b), turn(c, d));
            [
                vreinterpretq_s32_s64(vtrn1q_s64(ab, cd)),
                vreinterpretq_s32_s64(vtrn1q_s64(ab2, cd2)),
                vreinterpretq_s32_s64(vtrn2q_s64(ab, cd)),
                vreinterpretq_s32_s64(vtrn2q_s64(ab2, cd2)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gather_u16(rows: *const *const u8, offset: usize) -> I {
        // SAFETY: the caller's rows have 2 bytes there.
        unsafe {
            let mut words = [0_u32; 4];
            for (i, word) in words.iter_mut().enumerate() {
                *word = u32::from((*rows.add(i)).add(offset).cast::<u16>().read_unaligned());
            }
            vreinterpretq_s32_u32(vld1q_u32(words.as_ptr()))
        }
    }
}

/// Without dot products.
pub(super) mod plain {
    crate::kernels::lanes::table!(super::Neon<false, false>, "neon", "neon");
}

/// With dot products.
pub(super) mod dotprod {
    crate::kernels::lanes::table!(super::Neon<true, false>, "dotprod", "neon,dotprod");
}

/// With dot products for single tokens and matrix products for several.
pub(super) mod i8mm {
    crate::kernels::lanes::table!(super::Neon<true, true>, "i8mm", "neon,dotprod,i8mm");
}
