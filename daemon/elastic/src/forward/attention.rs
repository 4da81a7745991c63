//! Attention: norms and rotary positions of queries and keys, the caches, and the weighted values.

use std::ops::Range;

use half::slice::HalfBitsSliceExt as _;

use super::{Part, Product, Step, math, multiply};
use crate::kernels::{self, Kernels, Out};
use crate::kv::{Cache, Rows};
use crate::model::{KeyValue, Layer};
use crate::tensor::Kind;

impl Step<'_> {
    /// Norms and turns the keys, norms the values, and writes both to the layer's caches.
    pub(super) fn store(&mut self, index: usize, kv: &KeyValue, parts: &mut [Part<'_>]) {
        let config = self.model.config();
        let (width, dim, eps) = (config.kv_width(), config.head_dim, config.eps);
        let angles = &self.s.angles;
        let full = config.full.get(index).copied().unwrap_or(true);
        self.pool.rows2(&mut self.s.k, width, &mut self.s.v, width, |row, keys, values| {
            let angles = math::row(math::row(angles, row, dim / 2 * 2), full.into(), dim / 2);
            for key in keys.chunks_exact_mut(dim) {
                math::rms_norm(key, Some(&kv.k_norm), eps);
                math::rotate(key, angles);
            }
            values.chunks_exact_mut(dim).for_each(|value| math::rms_norm(value, None, eps));
        });
        for (at, row) in self.s.rows.iter().enumerate() {
            let part = parts.get_mut(row.part);
            let Some(cache) = part.and_then(|part| part.sequence.cache_mut(index)) else {
                continue;
            };
            let to = cache.row(row.position);
            write(&mut cache.keys, to, math::row(&self.s.k, at, width), self.kernels);
            write(&mut cache.values, to, math::row(&self.s.v, at, width), self.kernels);
        }
    }

    /// Attends with every head of every row, and finishes `LAuReL` beside the output projection.
    pub(super) fn attend(&mut self, index: usize, layer: &Layer, parts: &[Part<'_>]) {
        let (model, kernels, config) = (self.model, self.kernels, self.model.config());
        let (dim, heads, eps) = (config.head_dim, config.heads, config.eps);
        let (query, rows) = (heads * dim, self.s.rows.len());
        let full = config.full.get(index).copied().unwrap_or(true);
        let angles = &self.s.angles;
        self.pool.rows(&mut self.s.q, query, |row, q| {
            let angles = math::row(math::row(angles, row, dim / 2 * 2), full.into(), dim / 2);
            for q in q.chunks_exact_mut(dim) {
                math::rms_norm(q, Some(&layer.q_norm), eps);
                math::rotate(q, angles);
            }
        });
        let source = config.kv_source(index);
        let caches: Vec<Option<&Cache>> =
            parts.iter().map(|part| part.sequence.cache(source)).collect();
        let (q, metas) = (&self.s.q, &self.s.rows);
        let out = self.s.input.values_mut(rows, query);
        self.pool.rows(out, dim, |piece, out| {
            let (row, head) = (piece / heads, piece % heads);
            let Some(meta) = metas.get(row) else { return };
            let Some(cache) = caches.get(meta.part).copied().flatten() else { return };
            let first = if full { 0 } else { (meta.position + 1).saturating_sub(config.window) };
            let head = Head {
                kernels,
                cache,
                width: config.kv_width(),
                at: head / (heads / config.kv_heads) * dim,
            };
            head.attend(math::row(q, piece, dim), first..meta.position + 1, out);
        });
        self.s.input.quantize(kernels);
        let hidden = config.hidden;
        let branch = Out::new(&mut self.s.branch, hidden);
        let laurel = Out::new(&mut self.s.laurel, hidden);
        let products = [
            Product::whole(model.matrix(&layer.o), &self.s.input, &branch),
            Product::whole(model.matrix(&layer.laurel_right), &self.s.second_input, &laurel),
        ];
        multiply(self.pool, kernels, &products);
    }
}

/// A key and value head of one cache.
struct Head<'c> {
    kernels: &'static Kernels,
    cache: &'c Cache,
    /// Values of a cache's row.
    width: usize,
    /// Where in the row the head begins.
    at: usize,
}

impl Head<'_> {
    /// The values at these positions, weighted by how well their keys fit the query. The scale is 1,
    /// because queries and keys are normed.
    fn attend(&self, q: &[f32], positions: Range<usize>, out: &mut [f32]) {
        let rows = || positions.clone().map(|position| self.cache.row(position));
        let mut scores: Vec<f32> = rows().map(|row| self.score(q, row)).collect();
        let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum = self.kernels.exp_sub_sum(&mut scores, highest);
        out.fill(0.0);
        for (row, score) in rows().zip(&scores) {
            self.add(out, score / sum, row);
        }
    }

    fn score(&self, q: &[f32], row: usize) -> f32 {
        match &self.cache.keys {
            Rows::F32(keys) => self.kernels.dot(q, self.part(keys, row, q.len())),
            Rows::F16(keys) => {
                self.kernels.dot_f16(q, self.part(keys, row, q.len()).reinterpret_cast())
            }
            Rows::Q8_0(keys) => self.kernels.dot_q8_0(q, self.blocks(keys, row, q.len())),
        }
    }

    fn add(&self, out: &mut [f32], weight: f32, row: usize) {
        match &self.cache.values {
            Rows::F32(values) => {
                math::add_scaled(out, weight, self.part(values, row, out.len()));
            }
            Rows::F16(values) => {
                let values = self.part(values, row, out.len());
                self.kernels.add_scaled_f16(out, weight, values.reinterpret_cast());
            }
            Rows::Q8_0(values) => {
                let values = self.blocks(values, row, out.len());
                self.kernels.add_scaled_q8_0(out, weight, values);
            }
        }
    }

    fn part<'v, T>(&self, values: &'v [T], row: usize, len: usize) -> &'v [T] {
        let start = row * self.width + self.at;
        values.get(start..start + len).unwrap_or_default()
    }

    fn blocks<'v>(&self, bytes: &'v [u8], row: usize, len: usize) -> &'v [u8] {
        let bytes_of = |values: usize| values / 32 * 34;
        let start = row * bytes_of(self.width) + bytes_of(self.at);
        bytes.get(start..start + bytes_of(len)).unwrap_or_default()
    }
}

fn write(rows: &mut Rows, row: usize, values: &[f32], kernels: &Kernels) {
    match rows {
        Rows::F32(all) => math::row_mut(all, row, values.len()).copy_from_slice(values),
        Rows::F16(all) => {
            kernels.to_f16(values, math::row_mut(all, row, values.len()).reinterpret_cast_mut());
        }
        Rows::Q8_0(all) => {
            let mut bytes = Vec::with_capacity(values.len() / 32 * 34);
            if kernels::quantize(Kind::Q8_0, values, &mut bytes) {
                math::row_mut(all, row, bytes.len()).copy_from_slice(&bytes);
            }
        }
    }
}
