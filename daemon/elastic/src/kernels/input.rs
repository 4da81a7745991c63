//! Activations prepared for products: the values, and int8 copies with a scale for each 32 columns.

use std::ops::Range;

use crate::kernels::Kernels;

/// Activations of some tokens. Its owner keeps it from layer to layer: the buffers only grow.
#[derive(Debug, Default)]
pub struct Input {
    tokens: usize,
    cols: usize,
    values: Vec<f32>,
    /// Empty, as the following, where the columns are no multiple of 32.
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<f32>,
    halves: Vec<f32>,
}

impl Input {
    /// Takes over these values, token after token, and makes the int8 copies.
    ///
    /// Missing values count as zeros, those too many are left out.
    pub fn set(&mut self, kernels: &Kernels, values: &[f32], tokens: usize, cols: usize) {
        debug_assert_eq!(values.len(), tokens * cols, "values of {tokens} tokens");
        let to = self.values_mut(tokens, cols);
        let count = values.len().min(to.len());
        let (taken, missing) = to.split_at_mut(count);
        taken.copy_from_slice(values.get(..count).unwrap_or_default());
        missing.fill(0.0);
        self.quantize(kernels);
    }

    /// A place for the values of that many tokens, which holds what it held before. Call
    /// [`Self::quantize`] when they are written; until then there are no int8 copies.
    pub fn values_mut(&mut self, tokens: usize, cols: usize) -> &mut [f32] {
        self.tokens = tokens;
        self.cols = cols;
        self.values.resize(tokens * cols, 0.0);
        self.q.clear();
        self.scales.clear();
        self.sums.clear();
        self.halves.clear();
        &mut self.values
    }

    /// Makes the int8 copies: scale = absmax / 127, rounded to the nearest.
    pub fn quantize(&mut self, kernels: &Kernels) {
        let count = self.values.len();
        if !self.cols.is_multiple_of(32) {
            return;
        }
        self.q.resize(count, 0);
        self.scales.resize(count / 32, 0.0);
        self.sums.resize(count / 32, 0.0);
        self.halves.resize(count / 16, 0.0);
        kernels.quantize(
            &self.values,
            &mut self.q,
            &mut self.scales,
            &mut self.sums,
            &mut self.halves,
        );
    }

    /// How many tokens.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Values of a token.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Token after token.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The int8 copies; empty where there are none.
    #[must_use]
    pub fn q(&self) -> &[i8] {
        &self.q
    }

    /// What one unit of each 32 int8 copies stands for.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Scale times the sum of each 32 int8 copies, for the offsets and minima of weights.
    #[must_use]
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// The same for each 16.
    #[must_use]
    pub fn halves(&self) -> &[f32] {
        &self.halves
    }

    /// Some columns of every token; None if there are not as many.
    #[must_use]
    pub fn columns(&self, cols: Range<usize>) -> Option<Window<'_>> {
        let fits = cols.start <= cols.end && cols.end <= self.cols;
        fits.then(|| Window { input: self, first: cols.start, cols: cols.len() })
    }
}

/// Some columns of the activations of all tokens: what a product reads.
#[derive(Clone, Copy, Debug)]
pub struct Window<'x> {
    input: &'x Input,
    first: usize,
    cols: usize,
}

impl<'x> From<&'x Input> for Window<'x> {
    fn from(input: &'x Input) -> Self {
        Self { input, first: 0, cols: input.cols }
    }
}

impl<'x> Window<'x> {
    /// How many tokens.
    pub(super) fn tokens(self) -> usize {
        self.input.tokens
    }

    /// Values of a token.
    pub(super) fn cols(self) -> usize {
        self.cols
    }

    /// Values from one token to the next.
    pub(super) fn stride(self) -> usize {
        self.input.cols
    }

    /// From the first value of the first token on, as the following.
    pub(super) fn values(self) -> &'x [f32] {
        self.input.values.get(self.first..).unwrap_or_default()
    }

    pub(super) fn q(self) -> &'x [i8] {
        self.input.q.get(self.first..).unwrap_or_default()
    }

    pub(super) fn scales(self) -> &'x [f32] {
        self.input.scales.get(self.first / 32..).unwrap_or_default()
    }

    pub(super) fn sums(self) -> &'x [f32] {
        self.input.sums.get(self.first / 32..).unwrap_or_default()
    }

    pub(super) fn halves(self) -> &'x [f32] {
        self.input.halves.get(self.first / 16..).unwrap_or_default()
    }

    /// Whether the values are there, and the int8 copies if they are asked for.
    pub(super) fn is_whole(self, quantized: bool) -> bool {
        let last = self.tokens().saturating_sub(1).checked_mul(self.stride());
        let Some(len) = last.and_then(|last| last.checked_add(self.cols)) else { return false };
        let copies = || self.first.is_multiple_of(32) && self.stride().is_multiple_of(32);
        let blocks = len.div_ceil(32);
        self.tokens() == 0
            || self.values().len() >= len
                && (!quantized
                    || copies()
                        && self.q().len() >= len
                        && self.scales().len() >= blocks
                        && self.sums().len() >= blocks
                        && self.halves().len() >= 2 * blocks)
    }
}
