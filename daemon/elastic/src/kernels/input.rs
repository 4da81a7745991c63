//! Activations prepared for products: the values, and int8 copies with a scale for each 32 columns.

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
}
