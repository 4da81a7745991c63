//! Draws a token from logits, by a seed of its own.
//!
//! mistral.rs draws for all requests from one generator, so an answer there depends on what else ran.
//! Here the same request with the same seed makes the same answer, whatever runs beside it.

/// How one answer is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Above 0.
    pub temperature: f64,
    /// At most this many of the likeliest tokens; 0 is all.
    pub top_k: usize,
    /// The likeliest tokens up to this much probability; 1 is all.
    pub top_p: f64,
    /// Tokens of at least this much of the likeliest one's probability; 0 is all.
    pub min_p: f64,
    /// Where the generator starts.
    pub seed: u64,
}

impl Draw {
    /// The index of the token for `position`, its place in the conversation. None if there is no
    /// finite logit.
    pub fn token(&self, logits: &[f32], position: usize) -> Option<usize> {
        let mut tokens: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| logit.is_finite())
            .map(|(token, logit)| (token, f64::from(*logit)))
            .collect();
        let likeliest_first =
            |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.top_k > 0 && self.top_k < tokens.len() {
            tokens.select_nth_unstable_by(self.top_k, likeliest_first);
            tokens.truncate(self.top_k);
        }
        let highest = tokens.iter().map(|(_, logit)| *logit).max_by(f64::total_cmp)?;
        // What is a hundred million times less likely than the first is not worth sorting.
        let floor = self.min_p.max(1e-8).ln() * self.temperature;
        tokens.retain(|(_, logit)| logit - highest >= floor);
        tokens.sort_unstable_by(likeliest_first);
        for (_, weight) in &mut tokens {
            *weight = ((*weight - highest) / self.temperature).exp();
        }
        let all: f64 = tokens.iter().map(|(_, weight)| weight).sum();
        let mut kept = 0.0;
        let count = tokens
            .iter()
            .position(|(_, weight)| {
                kept += weight;
                kept >= self.top_p * all
            })
            .map_or(tokens.len(), |last| last + 1);
        tokens.truncate(count);
        let kept: f64 = tokens.iter().map(|(_, weight)| weight).sum();
        let mut left = uniform(self.seed, position as u64) * kept;
        for (token, weight) in &tokens {
            left -= weight;
            if left < 0.0 {
                return Some(*token);
            }
        }
        tokens.last().map(|(token, _)| *token)
    }
}

/// A number within 0 and 1, without 1: the SplitMix64 finalizer over seed and position. It has no
/// state, so it does not matter in which order, or how often, positions are asked for.
fn uniform(seed: u64, position: u64) -> f64 {
    let mut bits = seed ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(multiplier);
        bits ^= bits >> 27;
    }
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, f32::NEG_INFINITY, -1.0];

    fn draw() -> Draw {
        Draw { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 1 }
    }

    /// How often each token is drawn.
    fn shares(draw: &Draw) -> [f64; 5] {
        let mut counts = [0.0; 5];
        for position in 0..20_000 {
            counts[draw.token(&LOGITS, position).unwrap()] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn tokens_are_drawn_by_their_probability() {
        let weights = LOGITS.map(|logit| f64::from(logit).exp());
        let all: f64 = weights.iter().sum();
        for (share, weight) in shares(&draw()).iter().zip(weights) {
            assert!((share - weight / all).abs() < 0.01, "{share} for {}", weight / all);
        }
    }

    #[test]
    fn each_limit_leaves_the_likeliest() {
        let drawn = |draw: Draw| shares(&draw).map(|share| share > 0.0);
        assert_eq!(drawn(Draw { top_k: 2, ..draw() }), [false, true, true, false, false]);
        assert_eq!(drawn(Draw { top_p: 0.5, ..draw() }), [false, true, false, false, false]);
        assert_eq!(drawn(Draw { top_p: 0.8, ..draw() }), [false, true, true, false, false]);
        assert_eq!(drawn(Draw { min_p: 0.2, ..draw() }), [false, true, true, false, false]);
        assert_eq!(drawn(Draw { temperature: 0.05, ..draw() }), [false, true, false, false, false]);
        assert_eq!(
            drawn(Draw { temperature: 1e-300, ..draw() }),
            [false, true, false, false, false]
        );
    }

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let answer = |seed| {
            let draw = Draw { temperature: 2.0, seed, ..draw() };
            (0..50).map(|position| draw.token(&LOGITS, position)).collect::<Vec<_>>()
        };
        assert_eq!(answer(7), answer(7));
        assert_ne!(answer(7), answer(8));
    }

    #[test]
    fn broken_logits_draw_nothing() {
        assert_eq!(draw().token(&[f32::NAN; 4], 0), None);
        assert_eq!(draw().token(&[], 0), None);
    }
}
