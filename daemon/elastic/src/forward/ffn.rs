//! The feed-forward network at some width: the first rows of gate and up, the first columns of down.
//!
//! In layers with activation sparsity only the units survive whose gate reaches so many standard
//! deviations above the mean of the gates (Gaussian top-k). In decode, up is computed for those alone.

use super::{Product, Step, math, multiply};
use crate::kernels::Out;
use crate::model::Layer;

impl Step<'_> {
    pub(super) fn ffn(&mut self, index: usize, layer: &Layer, width: usize) {
        let (model, kernels, config) = (self.model, self.kernels, self.model.config());
        let (hidden, rows) = (config.hidden, self.s.rows.len());
        let cutoff = config.sparsity.get(index).copied().flatten();
        self.s.up.resize(rows * width, 0.0);
        let (gate_w, up_w) = (model.matrix(&layer.gate), model.matrix(&layer.up));
        let x = &self.s.input;
        {
            let gate = Out::new(self.s.second_input.values_mut(rows, width), width);
            let up = Out::new(&mut self.s.up, width);
            let gate = Product { rows: 0..width, ..Product::whole(gate_w, x, &gate) };
            let up = Product { rows: 0..width, ..Product::whole(up_w, x, &up) };
            match cutoff {
                Some(_) if rows == 1 => multiply(self.pool, kernels, &[gate]),
                _ => multiply(self.pool, kernels, &[gate, up]),
            }
        }
        let units = self.s.second_input.values_mut(rows, width);
        match cutoff {
            Some(deviations) if rows == 1 => {
                cut(units, deviations);
                let alive: Vec<usize> =
                    (0..width).filter(|unit| units.get(*unit).is_some_and(|u| *u > 0.0)).collect();
                let up = Out::new(&mut self.s.up, width);
                let size = alive.len().div_ceil(4 * self.pool.threads()).max(16);
                let pieces: Vec<&[usize]> = alive.chunks(size).collect();
                self.pool.run(pieces.len(), &|piece| {
                    for unit in pieces.get(piece).copied().unwrap_or_default() {
                        kernels.product(&up_w, *unit..unit + 1, x, &up);
                    }
                });
                let up = &self.s.up;
                for unit in alive {
                    let (one, up) = (units.get_mut(unit..=unit), up.get(unit..=unit));
                    if let (Some(one), Some(up)) = (one, up) {
                        kernels.gelu_times(one, up);
                    }
                }
            }
            _ => {
                let up = &self.s.up;
                self.pool.rows(units, width, |row, units| {
                    if let Some(deviations) = cutoff {
                        cut(units, deviations);
                    }
                    kernels.gelu_times(units, math::row(up, row, width));
                });
            }
        }
        self.s.second_input.quantize(kernels);
        let Some(down) = model.matrix(&layer.down).first_cols(width) else { return };
        let out = Out::new(&mut self.s.branch, hidden);
        multiply(self.pool, kernels, &[Product::whole(down, &self.s.second_input, &out)]);
    }
}

/// Takes so many standard deviations above the mean off each gate; what was below becomes 0.
fn cut(gates: &mut [f32], deviations: f32) {
    let count = gates.len().max(1) as f32;
    let mean = math::sum(gates, |gate| gate) / count;
    let variance = math::sum(gates, |gate| (gate - mean) * (gate - mean)) / count;
    let cutoff = mean + deviations * variance.sqrt();
    gates.iter_mut().for_each(|gate| *gate = (*gate - cutoff).max(0.0));
}
