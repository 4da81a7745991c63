//! The small computations on one row.

use crate::kernels::Kernels;

/// Row `index` of a buffer; empty past its end.
pub fn row<T>(buffer: &[T], index: usize, width: usize) -> &[T] {
    buffer.get(index * width..(index + 1) * width).unwrap_or_default()
}

/// Row `index` of a buffer; empty past its end.
pub fn row_mut<T>(buffer: &mut [T], index: usize, width: usize) -> &mut [T] {
    buffer.get_mut(index * width..(index + 1) * width).unwrap_or_default()
}

/// The mean of the squares.
pub fn mean_square(values: &[f32]) -> f32 {
    sum(values, |value| value * value) / values.len().max(1) as f32
}

/// A sum in several lanes, which compilers make into vectors and which loses less than one lane does.
pub fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|value| of(*value)).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += of(*value));
    }
    lanes.iter().sum::<f32>() + rest
}

/// Divides by the root mean square; the weight is used as it is (no `1 +`).
pub fn rms_norm(values: &mut [f32], weight: Option<&[f32]>, eps: f32) {
    let scale = 1.0 / (mean_square(values) + eps).sqrt();
    match weight {
        Some(weight) => values.iter_mut().zip(weight).for_each(|(v, w)| *v *= scale * w),
        None => values.iter_mut().for_each(|v| *v *= scale),
    }
}

/// Multiplies all values.
pub fn scale(values: &mut [f32], by: f32) {
    for value in values {
        *value *= by;
    }
}

/// Writes `values`, scaled to the root mean square `target`.
pub fn same_magnitude(out: &mut [f32], values: &[f32], target: f32) {
    let scale = target / mean_square(values).max(1e-5).sqrt();
    out.iter_mut().zip(values).for_each(|(out, value)| *out = value * scale);
}

/// One layer's per-layer input: `out` has the projection of the embedding, `row` the table's.
pub fn per_layer_input(out: &mut [f32], row: &[f32], norm: &[f32], hidden: usize, eps: f32) {
    scale(out, 1.0 / (hidden as f32).sqrt());
    rms_norm(out, Some(norm), eps);
    let scale = (row.len() as f32).sqrt();
    for (out, row) in out.iter_mut().zip(row) {
        *out = (*out + row * scale) * std::f32::consts::FRAC_1_SQRT_2;
    }
}

/// Turns pairs of values, one from each half of the head, by the position's angles.
pub fn rotate(head: &mut [f32], angles: &[(f32, f32)]) {
    let (first, second) = head.split_at_mut(head.len() / 2);
    for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(angles) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Sine and cosine of every angle of a position.
pub fn angles(out: &mut [(f32, f32)], position: usize, base: f32) {
    let pairs = out.len() as f32;
    for (index, out) in out.iter_mut().enumerate() {
        let frequency = base.powf(-(index as f32) / pairs);
        *out = (position as f32 * frequency).sin_cos();
    }
}

/// Adds `scale` times `values`.
pub fn add_scaled(out: &mut [f32], scale: f32, values: &[f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += scale * value);
}

/// Adds the values, divided by their root mean square and weighted.
pub fn add_normed(out: &mut [f32], values: &[f32], weight: &[f32], eps: f32) {
    let scale = 1.0 / (mean_square(values) + eps).sqrt();
    for (out, (value, weight)) in out.iter_mut().zip(values.iter().zip(weight)) {
        *out += value * scale * weight;
    }
}

/// Holds values softly within `cap`: `cap tanh(value / cap)`.
pub fn soft_cap(values: &mut [f32], cap: f32, kernels: &Kernels) {
    // tanh x = 1 - 2 / (exp 2x + 1)
    scale(values, 2.0 / cap);
    let _ = kernels.exp_sub_sum(values, 0.0);
    for value in values {
        *value = cap - 2.0 * cap / (*value + 1.0);
    }
}

/// The greatest value; NaN counts as none.
pub fn highest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for values in values.chunks(16) {
        for (most, value) in lanes.iter_mut().zip(values) {
            *most = if *value > *most { *value } else { *most };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// What the router makes of a row: `tanh` of its products with the normed row divided by its length.
pub fn router(values: &[f32], norm: &[f32], weights: &[f32], eps: f32) -> Vec<f32> {
    let scale = 1.0 / (mean_square(values) + eps).sqrt() / values.len() as f32;
    let dot = |row: &[f32]| {
        let mut lanes = [0.0_f32; 16];
        for ((row, norm), values) in row.chunks(16).zip(norm.chunks(16)).zip(values.chunks(16)) {
            for (lane, ((w, norm), v)) in lanes.iter_mut().zip(row.iter().zip(norm).zip(values)) {
                *lane += w * norm * v;
            }
        }
        (lanes.iter().sum::<f32>() * scale).tanh()
    };
    weights.chunks_exact(values.len().max(1)).map(dot).collect()
}

/// A matrix with few columns times a vector.
pub fn small_product(weights: &[f32], x: &[f32]) -> Vec<f32> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum();
    weights.chunks_exact(x.len().max(1)).map(dot).collect()
}
