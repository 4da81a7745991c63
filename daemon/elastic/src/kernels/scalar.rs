//! Every kernel in plain Rust: what the others are compared with, and what runs where a CPU has none
//! of their instructions.

#![allow(unsafe_code, reason = "writes through the shared output")]

use std::ops::Range;

use half::f16;

use crate::kernels::attention::{Cached, Head, Q8_0, Store, by_store};
use crate::kernels::elements::LEAST;
use crate::kernels::rows::{F16, F32};
use crate::kernels::{Columns, Kernels, Out, Rows, Window, blocks};
use crate::tensor::{Kind, Matrix};

/// First and third coefficient of GELU's polynomial: sqrt(2/pi), and 0.044715 times that.
pub(super) const GELU: [f32; 2] = [0.797_884_6, 0.035_677_407];

pub(super) static TABLE: Kernels = Kernels {
    name: "plain",
    f32: product_values,
    f16: product_values,
    bf16: product_values,
    q4_0: product_int8,
    q4_0x16: product_int8,
    q8_0: product_int8,
    q8_0x16: product_int8,
    q4_k: product_int8,
    q4_kx16: product_int8,
    q5_k: product_int8,
    q5_kx16: product_int8,
    q6_k: product_int8,
    q6_kx16: product_int8,
    quantize,
    scores,
    blend,
    to_f16,
    gelu_times,
    exp_sub_sum,
    sparse,
};

/// Columns that are made floats at a time: whole blocks of every kind.
const STRETCH: usize = 256;

/// Calls `each` with every stretch of a row as floats and the index of its first column.
fn stretches(w: &Matrix<'_>, row: usize, mut each: impl FnMut(&[f32], usize)) {
    let kind = w.kind().untiled();
    let bytes = kind.row_bytes(STRETCH).unwrap_or(1);
    let mut buffer = [0.0; STRETCH];
    for (i, part) in w.row(row).chunks(bytes).enumerate() {
        let cols = part.len() / kind.block_bytes() * kind.block_len();
        if let Some(values) = buffer.get_mut(..cols) {
            blocks::dequantize(kind, part, values);
            each(values, i * STRETCH);
        }
    }
}

/// Writes one product.
fn write(out: &Out<'_>, token: usize, row: usize, value: f32) {
    // SAFETY: `Kernels::product` has checked that there is a place for each of its rows and tokens.
    unsafe { *out.at(token, row) = value }
}

fn product_values(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) {
    let mut sums = vec![0.0; x.tokens()];
    for i in all.start..all.end {
        sums.fill(0.0);
        stretches(w, all.row(i), |weights, col| {
            for (token, sum) in sums.iter_mut().enumerate() {
                let first = token * x.stride() + col;
                let values = x.values().get(first..).unwrap_or_default();
                *sum += dot(weights.iter().copied(), values.iter().copied());
            }
        });
        for (token, sum) in sums.iter().enumerate() {
            write(out, token, i, *sum);
        }
    }
}

fn product_int8(w: &Matrix<'_>, all: Rows<'_>, x: Window<'_>, out: &Out<'_>) {
    let mut sums = vec![0.0; x.tokens()];
    for i in all.start..all.end {
        sums.fill(0.0);
        stretches(w, all.row(i), |weights, col| {
            for (token, sum) in sums.iter_mut().enumerate() {
                let first = token * x.stride() + col;
                let q = x.q().get(first..).unwrap_or_default().chunks_exact(32);
                let scales = x.scales().get(first / 32..).unwrap_or_default();
                for ((weights, q), scale) in weights.chunks_exact(32).zip(q).zip(scales) {
                    *sum += scale * dot(weights.iter().copied(), q.iter().map(|q| f32::from(*q)));
                }
            }
        });
        for (token, sum) in sums.iter().enumerate() {
            write(out, token, i, *sum);
        }
    }
}

pub(super) fn quantize(
    values: &[f32],
    q: &mut [i8],
    scales: &mut [f32],
    sums: &mut [f32],
    halves: &mut [f32],
) {
    let places = scales.iter_mut().zip(sums).zip(halves.chunks_exact_mut(2));
    let blocks = values.chunks_exact(32).zip(q.chunks_exact_mut(32)).zip(places);
    for ((values, q), ((scale, sum), halves)) in blocks {
        let greatest = values.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
        let (by, inverse) =
            if greatest < LEAST { (0.0, 0.0) } else { (greatest / 127.0, 127.0 / greatest) };
        for (q, value) in q.iter_mut().zip(values) {
            #[allow(clippy::cast_possible_truncation, reason = "in range, or anything will do")]
            let rounded = (value * inverse).round_ties_even() as i8;
            *q = rounded;
        }
        *scale = by;
        let total = |q: &[i8]| by * q.iter().map(|q| i32::from(*q)).sum::<i32>() as f32;
        *sum = total(q);
        for (half, q) in halves.iter_mut().zip(q.chunks_exact(16)) {
            *half = total(q);
        }
    }
}

/// See [`Kernels::sparse_down`], which has checked the sizes.
fn sparse(w: &Columns<'_>, rows: Range<usize>, inputs: &[(u32, f32)], out: *mut f32) {
    let half = |bytes: &[u8], row: usize| {
        let bytes = bytes.get(2 * row..).and_then(|bytes| bytes.first_chunk());
        f16::from_le_bytes(*bytes.unwrap_or(&[0; 2])).to_f32()
    };
    let byte = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
    for row in rows {
        let mut sum = 0.0;
        for (col, input) in inputs {
            let col = *col as usize;
            let Some(group) = w.group(col / 32) else { continue };
            let values = group.values.get(col % 32 * w.column_bytes()..).unwrap_or_default();
            let d = half(group.d, row);
            let four = byte(values, row / 32 * 16 + row % 16) >> (row % 32 / 16 * 4) & 15;
            let weight = match w.kind() {
                Kind::Q8_0 => d * f32::from(byte(values, row).cast_signed()),
                Kind::Q4_K => {
                    d * f32::from(byte(group.scales, row)) * f32::from(four)
                        - half(group.dmin, row) * f32::from(byte(group.minima, row))
                }
                _ => d * (f32::from(four) - 8.0),
            };
            sum += weight * input;
        }
        // SAFETY: the caller has checked that there is a place for each row.
        unsafe { *out.add(row) = sum }
    }
}

/// Eight sums side by side, which the compiler can keep in vectors.
fn dot(a: impl Iterator<Item = f32>, b: impl Iterator<Item = f32>) -> f32 {
    let mut sums = [0.0; 8];
    for (i, (a, b)) in a.zip(b).enumerate() {
        if let Some(sum) = sums.get_mut(i % 8) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

unsafe fn scores(queries: &[f32], keys: &Head<'_>, out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { by_store!(keys, scores_of<>(queries, keys, out)) }
}

unsafe fn scores_of<S: Store>(queries: &[f32], keys: &Head<'_>, out: &mut [f32]) {
    let rows = queries.chunks_exact(keys.dim()).zip(out.chunks_exact_mut(keys.len().max(1)));
    for (query, out) in rows {
        for (key, out) in out.iter_mut().enumerate() {
            let row = keys.at(key);
            // SAFETY: a row has as many values as a query.
            let values = (0..query.len()).map(|col| unsafe { S::one(row, col) });
            *out = dot(query.iter().copied(), values);
        }
    }
}

unsafe fn blend(weights: &[f32], values: &Head<'_>, out: &mut [f32]) {
    // SAFETY: the caller's.
    unsafe { by_store!(values, blend_of<>(weights, values, out)) }
}

unsafe fn blend_of<S: Store>(weights: &[f32], values: &Head<'_>, out: &mut [f32]) {
    out.fill(0.0);
    let rows = weights.chunks_exact(values.len().max(1)).zip(out.chunks_exact_mut(values.dim()));
    for (weights, out) in rows {
        for (i, weight) in weights.iter().enumerate() {
            let row = values.at(i);
            for (col, out) in out.iter_mut().enumerate() {
                // SAFETY: a row has as many values as `out`.
                *out += weight * unsafe { S::one(row, col) };
            }
        }
    }
}

pub(super) fn to_f16(values: &[f32], out: &mut [f16]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = f16::from_f32(*value);
    }
}

/// See `elements::gelu_times` for the form of the formula.
pub(super) fn gelu_times(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let u = x * (GELU[0] + GELU[1] * x * x);
        *gate = x / (1.0 + (-2.0 * u).exp()) * up;
    }
}

pub(super) fn exp_sub_sum(values: &mut [f32], max: f32) -> f32 {
    let mut sum = 0.0;
    for value in values {
        *value = (*value - max).exp();
        sum += *value;
    }
    sum
}
