//! Figures from the times that were measured.

use super::Measured;
use super::measure::{Run, Token};

/// Milliseconds, or whatever else was measured several times, in order.
pub struct Sorted(Vec<f64>);

impl Sorted {
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that so many percent do not exceed; None of nothing.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// The one in the middle, or the mean of the two.
    pub fn median(&self) -> Option<f64> {
        let after = self.0.get(self.0.len() / 2)?;
        Some(f64::midpoint(self.percentile(50)?, *after))
    }

    pub fn least(&self) -> Option<f64> {
        self.0.first().copied()
    }

    pub fn most(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

impl Run {
    /// Tokens a second; None if only the first was made.
    pub fn decode(&self) -> Option<f64> {
        let seconds: f64 = self.tokens.iter().map(|token| token.seconds).sum();
        (!self.tokens.is_empty()).then(|| self.tokens.len() as f64 / seconds)
    }
}

impl Measured {
    fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.runs.iter().flat_map(|run| &run.tokens)
    }

    /// Milliseconds between tokens.
    pub fn between_tokens(&self) -> Sorted {
        Sorted::new(self.tokens().map(|token| token.seconds * 1e3))
    }

    /// The same at one size, but for the first tokens after a switch.
    pub fn steady(&self, rung: usize) -> Sorted {
        let steady = self.tokens().filter(|token| token.rung == rung && !token.switched);
        Sorted::new(steady.map(|token| token.seconds * 1e3))
    }

    /// Milliseconds that the first token after a switch takes longer than the median of its size.
    pub fn extra(&self) -> Sorted {
        let medians: Vec<_> =
            (0..self.rungs.len()).map(|rung| self.steady(rung).median()).collect();
        let switched = self.tokens().filter(|token| token.switched);
        Sorted::new(switched.filter_map(|token| {
            Some(token.seconds * 1e3 - medians.get(token.rung).copied().flatten()?)
        }))
    }

    /// Bytes of weights that a token read, on average.
    pub fn read_per_token(&self) -> f64 {
        let reads = Sorted::new(
            self.tokens().filter_map(|token| Some(self.rungs.get(token.rung)?.read as f64)),
        );
        let count = reads.len();
        if count == 0 {
            return self.rungs.first().map_or(0.0, |rung| rung.read as f64);
        }
        reads.0.iter().sum::<f64>() / count as f64
    }

    /// The share of the bandwidth that decode reached.
    pub fn share(&self) -> Option<f64> {
        let decode = Sorted::new(self.runs.iter().filter_map(Run::decode)).median()?;
        Some(decode * self.read_per_token() / self.bandwidth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted = Sorted::new((1..=200).rev().map(f64::from));
        assert_eq!(
            [50, 90, 99, 100].map(|p| sorted.percentile(p)),
            [100., 180., 198., 200.].map(Some)
        );
        assert_eq!((sorted.least(), sorted.most()), (Some(1.0), Some(200.0)));
        assert_eq!(Sorted::new([3.0]).percentile(99), Some(3.0));
        let middle = |values: &[f64]| Sorted::new(values.iter().copied()).median();
        assert_eq!(middle(&[4.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(middle(&[4.0, 1.0]), Some(2.5));
        assert_eq!(middle(&[]), None);
    }
}
