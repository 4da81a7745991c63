//! One decoder layer on the `AltUp` stack.
//!
//! The layer predicts all streams from their mixture, runs attention, `LAuReL` and the FFN on the
//! first, corrects all streams by what it found there, and adds the token's per-layer embedding to the
//! others.

use super::{Part, Product, Step, math, multiply};
use crate::kernels::Out;
use crate::model::Layer;

impl Step<'_> {
    pub(super) fn layer(&mut self, index: usize, width: usize, parts: &mut [Part<'_>]) {
        let model = self.model;
        let Some(layer) = model.weights.layers.get(index) else { return };
        self.predict(layer);
        self.project(index, layer, parts);
        if self.s.rows.is_empty() {
            return;
        }
        self.attend(index, layer, parts);
        self.join(layer);
        self.ffn(index, layer, width);
        self.correct(layer);
        self.add_per_layer(index, layer);
    }

    /// Predicts the streams; the first, normed, is what attention and `LAuReL` read.
    fn predict(&mut self, layer: &Layer) {
        let config = self.model.config();
        let (hidden, eps) = (config.hidden, config.eps);
        let (width, rows) = (config.altup * hidden, self.s.rows.len());
        let stack = &self.s.stack;
        self.pool.rows2(
            &mut self.s.predicted,
            width,
            &mut self.s.normed,
            hidden,
            |row, predicted, normed| {
                let stack = math::row(stack, row, width);
                let first = math::row(stack, 0, hidden);
                let modal = math::router(first, &layer.router_norm, &layer.router, eps);
                let coefs = math::small_product(&layer.predict, &modal);
                predicted.copy_from_slice(stack);
                let streams = predicted.chunks_exact_mut(hidden);
                for (out, coefs) in streams.zip(coefs.chunks_exact(config.altup)) {
                    for (stream, coef) in stack.chunks_exact(hidden).zip(coefs) {
                        math::add_scaled(out, *coef, stream);
                    }
                }
                normed.copy_from_slice(math::row(predicted, 0, hidden));
                math::rms_norm(normed, Some(&layer.attn_norm), eps);
            },
        );
        self.read(rows, hidden);
    }

    /// Makes the normed rows the input of the next products.
    fn read(&mut self, rows: usize, hidden: usize) {
        let values = self.s.input.values_mut(rows, hidden);
        values.copy_from_slice(self.s.normed.get(..rows * hidden).unwrap_or_default());
        self.s.input.quantize(self.kernels);
    }

    /// Queries, keys, values and the first half of `LAuReL`. Keys and values go to the caches. In the
    /// last layer with a cache of its own, rows that predict nothing are done then.
    fn project(&mut self, index: usize, layer: &Layer, parts: &mut [Part<'_>]) {
        let (model, config) = (self.model, self.model.config());
        let (query, key, rank) = (layer.q.rows, config.kv_width(), layer.laurel_left.rows);
        let wanted = Self::wanted(&self.s.rows);
        let last = index + 1 == config.own_kv && wanted.len() < self.s.rows.len();
        if let (Some(kv), true) = (&layer.kv, last) {
            let (k, v) = (Out::new(&mut self.s.k, key), Out::new(&mut self.s.v, key));
            let x = &self.s.input;
            let products = [
                Product::whole(model.matrix(&kv.k), x, &k),
                Product::whole(model.matrix(&kv.v), x, &v),
            ];
            multiply(self.pool, self.kernels, &products);
            self.store(index, kv, parts);
            self.s.keep(&wanted, model);
            if wanted.is_empty() {
                return;
            }
            self.read(wanted.len(), config.hidden);
        }
        let rows = self.s.rows.len();
        let q = Out::new(&mut self.s.q, query);
        let left = Out::new(self.s.second_input.values_mut(rows, rank), rank);
        let x = &self.s.input;
        let mut products = vec![
            Product::whole(model.matrix(&layer.q), x, &q),
            Product::whole(model.matrix(&layer.laurel_left), x, &left),
        ];
        let (k, v) = (Out::new(&mut self.s.k, key), Out::new(&mut self.s.v, key));
        let own = layer.kv.as_ref().filter(|_| !last);
        if let Some(kv) = own {
            products.push(Product::whole(model.matrix(&kv.k), x, &k));
            products.push(Product::whole(model.matrix(&kv.v), x, &v));
        }
        multiply(self.pool, self.kernels, &products);
        self.s.second_input.quantize(self.kernels);
        if let Some(kv) = own {
            self.store(index, kv, parts);
        }
    }

    /// Joins attention and `LAuReL` with the stream, and norms it for the FFN.
    fn join(&mut self, layer: &Layer) {
        let config = self.model.config();
        let (hidden, eps, rows) = (config.hidden, config.eps, self.s.rows.len());
        let width = config.altup * hidden;
        let (branch, laurel) = (&self.s.branch, &self.s.laurel);
        let (normed, predicted) = (&self.s.normed, &self.s.predicted);
        self.pool.rows2(
            &mut self.s.hidden,
            hidden,
            self.s.input.values_mut(rows, hidden),
            hidden,
            |row, out, ffn_in| {
                out.copy_from_slice(math::row(predicted, row, width).get(..hidden).unwrap_or(&[]));
                math::add_normed(out, math::row(branch, row, hidden), &layer.post_attn_norm, eps);
                math::add_normed(out, math::row(laurel, row, hidden), &layer.laurel_norm, eps);
                for (out, normed) in out.iter_mut().zip(math::row(normed, row, hidden)) {
                    *out = (*out + normed) * std::f32::consts::FRAC_1_SQRT_2;
                }
                ffn_in.copy_from_slice(out);
                math::rms_norm(ffn_in, Some(&layer.ffn_norm), eps);
            },
        );
        self.s.input.quantize(self.kernels);
    }

    /// Corrects all streams by the difference that the layer made to the first.
    fn correct(&mut self, layer: &Layer) {
        let config = self.model.config();
        let (hidden, eps, rows) = (config.hidden, config.eps, self.s.rows.len());
        let width = config.altup * hidden;
        let branch = &self.s.branch;
        self.pool.rows(&mut self.s.hidden, hidden, |row, out| {
            math::add_normed(out, math::row(branch, row, hidden), &layer.post_ffn_norm, eps);
        });
        let (found, predicted) = (&self.s.hidden, &self.s.predicted);
        self.pool.rows2(
            &mut self.s.stack,
            width,
            self.s.input.values_mut(rows, hidden),
            hidden,
            |row, stack, scaled| {
                let found = math::row(found, row, hidden);
                let predicted = math::row(predicted, row, width);
                let first = math::row(predicted, 0, hidden);
                let modal = math::router(found, &layer.router_norm, &layer.router, eps);
                let coefs = math::small_product(&layer.correct, &modal);
                let streams = stack.chunks_exact_mut(hidden).zip(predicted.chunks_exact(hidden));
                for ((out, predicted), coef) in streams.zip(coefs) {
                    let values = predicted.iter().zip(found.iter().zip(first));
                    for (out, (predicted, (found, first))) in out.iter_mut().zip(values) {
                        *out = predicted + (coef + 1.0) * (found - first);
                    }
                }
                let scales = stack.iter().zip(&layer.correct_scale);
                for (out, (value, scale)) in scaled.iter_mut().zip(scales) {
                    *out = value * scale;
                }
            },
        );
        self.s.input.quantize(self.kernels);
    }

    /// Adds the per-layer embedding, gated by the first stream, to the other streams.
    fn add_per_layer(&mut self, index: usize, layer: &Layer) {
        let config = self.model.config();
        let (hidden, ple, eps) = (config.hidden, config.ple, config.eps);
        let (all, rows, kernels) = (config.layers() * ple, self.s.rows.len(), self.kernels);
        let gate = Out::new(self.s.second_input.values_mut(rows, ple), ple);
        let w = self.model.matrix(&layer.ple_gate);
        multiply(self.pool, kernels, &[Product::whole(w, &self.s.input, &gate)]);
        let inputs = &self.s.ple;
        self.pool.rows(self.s.second_input.values_mut(rows, ple), ple, |row, gate| {
            kernels.gelu_times(gate, math::row(math::row(inputs, row, all), index, ple));
        });
        self.s.second_input.quantize(kernels);
        let out = Out::new(&mut self.s.branch, hidden);
        let w = self.model.matrix(&layer.ple_projection);
        multiply(self.pool, kernels, &[Product::whole(w, &self.s.second_input, &out)]);
        let branch = &self.s.branch;
        self.pool.rows(&mut self.s.stack, config.altup * hidden, |row, stack| {
            for stream in stack.chunks_exact_mut(hidden).skip(1) {
                math::add_normed(stream, math::row(branch, row, hidden), &layer.post_ple_norm, eps);
            }
        });
    }
}
