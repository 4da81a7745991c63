//! The forward pass of Gemma 3n, after the reference implementation in `transformers`
//! (`modeling_gemma3n.py`), with the size as an argument of every step.
//!
//! A step takes new tokens of one or several sequences, all at one size, and goes once over the
//! weights: prefill of a chunk, decode of one token and batched decode are the same thing. Activations
//! are rows of f32, one for each token. The layers that read other layers' KV caches, almost half of
//! them, are computed only for the tokens whose logits are wanted: nothing else depends on them.
//!
//! Papers: MatFormer (arXiv 2310.07707), AltUp (arXiv 2301.13310), LAuReL (arXiv 2411.07501), Gaussian
//! top-k (Spark Transformer, arXiv 2506.06644).

mod attention;
mod ffn;
mod layer;
mod math;
mod scratch;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::{Kernels, Out, Window};
use crate::kv::{SLACK, Sequence};
use crate::model::Model;
use crate::pool::Pool;
use crate::sizes::Slice;
use crate::tensor::Matrix;

use self::scratch::{Row, Scratch};

/// New tokens of one sequence.
pub struct Part<'s> {
    /// Where they go.
    pub sequence: &'s mut Sequence,
    /// The tokens, at most [`SLACK`].
    pub tokens: &'s [u32],
    /// Which of them predict.
    pub logits: Logits,
}

/// Which tokens of a part have their logits computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// The last one.
    Last,
    /// All of them.
    All,
}

/// Computes steps: the threads, the kernels and the memory for activations.
pub struct Runner {
    pool: Pool,
    kernels: &'static Kernels,
    scratch: Scratch,
    alive: Alive,
}

/// Told after each layer that a long step goes on.
type Alive = Box<dyn Fn() + Send + Sync>;

impl Runner {
    /// With the best kernels for this CPU, or those given.
    #[must_use]
    pub fn new(pool: Pool, kernels: Option<&'static Kernels>) -> Self {
        let kernels = kernels.unwrap_or_else(Kernels::best);
        Self { pool, kernels, scratch: Scratch::default(), alive: Box::new(|| {}) }
    }

    /// Calls this after each layer, on the thread that computes: a step on a slow device may take a
    /// minute, and somebody may wonder.
    #[must_use]
    pub fn watched(mut self, alive: impl Fn() + Send + Sync + 'static) -> Self {
        self.alive = Box::new(alive);
        self
    }

    /// Appends the tokens of every part to its sequence. Gives the logits that are wanted, one row of
    /// the vocabulary's length for each, in the order of the parts. On an error no sequence has more
    /// tokens than before; it may be that none can be cut back as far any more.
    pub fn step(
        &mut self,
        model: &Model,
        slice: &Slice,
        parts: &mut [Part<'_>],
    ) -> Result<&mut [f32]> {
        check(model, parts)?;
        let Self { pool, kernels, scratch, alive } = self;
        scratch.begin(model, parts);
        for part in &mut *parts {
            part.sequence.write_over(part.tokens.len());
        }
        pool.lead(|pool| {
            Step { model, slice, pool, kernels, s: scratch }.run(parts, alive);
        });
        // What was computed while the file changed is void.
        model.check()?;
        for part in parts {
            part.sequence.advance(part.tokens.len());
        }
        Ok(&mut self.scratch.logits)
    }

    /// How many threads compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The kernels in use.
    #[must_use]
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }
}

fn check(model: &Model, parts: &[Part<'_>]) -> Result<()> {
    model.check()?;
    let vocabulary = model.vocabulary();
    for part in parts {
        part.sequence.check_room(part.tokens.len())?;
        if part.tokens.len() > SLACK {
            return Err(Error::NoRoom { tokens: part.tokens.len(), capacity: SLACK });
        }
        let unknown = part.tokens.iter().find(|token| **token as usize >= vocabulary);
        if let Some(token) = unknown {
            return Err(Error::NoToken { token: *token, vocabulary });
        }
    }
    Ok(())
}

/// One step under way.
struct Step<'r> {
    model: &'r Model,
    slice: &'r Slice,
    pool: &'r mut Pool,
    kernels: &'static Kernels,
    s: &'r mut Scratch,
}

impl Step<'_> {
    fn run(&mut self, parts: &mut [Part<'_>], alive: &dyn Fn()) {
        self.embed(parts);
        self.per_layer_inputs();
        for (index, width) in self.slice.widths().iter().enumerate() {
            if let Some(width) = width {
                self.layer(index, *width, parts);
                alive();
            }
            if self.s.rows.is_empty() {
                return;
            }
        }
        self.logits();
    }

    /// The embeddings, and from them the other streams of the `AltUp` stack.
    fn embed(&mut self, parts: &[Part<'_>]) {
        let (config, weights) = (self.model.config(), &self.model.weights);
        let (hidden, streams) = (config.hidden, config.altup);
        let rows = self.s.rows.len();
        let table = self.model.matrix(&weights.embedding);
        let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let scale = (hidden as f32).sqrt();
        self.pool.rows(self.s.input.values_mut(rows, hidden), hidden, |row, out| {
            let token = tokens.get(row).map_or(0, |token| *token as usize);
            crate::kernels::dequantize(table.kind(), &table.row(token), out);
            math::scale(out, scale);
        });
        self.s.input.quantize(self.kernels);
        self.s.tokens = tokens;
        for stream in 1..streams {
            let w = self.model.stacked(&weights.altup_in, stream - 1);
            let out = Out::new(&mut self.s.branch, hidden);
            multiply(self.pool, self.kernels, &[Product::whole(w, &self.s.input, &out)]);
            let (first, branch) = (self.s.input.values(), &self.s.branch);
            self.pool.rows(&mut self.s.stack, streams * hidden, |row, stack| {
                let first = math::row(first, row, hidden);
                let other = math::row(branch, row, hidden);
                let (head, rest) = stack.split_at_mut(hidden);
                head.copy_from_slice(first);
                let at = (stream - 1) * hidden;
                if let Some(out) = rest.get_mut(at..at + hidden) {
                    math::same_magnitude(out, other, math::mean_square(first).sqrt());
                }
            });
        }
    }

    /// What each layer adds for each token: the token's row of the table and a projection of its
    /// embedding. Skipped layers' parts are left out.
    fn per_layer_inputs(&mut self) {
        let (config, weights) = (self.model.config(), &self.model.weights);
        let (hidden, ple, all) = (config.hidden, config.ple, config.layers() * config.ple);
        let w = self.model.matrix(&weights.ple_projection);
        let out = Out::new(&mut self.s.ple, all);
        let kept = kept_runs(self.slice);
        let products: Vec<_> = kept
            .iter()
            .map(|layers| layers.start * ple..layers.end * ple)
            .map(|rows| Product { rows, ..Product::whole(w, &self.s.input, &out) })
            .collect();
        multiply(self.pool, self.kernels, &products);

        let table = self.model.matrix(&weights.ple_table);
        let (tokens, norm, eps) = (&self.s.tokens, &weights.ple_norm, config.eps);
        self.pool.rows2(&mut self.s.ple, all, &mut self.s.ple_row, all, |row, out, looked_up| {
            // Tokens past the table, those of images and sound, have the first row's.
            let token = tokens.get(row).map_or(0, |token| *token as usize);
            let token = if token < table.rows() { token } else { 0 };
            let (kind, bytes) = (table.kind(), table.row(token));
            let row_bytes = |at: usize| kind.row_bytes(at).unwrap_or(0);
            for layers in &kept {
                let (start, end) = (layers.start * ple, layers.end * ple);
                // A run of layers may begin within a block; then the whole row is read.
                let whole = start % kind.block_len() != 0 || end % kind.block_len() != 0;
                let (from, to) = if whole { (0, all) } else { (start, end) };
                if let (Some(bytes), Some(out)) =
                    (bytes.get(row_bytes(from)..row_bytes(to)), looked_up.get_mut(from..to))
                {
                    crate::kernels::dequantize(kind, bytes, out);
                }
                if let (Some(out), Some(add)) = (out.get_mut(start..end), looked_up.get(start..end))
                {
                    let (out, add) = (out.chunks_exact_mut(ple), add.chunks_exact(ple));
                    for (out, add) in out.zip(add) {
                        math::per_layer_input(out, add, norm, hidden, eps);
                    }
                }
            }
        });
    }

    /// From the stack of the wanted rows to their logits.
    fn logits(&mut self) {
        let (config, weights) = (self.model.config(), &self.model.weights);
        let (hidden, streams, rows) = (config.hidden, config.altup, self.s.rows.len());
        let stack = &self.s.stack;
        let stream = |row: usize, stream: usize| {
            math::row(math::row(stack, row, streams * hidden), stream, hidden)
        };
        let normed = self.s.normed.get_mut(..rows * hidden).unwrap_or_default();
        self.pool.rows(normed, hidden, |row, sum| sum.copy_from_slice(stream(row, 0)));
        for other in 1..streams {
            self.pool.rows(self.s.input.values_mut(rows, hidden), hidden, |row, out| {
                out.copy_from_slice(stream(row, other));
            });
            self.s.input.quantize(self.kernels);
            let w = self.model.stacked(&weights.altup_out, other - 1);
            let branch = self.s.branch.get_mut(..rows * hidden).unwrap_or_default();
            let out = Out::new(branch, hidden);
            multiply(self.pool, self.kernels, &[Product::whole(w, &self.s.input, &out)]);
            let branch = &self.s.branch;
            self.pool.rows2(normed, hidden, &mut self.s.hidden, hidden, |row, sum, scaled| {
                let target = math::mean_square(stream(row, 0)).sqrt();
                math::same_magnitude(scaled, math::row(branch, row, hidden), target);
                sum.iter_mut().zip(scaled).for_each(|(sum, value)| *sum += *value);
            });
        }
        let (normed, share) = (&self.s.normed, 1.0 / streams as f32);
        self.pool.rows(self.s.input.values_mut(rows, hidden), hidden, |row, out| {
            out.iter_mut()
                .zip(math::row(normed, row, hidden))
                .for_each(|(out, v)| *out = v * share);
            math::rms_norm(out, Some(&weights.output_norm), config.eps);
        });
        self.s.input.quantize(self.kernels);
        let vocabulary = self.model.vocabulary();
        self.s.logits.resize(rows * vocabulary, 0.0);
        let out = Out::new(&mut self.s.logits, vocabulary);
        let w = self.model.matrix(&weights.output);
        multiply(self.pool, self.kernels, &[Product::whole(w, &self.s.input, &out)]);
        let (cap, kernels) = (config.softcap, self.kernels);
        // The vocabulary is long and its length no round number; the last piece is what is left.
        let piece = (rows * vocabulary).div_ceil(4 * self.pool.threads());
        let whole = self.s.logits.len() / piece.max(1) * piece;
        let (whole, rest) = self.s.logits.split_at_mut(whole);
        let soft = |values: &mut [f32]| math::soft_cap(values, cap, kernels);
        self.pool.rows(whole, piece.max(1), |_, values| soft(values));
        soft(rest);
    }

    fn wanted(rows: &[Row]) -> Vec<usize> {
        rows.iter().enumerate().filter(|(_, row)| row.wanted).map(|(index, _)| index).collect()
    }
}

/// A product of some rows of a matrix with the activations.
struct Product<'p> {
    w: Matrix<'p>,
    rows: Range<usize>,
    x: Window<'p>,
    out: &'p Out<'p>,
}

impl<'p> Product<'p> {
    fn whole(w: Matrix<'p>, x: impl Into<Window<'p>>, out: &'p Out<'p>) -> Self {
        Self { w, rows: 0..w.rows(), x: x.into(), out }
    }
}

/// Rows of a matrix that the kernels take together.
const BAND: usize = 16;
/// The fewest rows of a piece, and what all of them are multiples of, but for what is left at the end.
const LEAST: usize = 2 * BAND;

/// Computes several products in one go over all threads. Pieces shrink towards the end (guided
/// self-scheduling, Polychronopoulos and Kuck, 1987): the kernels read long stretches first, and the
/// threads end together.
fn multiply(pool: &mut Pool, kernels: &'static Kernels, products: &[Product<'_>]) {
    let mut left: usize = products.iter().map(|product| product.rows.len()).sum();
    let mut pieces: Vec<(&Product<'_>, Range<usize>)> = Vec::new();
    for product in products {
        let Range { mut start, end } = product.rows;
        while start < end {
            let size = left.div_ceil(2 * pool.threads()).next_multiple_of(LEAST);
            let piece = start..end.min(start + size);
            start = piece.end;
            left -= piece.len();
            pieces.push((product, piece));
        }
    }
    pool.run(pieces.len(), &|piece| {
        if let Some((product, rows)) = pieces.get(piece) {
            kernels.product(&product.w, rows.clone(), product.x, product.out);
        }
    });
}

/// The layers that are kept, as runs.
fn kept_runs(slice: &Slice) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, width) in slice.widths().iter().enumerate() {
        match (width, runs.last_mut()) {
            (None, _) => {}
            (Some(_), Some(run)) if run.end == index => run.end += 1,
            (Some(_), _) => runs.push(index..index + 1),
        }
    }
    runs
}
