//! The memory for activations. Buffers grow to the largest step and stay.

use super::{Logits, Part, math};
use crate::kernels::Input;
use crate::model::Model;

/// One token of the step.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The index of its part.
    pub part: usize,
    /// Its place in the sequence.
    pub position: usize,
    /// Whether its logits are computed.
    pub wanted: bool,
}

/// Buffers of one row for each token, unless they say otherwise.
#[derive(Default)]
pub struct Scratch {
    /// The tokens that are still computed.
    pub rows: Vec<Row>,
    /// Their numbers.
    pub tokens: Vec<u32>,
    /// The `AltUp` stack: all streams of a token side by side.
    pub stack: Vec<f32>,
    /// The stack as the layer predicts it.
    pub predicted: Vec<f32>,
    /// Per-layer inputs, all layers side by side, and the table's rows they are made of.
    pub ple: Vec<f32>,
    pub ple_row: Vec<f32>,
    /// Sine and cosine of every angle, sliding layers' first, then full layers'.
    pub angles: Vec<(f32, f32)>,
    /// What the products read.
    pub input: Input,
    pub second_input: Input,
    /// The active stream after its norm, and after attention and `LAuReL`.
    pub normed: Vec<f32>,
    pub hidden: Vec<f32>,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub laurel: Vec<f32>,
    /// Whatever a branch gives back to the stream.
    pub branch: Vec<f32>,
    /// What the rest of a cut `ffn_down` adds to that.
    pub rest: Vec<f32>,
    pub up: Vec<f32>,
    /// One row of the vocabulary for each wanted token.
    pub logits: Vec<f32>,
}

impl Scratch {
    /// Makes room for a step and notes its rows.
    pub fn begin(&mut self, model: &Model, parts: &[Part<'_>]) {
        let config = model.config();
        self.rows.clear();
        self.logits.clear();
        for (index, part) in parts.iter().enumerate() {
            let last = part.tokens.len().saturating_sub(1);
            self.rows.extend((0..part.tokens.len()).map(|token| Row {
                part: index,
                position: part.sequence.len() + token,
                wanted: match part.logits {
                    Logits::None => false,
                    Logits::Last => token == last,
                    Logits::All => true,
                },
            }));
        }
        let rows = self.rows.len();
        let grow = |buffer: &mut Vec<f32>, width: usize| buffer.resize(rows * width, 0.0);
        let (hidden, streams) = (config.hidden, config.altup);
        grow(&mut self.stack, streams * hidden);
        grow(&mut self.predicted, streams * hidden);
        grow(&mut self.ple, config.layers() * config.ple);
        grow(&mut self.ple_row, config.layers() * config.ple);
        grow(&mut self.normed, hidden);
        grow(&mut self.hidden, hidden);
        grow(&mut self.branch, hidden);
        grow(&mut self.laurel, hidden);
        grow(&mut self.q, config.heads * config.head_dim);
        grow(&mut self.k, config.kv_width());
        grow(&mut self.v, config.kv_width());

        let pairs = config.head_dim / 2;
        self.angles.resize(rows * 2 * pairs, (0.0, 1.0));
        for (row, angles) in self.rows.iter().zip(self.angles.chunks_exact_mut(2 * pairs)) {
            let (sliding, full) = angles.split_at_mut(pairs);
            math::angles(sliding, row.position, config.rope_sliding);
            math::angles(full, row.position, config.rope_full);
        }
    }

    /// Keeps only these rows, in this order, of everything that is needed after a layer's keys and
    /// values are written.
    pub fn keep(&mut self, kept: &[usize], model: &Model) {
        let config = model.config();
        let pack = |buffer: &mut Vec<f32>, width: usize| {
            for (to, from) in kept.iter().enumerate() {
                buffer.copy_within(from * width..(from + 1) * width, to * width);
            }
            buffer.truncate(kept.len() * width);
        };
        pack(&mut self.stack, config.altup * config.hidden);
        pack(&mut self.predicted, config.altup * config.hidden);
        pack(&mut self.normed, config.hidden);
        pack(&mut self.ple, config.layers() * config.ple);
        let width = config.head_dim / 2 * 2;
        for (to, from) in kept.iter().enumerate() {
            self.angles.copy_within(from * width..(from + 1) * width, to * width);
        }
        self.rows = kept.iter().filter_map(|index| self.rows.get(*index).copied()).collect();
        let rows = self.rows.len();
        self.angles.truncate(rows * width);
        for (buffer, width) in [
            (&mut self.hidden, config.hidden),
            (&mut self.branch, config.hidden),
            (&mut self.laurel, config.hidden),
            (&mut self.q, config.heads * config.head_dim),
        ] {
            buffer.truncate(rows * width);
        }
    }
}
