//! Makes tokens less likely that were there before.
//!
//! Presence and frequency penalties are `OpenAI`'s and count the answer's tokens; the repetition penalty is
//! the usual factor, for tokens of the prompt too. mistral.rs counts the prompt for all three
//! ([`Penalties::count_prompt`]); the order is the same as there: first what is taken off, then the factor.

use std::collections::HashMap;

/// The penalties of one answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides a positive logit, multiplies a negative one; 1 is none.
    pub repetition: f32,
    /// Taken off once.
    pub presence: f32,
    /// Taken off for each time.
    pub frequency: f32,
    /// Whether presence and frequency count the prompt's tokens too.
    pub count_prompt: bool,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0, count_prompt: false }
    }
}

/// The tokens of one conversation so far. Kept from token to token, so that none is counted twice.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often in the prompt, and how often in the answer.
    counts: HashMap<u32, (u32, u32)>,
}

impl Seen {
    /// With the prompt's tokens.
    #[must_use]
    pub fn new(prompt: &[u32]) -> Self {
        let mut seen = Self::default();
        for token in prompt {
            seen.counts.entry(*token).or_default().0 += 1;
        }
        seen
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, token: u32) {
        self.counts.entry(token).or_default().1 += 1;
    }
}

impl Penalties {
    /// Whether they change nothing.
    #[must_use]
    #[expect(clippy::float_cmp, reason = "these are what a caller writes for none")]
    pub fn is_none(&self) -> bool {
        self.repetition == 1.0 && self.presence == 0.0 && self.frequency == 0.0
    }

    /// Changes the logits of the tokens seen.
    pub fn apply(&self, logits: &mut [f32], seen: &Seen) {
        if self.is_none() {
            return;
        }
        for (token, (prompt, answer)) in &seen.counts {
            let Some(logit) = logits.get_mut(*token as usize).filter(|logit| logit.is_finite())
            else {
                continue;
            };
            let count = if self.count_prompt { prompt + answer } else { *answer };
            if count > 0 {
                *logit -= self.presence + count as f32 * self.frequency;
            }
            if *logit > 0.0 {
                *logit /= self.repetition;
            } else {
                *logit *= self.repetition;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(penalties: Penalties) -> Vec<f32> {
        let mut seen = Seen::new(&[0, 1, 1, 99]);
        for token in [1, 2, 2, u32::MAX] {
            seen.push(token);
        }
        let mut logits = [1.0, 2.0, -1.0, 5.0];
        penalties.apply(&mut logits, &seen);
        logits.to_vec()
    }

    #[test]
    fn each_counts_what_it_should() {
        let none = Penalties::default();
        assert_eq!(applied(none), [1.0, 2.0, -1.0, 5.0]);
        assert_eq!(applied(Penalties { presence: 0.5, ..none }), [1.0, 1.5, -1.5, 5.0]);
        assert_eq!(applied(Penalties { frequency: 0.5, ..none }), [1.0, 1.5, -2.0, 5.0]);
        assert_eq!(applied(Penalties { repetition: 2.0, ..none }), [0.5, 1.0, -2.0, 5.0]);
        let all = Penalties { repetition: 2.0, presence: 1.0, frequency: 1.0, count_prompt: false };
        assert_eq!(applied(all), [0.5, 0.0, -8.0, 5.0]);
        assert_eq!(applied(Penalties { count_prompt: true, ..all }), [-2.0, -4.0, -8.0, 5.0]);
    }

    #[test]
    fn what_cannot_be_chosen_stays_so() {
        let seen = Seen::new(&[0, 1, 2]);
        let mut logits = [f32::NEG_INFINITY, f32::NAN, f32::INFINITY];
        Penalties { repetition: 0.0, ..Penalties::default() }.apply(&mut logits, &seen);
        assert!(logits[0].is_infinite());
        assert!(logits[1].is_nan());
    }
}
