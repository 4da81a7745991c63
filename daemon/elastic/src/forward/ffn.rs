//! The feed-forward network at some width: the first rows of gate and up, the first columns of down.
//!
//! In layers with activation sparsity only the units survive whose gate reaches so many standard
//! deviations above the mean of the gates (Gaussian top-k). In decode, up is computed for those alone.

use super::{BAND, Product, Step, math, multiply};
use crate::kernels::Out;
use crate::model::Layer;

impl Step<'_> {
    pub(super) fn ffn(&mut self, index: usize, layer: &Layer, width: usize) {
        let (model, kernels, config) = (self.model, self.kernels, self.model.config());
        let rows = self.s.rows.len();
        let cutoff = config.sparsity.get(index).copied().flatten();
        self.s.up.resize(rows * width, 0.0);
        let (gate_w, up_w) = (model.matrix(&layer.gate), model.matrix(&layer.up));
        let x = &self.s.input;
        {
            let gate = Out::new(self.s.second_input.values_mut(rows, width), width);
            let up = Out::new(&mut self.s.up, width);
            let gate = Product { rows: 0..width, ..Product::whole(gate_w, x, &gate) };
            let up = Product { rows: 0..width, ..Product::whole(up_w, x, &up) };
            let both = [gate, up];
            // Where few units survive, up is for those alone.
            let now = if cutoff.is_some() && rows == 1 { &both[..1] } else { &both[..] };
            multiply(self.pool, kernels, now);
        }
        if let (Some(deviations), 1) = (cutoff, rows) {
            return self.few_units(index, layer, width, deviations);
        }
        let up = &self.s.up;
        let units = self.s.second_input.values_mut(rows, width);
        self.pool.rows(units, width, |row, units| {
            if let Some(deviations) = cutoff {
                cut(units, deviations);
            }
            kernels.gelu_times(units, math::row(up, row, width));
        });
        self.down(layer, width);
    }

    /// The rest of the FFN for one token of which few units survive.
    fn few_units(&mut self, index: usize, layer: &Layer, width: usize, deviations: f32) {
        let (model, kernels, hidden) = (self.model, self.kernels, self.model.config().hidden);
        let gates = self.s.second_input.values_mut(1, width);
        cut(gates, deviations);
        let alive = (0_u32..).zip(&*gates).filter(|(_, gate)| **gate > 0.0);
        let (units, mut values): (Vec<u32>, Vec<f32>) = alive.unzip();
        let (w, x) = (model.matrix(&layer.up), &self.s.input);
        let out = Out::new(&mut self.s.up, width);
        let size = units.len().div_ceil(4 * self.pool.threads()).next_multiple_of(BAND);
        self.pool.run(units.len().div_ceil(size.max(1)), &|piece| {
            let places = piece * size..units.len().min((piece + 1) * size);
            kernels.product_of(&w, &units, places, x, &out);
        });
        kernels.gelu_times(&mut values, self.s.up.get(..units.len()).unwrap_or_default());
        if let Some(columns) = model.side().and_then(|side| side.columns(index)) {
            let inputs: Vec<(u32, f32)> = units.into_iter().zip(values).collect();
            let out = Out::new(&mut self.s.branch, hidden);
            let size = hidden.div_ceil(4 * self.pool.threads()).next_multiple_of(2 * BAND);
            self.pool.run(hidden.div_ceil(size), &|piece| {
                let rows = piece * size..hidden.min((piece + 1) * size);
                kernels.sparse_down(&columns, rows, &inputs, &out);
            });
            return;
        }
        // The others are 0 already.
        for (unit, value) in units.into_iter().zip(values) {
            if let Some(gate) = gates.get_mut(unit as usize) {
                *gate = value;
            }
        }
        self.down(layer, width);
    }

    fn down(&mut self, layer: &Layer, width: usize) {
        self.s.second_input.quantize(self.kernels);
        let (hidden, units) = (self.model.config().hidden, &self.s.second_input);
        let cut = width.min(layer.down.first.cols);
        let first = self.model.matrix(&layer.down.first).first_cols(cut).zip(units.columns(0..cut));
        let rest = layer.down.rest.filter(|_| width > cut);
        let rest = rest.and_then(|rest| self.model.matrix(&rest).first_cols(width - cut));
        let rest = rest.zip(units.columns(cut..width));
        self.s.rest.resize(if rest.is_some() { self.s.branch.len() } else { 0 }, 0.0);
        let outs = [Out::new(&mut self.s.branch, hidden), Out::new(&mut self.s.rest, hidden)];
        let products: Vec<_> = [first, rest]
            .into_iter()
            .zip(&outs)
            .filter_map(|(part, out)| part.map(|(w, x)| Product::whole(w, x, out)))
            .collect();
        multiply(self.pool, self.kernels, &products);
        self.s.branch.iter_mut().zip(&self.s.rest).for_each(|(sum, rest)| *sum += rest);
    }
}

/// Takes so many standard deviations above the mean off each gate; what was below becomes 0.
fn cut(gates: &mut [f32], deviations: f32) {
    let count = gates.len().max(1) as f32;
    let mean = math::sum(gates, |gate| gate) / count;
    let variance = math::sum(gates, |gate| (gate - mean) * (gate - mean)) / count;
    let cutoff = mean + deviations * variance.sqrt();
    for gate in gates {
        *gate = (*gate - cutoff).max(0.0);
    }
}
