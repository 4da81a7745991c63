//! Rows of weights to floats and back, in plain Rust: for single rows (embeddings), for the
//! reference kernels, and for writing test and draft models.

use half::{bf16, f16};

use crate::tensor::Kind;

/// Makes floats of a row's bytes: as many whole blocks as both slices have. The bytes are those of a row, so
/// of a tiled kind those of the kind that it is made from.
pub fn dequantize(kind: Kind, bytes: &[u8], out: &mut [f32]) {
    let kind = kind.untiled();
    let blocks = bytes.chunks_exact(kind.block_bytes()).zip(out.chunks_exact_mut(kind.block_len()));
    for (block, out) in blocks {
        match kind {
            Kind::F32 => one(block, out, f32::from_le_bytes),
            Kind::F16 => one(block, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Kind::BF16 => one(block, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Kind::Q4_0 | Kind::Q4_0x16 => q4_0(block, out),
            Kind::Q8_0 | Kind::Q8_0x16 => q8_0(block, out),
            Kind::Q4_K | Kind::Q4_Kx16 => q4_k(block, out),
            Kind::Q5_K | Kind::Q5_Kx16 => q5_k(block, out),
            Kind::Q6_K | Kind::Q6_Kx16 => q6_k(block, out),
        }
    }
}

fn one<const N: usize>(block: &[u8], out: &mut [f32], float: impl Fn([u8; N]) -> f32) {
    if let (Some(bytes), Some(out)) = (block.first_chunk(), out.first_mut()) {
        *out = float(*bytes);
    }
}

/// The half float that a slice begins with, and what follows it.
fn half(bytes: &[u8]) -> (f32, &[u8]) {
    let (first, rest) = bytes.split_first_chunk().unwrap_or((&[0; 2], &[]));
    (f16::from_le_bytes(*first).to_f32(), rest)
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let (scale, packed) = half(block);
    let (low, high) = out.split_at_mut(16);
    for ((packed, low), high) in packed.iter().zip(low).zip(high) {
        *low = scale * (f32::from(packed & 15) - 8.0);
        *high = scale * (f32::from(packed >> 4) - 8.0);
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let (scale, q) = half(block);
    for (q, out) in q.iter().zip(out) {
        *out = scale * f32::from(q.cast_signed());
    }
}

/// The scales and minima, of 6 bits each, of a block's eight times 32 columns.
pub(super) fn k_scales(packed: [u8; 12]) -> [(u8, u8); 8] {
    std::array::from_fn(|j| {
        let at = |i: usize| packed.get(i).copied().unwrap_or(0);
        if j < 4 {
            (at(j) & 63, at(j + 4) & 63)
        } else {
            let last = at(j + 4);
            ((last & 15) | (at(j - 4) >> 6 << 4), (last >> 4) | (at(j) >> 6 << 4))
        }
    })
}

/// Scales, minima, and what follows them, of a `Q4_K` or `Q5_K` block.
fn k_head(block: &[u8]) -> ([(f32, f32); 8], &[u8]) {
    let (d, rest) = half(block);
    let (dmin, rest) = half(rest);
    let (packed, rest) = rest.split_first_chunk().unwrap_or((&[0; 12], &[]));
    let scales =
        k_scales(*packed).map(|(scale, min)| (d * f32::from(scale), dmin * f32::from(min)));
    (scales, rest)
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scales, packed) = k_head(block);
    // Each 32 bytes hold 64 columns: the lower halves the first 32, the upper ones the others.
    for ((packed, out), scales) in
        packed.chunks_exact(32).zip(out.chunks_exact_mut(64)).zip(scales.as_chunks::<2>().0)
    {
        let (low, high) = out.split_at_mut(32);
        let [(first, less), (second, less2)] = scales;
        for ((packed, low), high) in packed.iter().zip(low).zip(high) {
            *low = first * f32::from(packed & 15) - less;
            *high = second * f32::from(packed >> 4) - less2;
        }
    }
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (scales, rest) = k_head(block);
    let (bits, packed) = rest.split_first_chunk().unwrap_or((&[0; 32], &[]));
    let groups = packed.chunks_exact(32).zip(out.chunks_exact_mut(64));
    for (j, ((packed, out), scales)) in groups.zip(scales.as_chunks::<2>().0).enumerate() {
        let (low, high) = out.split_at_mut(32);
        let [(first, less), (second, less2)] = scales;
        for (((packed, bits), low), high) in packed.iter().zip(bits).zip(low).zip(high) {
            let fifth = |j: usize| (bits >> j & 1) << 4;
            *low = first * f32::from(packed & 15 | fifth(2 * j)) - less;
            *high = second * f32::from(packed >> 4 | fifth(2 * j + 1)) - less2;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (lower, rest) = block.split_first_chunk().unwrap_or((&[0; 128], &[]));
    let (upper, rest) = rest.split_first_chunk().unwrap_or((&[0; 64], &[]));
    let (scales, rest) = rest.split_first_chunk().unwrap_or((&[0; 16], &[]));
    let (d, _) = half(rest);
    let scales = scales.map(|scale| d * f32::from(scale.cast_signed()));
    let groups = lower.as_chunks::<64>().0.iter().zip(upper.as_chunks::<32>().0);
    for (((lower, upper), out), scales) in
        groups.zip(out.chunks_exact_mut(128)).zip(scales.as_chunks::<8>().0)
    {
        // 128 columns: the lower halves of 64 bytes, then their upper halves; each of the four
        // times 32 has its two upper bits in the same 32 bytes.
        for (i, (out, scale)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
            let (quarter, half) = (i / 2, 16 * (i % 2));
            let lower = lower.iter().skip(32 * (quarter % 2) + half);
            let upper = upper.iter().skip(half);
            for ((out, lower), upper) in out.iter_mut().zip(lower).zip(upper) {
                let four = if quarter < 2 { lower & 15 } else { lower >> 4 };
                let two = upper >> (2 * quarter) & 3;
                *out = scale * (f32::from(four | two << 4) - 32.0);
            }
        }
    }
}

/// Appends these values in that kind, which is false, and nothing is appended, for kinds that it
/// cannot write or values that are no whole number of blocks.
#[must_use]
pub fn quantize(kind: Kind, values: &[f32], out: &mut Vec<u8>) -> bool {
    if !values.len().is_multiple_of(kind.block_len()) {
        return false;
    }
    match kind {
        Kind::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Kind::F16 => out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
        Kind::BF16 => out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
        Kind::Q4_0 => values.as_chunks::<32>().0.iter().for_each(|v| to_q4_0(v, out)),
        Kind::Q8_0 => values.as_chunks::<32>().0.iter().for_each(|v| to_q8_0(v, out)),
        _ => return false,
    }
    true
}

/// One over a scale, or zero for a scale of zero.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=15")]
fn to_q4_0(values: &[f32; 32], out: &mut Vec<u8>) {
    // The value farthest from zero becomes -8, with its sign in the scale.
    let far = values.iter().fold(0.0_f32, |far, v| if v.abs() > far.abs() { *v } else { far });
    let scale = far / -8.0;
    let by = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    let q = |v: f32| (v * by + 8.5).clamp(0.0, 15.0) as u8;
    let (low, high) = values.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| q(*low) | q(*high) << 4));
}

#[allow(clippy::cast_possible_truncation, reason = "within -127..=127")]
fn to_q8_0(values: &[f32; 32], out: &mut Vec<u8>) {
    let far = values.iter().fold(0.0_f32, |far, v| far.max(v.abs()));
    let scale = far / 127.0;
    let by = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(values.iter().map(|v| ((v * by).round() as i8).cast_unsigned()));
}
