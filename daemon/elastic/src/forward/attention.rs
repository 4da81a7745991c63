//! Attention: norms and rotary positions of queries and keys, the caches, and the weighted values.

use half::slice::HalfBitsSliceExt as _;

use super::{Part, Product, Step, math, multiply};
use crate::kernels::{self, Head, Kernels, Out};
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
        // Query heads that share a head of the cache go together, unless that leaves threads idle.
        let group = heads / config.kv_heads;
        let most = (rows * heads).div_ceil(self.pool.threads());
        let together = (1..=group).rev().find(|some| group.is_multiple_of(*some) && *some <= most);
        let together = together.unwrap_or(1);
        let (q, metas) = (&self.s.q, &self.s.rows);
        let out = self.s.input.values_mut(rows, query);
        self.pool.rows(out, together * dim, |piece, out| {
            let (row, head) = (piece * together / heads, piece * together % heads);
            let Some(meta) = metas.get(row) else { return };
            let Some(cache) = caches.get(meta.part).copied().flatten() else { return };
            let first = if full { 0 } else { (meta.position + 1).saturating_sub(config.window) };
            let at = head / group * dim;
            let columns = at..at + dim;
            let heads = cache.heads(config.kv_width(), columns, first..meta.position + 1);
            if let Some([keys, values]) = heads {
                attend(kernels, math::row(q, piece, together * dim), &keys, &values, out);
            }
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

/// The values, weighted for each query by how well their keys fit it. The scale is 1, because queries
/// and keys are normed.
fn attend(kernels: &Kernels, queries: &[f32], keys: &Head<'_>, values: &Head<'_>, out: &mut [f32]) {
    let (dim, len) = (keys.dim(), keys.len());
    let mut scores = vec![0.0; queries.len() / dim * len];
    kernels.scores(queries, keys, &mut scores);
    let sums = scores.chunks_exact_mut(len).map(|scores| {
        let highest = math::highest(scores);
        kernels.exp_sub_sum(scores, highest)
    });
    let sums: Vec<f32> = sums.collect();
    kernels.blend(&scores, values, out);
    for (out, sum) in out.chunks_exact_mut(dim).zip(sums) {
        math::scale(out, 1.0 / sum);
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
