//! The vector operations that the kernels are written in, one implementation for each instruction
//! set.
//!
//! Everything generic over [`Lanes`] is inlined into functions that carry the instruction set's
//! target features (see the `table` macro), so that one package holds the code of all of them.

#![allow(unsafe_code, reason = "vector instructions that only some CPUs have")]
#![allow(clippy::inline_always, reason = "must take on the caller's target features")]

/// Registers of `N` lanes of 32 bits.
///
/// # Safety
/// Every method needs the CPU features of its implementation; those that take pointers read or write
/// exactly the named count of elements there, at any alignment.
pub(super) trait Lanes: Copy {
    /// `N` floats.
    type F: Copy;
    /// `N` integers of 32 bits, or four times as many bytes.
    type I: Copy;
    /// Lanes of a register; at most 16, and a divisor of 16.
    const N: usize;
    /// Whether `dp` takes the first factor as signed bytes; unsigned ones otherwise.
    const SIGNED: bool;
    /// Whether `dp_pair` is there, which has the products of two rows with two tokens at once.
    const PAIRS: bool = false;
    /// Whether a product of bytes is summed in 16 bits on its way (`dp_short`, `widen`), where a few of
    /// them may be added before they are widened.
    const SHORT: bool = false;

    unsafe fn prefetch(p: *const u8);

    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, a: Self::F);
    unsafe fn load_f16(p: *const u8) -> Self::F;
    unsafe fn store_f16(p: *mut u8, a: Self::F);
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    unsafe fn load_i8(p: *const u8) -> Self::F;
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// 16-bit words to integers.
    unsafe fn load_u16(p: *const u8) -> Self::I;
    /// Bytes to integers.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    unsafe fn splat(a: f32) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a b + c
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c - a b
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The smaller; `b` if one is NaN, or NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The greater; `b` if one is NaN, or NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// The sum of all lanes.
    unsafe fn sum(a: Self::F) -> f32;
    /// The greatest of all lanes.
    unsafe fn greatest(a: Self::F) -> f32;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::I;
    unsafe fn float(a: Self::I) -> Self::F;
    /// The float whose bits these are.
    unsafe fn from_bits(a: Self::I) -> Self::F;
    /// The lower 16 bits of each lane as a half float.
    unsafe fn from_f16(a: Self::I) -> Self::F;

    unsafe fn splat_i(a: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(a: Self::I, b: Self::I) -> Self::I;
    /// Each lane shifted left.
    unsafe fn shl(a: Self::I, n: i32) -> Self::I;
    /// Each lane shifted right, zeros coming in.
    unsafe fn shr(a: Self::I, n: i32) -> Self::I;
    /// Each lane shifted right, the sign coming in.
    unsafe fn sar(a: Self::I, n: i32) -> Self::I;
    /// The sum of all lanes.
    unsafe fn sum_i(a: Self::I) -> i32;
    /// Stores each lane as a byte; lanes are in range.
    unsafe fn store_i8(p: *mut i8, a: Self::I);
    /// Four products of bytes added in each lane; weights of at most 7 bits, or signed.
    unsafe fn dp(acc: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// The same for weights of 8 bits.
    unsafe fn dp_wide(acc: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// Products of bytes added by pairs to lanes of 16 bits, without saturation: as many as
    /// `Pack::SHORTS` says stay within them.
    #[inline(always)]
    unsafe fn dp_short(acc: Self::I, _weights: Self::I, _x: Self::I) -> Self::I {
        acc
    }
    /// Both halves of each lane of `short` added to it.
    #[inline(always)]
    unsafe fn widen(acc: Self::I, _short: Self::I) -> Self::I {
        acc
    }
    /// Registers with 4 columns of every row become such with 8 columns of half of the rows.
    #[inline(always)]
    unsafe fn zip(a: Self::I, b: Self::I) -> [Self::I; 2] {
        [a, b]
    }
    /// The two sums of `dp_pair` as those of the first token and of the second, a row in each lane.
    #[inline(always)]
    unsafe fn unzip(a: Self::I, b: Self::I) -> [Self::I; 2] {
        [a, b]
    }
    /// 8 bytes of one token and 8 of another.
    #[inline(always)]
    unsafe fn two(_first: *const i8, _second: *const i8) -> Self::I {
        // SAFETY: a value operation.
        unsafe { Self::splat_i(0) }
    }
    /// The products of 8 columns of two rows with two tokens, added to [row 0 token 0, row 0 token 1,
    /// row 1 token 0, row 1 token 1].
    #[inline(always)]
    unsafe fn dp_pair(acc: Self::I, _weights: Self::I, _x: Self::I) -> Self::I {
        acc
    }
    /// 16 bytes of each of `N` rows at `offset`: register k holds the k-th four bytes of every row.
    unsafe fn gather(rows: *const *const u8, offset: usize) -> [Self::I; 4];
    /// Two bytes of each of `N` rows at `offset`, zero-extended.
    unsafe fn gather_u16(rows: *const *const u8, offset: usize) -> Self::I;
}

/// Defines `TABLE`, the kernels of one instruction set: wrappers with its target features around the
/// generic code.
macro_rules! table {
    ($lanes:ty, $name:literal, $features:literal) => {
        pub(in crate::kernels) static TABLE: crate::kernels::Kernels = {
            use std::ops::Range;

            use half::f16;

            use crate::kernels::{
                Columns, Head, Kernels, Out, Rows, Window, attention, elements, pack, product, rows,
                sparse,
            };
            use crate::kernels::bands::{ByRows, ByTiles};
            use crate::tensor::Matrix;

            $crate::kernels::lanes::wrap! { $features;
                fn f32(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = rows::product::<$lanes, rows::F32>;
                fn f16_(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = rows::product::<$lanes, rows::F16>;
                fn bf16(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = rows::product::<$lanes, rows::BF16>;
                fn q4_0(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q4_0, ByRows>;
                fn q4_0x16(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q4_0, ByTiles>;
                fn q8_0(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q8_0, ByRows>;
                fn q8_0x16(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q8_0, ByTiles>;
                fn q4_k(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q4K, ByRows>;
                fn q4_kx16(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q4K, ByTiles>;
                fn q5_k(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q5K, ByRows>;
                fn q5_kx16(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q5K, ByTiles>;
                fn q6_k(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q6K, ByRows>;
                fn q6_kx16(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) = product::product::<$lanes, pack::Q6K, ByTiles>;
                fn quantize(values: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [f32], halves: &mut [f32]) = elements::quantize::<$lanes>;
                fn scores(queries: &[f32], keys: &Head<'_>, out: &mut [f32]) = attention::scores::<$lanes>;
                fn blend(weights: &[f32], values: &Head<'_>, out: &mut [f32]) = attention::blend::<$lanes>;
                fn to_f16(values: &[f32], out: &mut [f16]) = elements::to_f16::<$lanes>;
                fn gelu_times(gate: &mut [f32], up: &[f32]) = elements::gelu_times::<$lanes>;
                fn exp_sub_sum(values: &mut [f32], max: f32) -> f32 = elements::exp_sub_sum::<$lanes>;
                fn sparse(w: &Columns<'_>, rows: Range<usize>, inputs: &[(u32, f32)], out: *mut f32) = sparse::product::<$lanes>;
            }
            Kernels {
                name: $name,
                f32,
                f16: f16_,
                bf16,
                q4_0,
                q4_0x16,
                q8_0,
                q8_0x16,
                q4_k,
                q4_kx16,
                q5_k,
                q5_kx16,
                q6_k,
                q6_kx16,
                quantize,
                scores,
                blend,
                to_f16,
                gelu_times,
                exp_sub_sum,
                sparse,
            }
        };
    };
}

macro_rules! wrap {
    ($features:literal; $(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $inner:expr;)*) => {
        $(
            #[target_feature(enable = $features)]
            unsafe fn $name($($arg: $type),*) $(-> $result)? {
                // SAFETY: the caller of a table's functions has checked these features and the
                // lengths of the arguments.
                unsafe { $inner($($arg),*) }
            }
        )*
    };
}

/// Methods of [`Lanes`] that are one expression.
macro_rules! operations {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $body:expr;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $type),*) $(-> $result)? {
                // SAFETY: the trait's contract is that of the instructions.
                unsafe { $body }
            }
        )*
    };
}

pub(super) use {operations, table, wrap};
