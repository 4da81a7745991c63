//! Products of quantized matrices with activations, chosen for the CPU at run time.
//!
//! | file | owns |
//! | --- | --- |
//! | `blocks` | rows of any kind to floats, and back for some |
//! | `input` | activations with their int8 copies |
//! | `scalar` | every kernel in plain Rust: the reference, and for CPUs without the instructions |
//! | `lanes` | the vector operations that the fast kernels are written in |
//! | `product`, `rows`, `attention`, `elements` | the fast kernels for quantized matrices, float matrices, KV caches, activations |
//! | `single` | the product of a quantized matrix with one token |
//! | `bands` | in which order both go through a matrix's rows, and where those lie |
//! | `columns`, `sparse` | a matrix by columns, and its product with few inputs |
//! | `pack` | the blocks of quantized kinds, unpacked for `product` and `single` |
//! | `source` | where `pack` reads: a band of rows, and what is asked for ahead |
//! | `avx512`, `avx2`, `sse41`, `neon` | those operations and the tables of kernels for one instruction set each |
//!
//! The forward pass takes [`Kernels::best`] once and calls its methods from the threads of its pool.

#![allow(unsafe_code, reason = "calls kernels whose CPU features were checked")]

mod attention;
mod bands;
mod blocks;
mod columns;
mod elements;
mod input;
mod lanes;
mod pack;
mod product;
mod rows;
mod scalar;
mod single;
mod source;
mod sparse;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod sse41;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use half::f16;

pub use attention::{Cached, Head};
pub use blocks::{dequantize, quantize};
pub use columns::Columns;
pub use input::{Input, Window};

use crate::tensor::{Kind, Matrix};

type Product = unsafe fn(&Matrix<'_>, Rows<'_>, Window<'_>, &Out<'_>);
type Sparse = unsafe fn(&Columns<'_>, Range<usize>, &[(u32, f32)], *mut f32);
type Attention = unsafe fn(&[f32], &Head<'_>, &mut [f32]);
type Quantize = unsafe fn(&[f32], &mut [i8], &mut [f32], &mut [f32], &mut [f32]);

/// A table of kernels for one instruction set. Tables are only handed out where this CPU has it.
pub struct Kernels {
    name: &'static str,
    f32: Product,
    f16: Product,
    bf16: Product,
    q4_0: Product,
    q4_0x16: Product,
    q8_0: Product,
    q8_0x16: Product,
    q4_k: Product,
    q4_kx16: Product,
    q5_k: Product,
    q5_kx16: Product,
    q6_k: Product,
    q6_kx16: Product,
    quantize: Quantize,
    scores: Attention,
    blend: Attention,
    to_f16: unsafe fn(&[f32], &mut [f16]),
    gelu_times: unsafe fn(&mut [f32], &[f32]),
    exp_sub_sum: unsafe fn(&mut [f32], f32) -> f32,
    sparse: Sparse,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kernels").field(&self.name).finish()
    }
}

impl Kernels {
    /// The fastest that this CPU can run.
    #[must_use]
    pub fn best() -> &'static Self {
        static BEST: OnceLock<&'static Kernels> = OnceLock::new();
        BEST.get_or_init(|| Self::all().pop().unwrap_or(&scalar::TABLE))
    }

    /// All that this CPU can run, the slowest first.
    #[must_use]
    pub fn all() -> Vec<&'static Self> {
        #[allow(unused_mut, reason = "CPUs without vector instructions of their own")]
        let mut all = vec![&scalar::TABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3") {
                all.push(&sse41::TABLE);
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                all.push(&avx2::plain::TABLE);
                if is_x86_feature_detected!("avxvnni") {
                    all.push(&avx2::vnni::TABLE);
                }
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(&avx512::TABLE);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.push(&neon::plain::TABLE);
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                all.push(&neon::dotprod::TABLE);
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    all.push(&neon::i8mm::TABLE);
                }
            }
        }
        all
    }

    /// The instruction set.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// out[t][r] = sum over c of w[r][c] x[t][c], for these rows and every token of `x`: what one
    /// thread does of a product.
    ///
    /// Of a tiled matrix rows begin and end at multiples of [`Kind::rows_together`]. Quantized weights are
    /// multiplied with the int8 copies of the activations, floats with the
    /// values themselves. Nothing is written where sizes do not fit, or int8 copies are missing.
    pub fn product<'x>(
        &self,
        w: &Matrix<'_>,
        rows: Range<usize>,
        x: impl Into<Window<'x>>,
        out: &Out<'_>,
    ) {
        let fits = rows.end <= w.rows();
        debug_assert!(fits, "rows up to {} of {}", rows.end, w.rows());
        if fits {
            let rows = Rows { start: rows.start, end: rows.end, list: None };
            self.multiply(w, rows, x.into(), out);
        }
    }

    /// out[t][i] = sum over c of w[list[i]][c] x[t][c], for these places i of the list: products with
    /// some rows, where the others are not needed; the matrix is not tiled. Otherwise as [`Self::product`].
    pub fn product_of(
        &self,
        w: &Matrix<'_>,
        list: &[u32],
        places: Range<usize>,
        x: &Input,
        out: &Out<'_>,
    ) {
        let fits = places.end <= list.len() && list.iter().all(|row| (*row as usize) < w.rows());
        debug_assert!(fits, "a list with rows beyond {}", w.rows());
        if fits {
            let rows = Rows { start: places.start, end: places.end, list: Some(list) };
            self.multiply(w, rows, x.into(), out);
        }
    }

    /// The caller has checked that the rows are the matrix's.
    fn multiply(&self, w: &Matrix<'_>, rows: Rows<'_>, x: Window<'_>, out: &Out<'_>) {
        let kernel = match w.kind() {
            Kind::F32 => self.f32,
            Kind::F16 => self.f16,
            Kind::BF16 => self.bf16,
            Kind::Q4_0 => self.q4_0,
            Kind::Q4_0x16 => self.q4_0x16,
            Kind::Q8_0 => self.q8_0,
            Kind::Q8_0x16 => self.q8_0x16,
            Kind::Q4_K => self.q4_k,
            Kind::Q4_Kx16 => self.q4_kx16,
            Kind::Q5_K => self.q5_k,
            Kind::Q5_Kx16 => self.q5_kx16,
            Kind::Q6_K => self.q6_k,
            Kind::Q6_Kx16 => self.q6_kx16,
        };
        let together = w.kind().rows_together();
        let whole = together == 1
            || rows.list.is_none()
                && rows.start.is_multiple_of(together)
                && rows.end.is_multiple_of(together);
        let fits = whole
            && w.cols() == x.cols()
            && x.is_whole(w.kind().block_len() > 1)
            && rows.end <= out.stride
            && x.tokens().checked_mul(out.stride).is_some_and(|len| len <= out.len)
            && w.holds_its_rows();
        debug_assert!(fits, "product of {} x {} with {} columns", w.rows(), w.cols(), x.cols());
        if fits && rows.start < rows.end {
            // SAFETY: this table was handed out, so the CPU has its features; sizes fit.
            unsafe { kernel(w, rows, x, out) }
        }
    }

    /// out[0][r] = sum over the inputs (c, x) of w[r][c] x, for these rows, which begin and end at
    /// multiples of 32: what one thread does of a product with one token whose other inputs are zero.
    /// The inputs' columns ascend.
    ///
    /// Nothing is written where sizes do not fit.
    pub fn sparse_down(
        &self,
        w: &Columns<'_>,
        rows: Range<usize>,
        inputs: &[(u32, f32)],
        out: &Out<'_>,
    ) {
        let fits = rows.start.is_multiple_of(32)
            && rows.end.is_multiple_of(32)
            && rows.end <= w.rows()
            && rows.end <= out.len
            && inputs.is_sorted_by_key(|(col, _)| *col)
            && inputs.last().is_none_or(|(col, _)| (*col as usize) < w.cols());
        debug_assert!(fits, "sparse product of {} x {}", w.rows(), w.cols());
        if fits && !rows.is_empty() {
            // SAFETY: this table was handed out, so the CPU has its features; sizes fit.
            unsafe { (self.sparse)(w, rows, inputs, out.values) }
        }
    }

    /// Int8 copies for [`Input`]; as many whole blocks as all the slices have.
    fn quantize(
        &self,
        values: &[f32],
        q: &mut [i8],
        scales: &mut [f32],
        sums: &mut [f32],
        halves: &mut [f32],
    ) {
        // SAFETY: this table was handed out, so the CPU has its features.
        unsafe { (self.quantize)(values, q, scales, sums, halves) }
    }

    /// out[q][i] = queries[q] . keys[i], for whole rows of queries: how well each fits the head's keys.
    ///
    /// Nothing is written where sizes do not fit.
    pub fn scores(&self, queries: &[f32], keys: &Head<'_>, out: &mut [f32]) {
        let (count, rest) = (queries.len() / keys.dim(), queries.len() % keys.dim());
        let fits = rest == 0 && out.len() == count * keys.len();
        debug_assert!(fits, "scores of {} values with {keys:?}", queries.len());
        if fits {
            // SAFETY: this table was handed out, so the CPU has its features; sizes fit.
            unsafe { (self.scores)(queries, keys, out) }
        }
    }

    /// out[q] = sum over i of weights[q][i] values[i], for whole rows of `out`.
    ///
    /// Nothing is written where sizes do not fit.
    pub fn blend(&self, weights: &[f32], values: &Head<'_>, out: &mut [f32]) {
        let (count, rest) = (out.len() / values.dim(), out.len() % values.dim());
        let fits = rest == 0 && weights.len() == count * values.len();
        debug_assert!(fits, "sums of {} values with {values:?}", out.len());
        if fits {
            // SAFETY: this table was handed out, so the CPU has its features; sizes fit.
            unsafe { (self.blend)(weights, values, out) }
        }
    }

    /// Rounds to half floats, over the shorter length.
    pub fn to_f16(&self, values: &[f32], out: &mut [f16]) {
        // SAFETY: this table was handed out, so the CPU has its features.
        unsafe { (self.to_f16)(values, out) }
    }

    /// gate = gelu(gate) up, with the tanh approximation, over the shorter length.
    pub fn gelu_times(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: this table was handed out, so the CPU has its features.
        unsafe { (self.gelu_times)(gate, up) }
    }

    /// values = exp(values - max), whose sum it returns: the first half of a softmax.
    #[must_use]
    pub fn exp_sub_sum(&self, values: &mut [f32], max: f32) -> f32 {
        // SAFETY: this table was handed out, so the CPU has its features.
        unsafe { (self.exp_sub_sum)(values, max) }
    }
}

/// Rows of a matrix, and where their products go.
#[derive(Clone, Copy)]
struct Rows<'a> {
    start: usize,
    end: usize,
    list: Option<&'a [u32]>,
}

impl Rows<'_> {
    /// The `i`-th row, `i` being within `start..end`.
    #[inline]
    fn row(self, i: usize) -> usize {
        match self.list {
            Some(list) => list.get(i).map_or(0, |row| *row as usize),
            None => i,
        }
    }
}

/// Where products go: for each token `stride` floats, shared by threads that write different rows.
///
/// Whoever shares one between threads gives each its own rows, and reads what was written only when
/// all of them are done.
pub struct Out<'a> {
    values: *mut f32,
    len: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads write through it at disjoint rows only, which is the contract above; the floats
// themselves may be written from any thread.
unsafe impl Sync for Out<'_> {}
// SAFETY: as above.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// Places for as many tokens as there are whole strides.
    #[must_use]
    pub fn new(values: &'a mut [f32], stride: usize) -> Self {
        Self { values: values.as_mut_ptr(), len: values.len(), stride, borrowed: PhantomData }
    }

    /// The place of a product; the caller has checked that there is one before it writes.
    fn at(&self, token: usize, row: usize) -> *mut f32 {
        self.values.wrapping_add(token * self.stride + row)
    }
}
