//! Chooses a token from logits, by a seed of its own.
//!
//! The same request with the same seed makes the same answer, whatever runs beside it: a draw depends on
//! the seed, the position and the logits alone. Over 262144 logits the likeliest are selected in one pass
//! that keeps only a few of them; nothing is sorted that is not drawn from. On a desktop's core the likeliest,
//! or a draw from the 64 likeliest, takes 0.1 ms; a draw from all of them, if none is unlikely, 20 ms.
//!
//! Logits that are no finite numbers are tokens that cannot be chosen.

use std::cmp::Ordering;

/// How one answer is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Above 0; for 0 there is [`greedy`].
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

/// What is a hundred million times less likely than the first is never drawn.
const LEAST: f64 = 1e-8;
/// How many of the likeliest are put in order at first; a power of two.
const SORTED: usize = 256;

/// A token and its logit.
type Candidate = (u32, f32);

/// Logits that are looked at together.
const CHUNK: usize = 64;

/// The likeliest token, the first of equals. None if there is no finite logit.
#[must_use]
#[expect(clippy::float_cmp, reason = "the highest is one of the logits")]
pub fn greedy(logits: &[f32]) -> Option<usize> {
    let chunks = Chunks::new(logits);
    let highest = chunks.highest()?;
    let start = chunks.highest.iter().position(|one| *one == highest)? * CHUNK;
    let within = logits.get(start..)?.iter().position(|logit| *logit == highest)?;
    Some(start + within)
}

impl Draw {
    /// The index of the token for `position`, its place in the conversation. None if there is no
    /// finite logit.
    #[must_use]
    pub fn token(&self, logits: &[f32], position: usize) -> Option<usize> {
        let chunks = Chunks::new(logits);
        let highest = chunks.highest()?;
        let floor = f64::from(highest) + self.min_p.max(LEAST).ln() * self.temperature;
        let mut tokens = chunks.candidates(floor, self.top_k);
        let weight = |token: &Candidate| {
            ((f64::from(token.1) - f64::from(highest)) / self.temperature).exp()
        };
        let all: f64 = tokens.iter().map(weight).sum();
        // Without a limit all are kept, in whatever order.
        let (mut kept, mut count) = if self.top_p >= 1.0 { (all, tokens.len()) } else { (0.0, 0) };
        while kept < self.top_p * all && count < tokens.len() {
            let Some(token) = in_order(&mut tokens, count) else { break };
            kept += weight(&token);
            count += 1;
        }
        // Something is left even if `top_p` is 0.
        if count == 0 {
            kept = in_order(&mut tokens, 0).as_ref().map(weight)?;
            count = 1;
        }
        let mut left = uniform(self.seed, position as u64) * kept;
        let mut last = None;
        for at in 0..count {
            let Some(token) = in_order(&mut tokens, at) else { break };
            last = Some(token.0 as usize);
            left -= weight(&token);
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// The highest finite logit; negative infinity if there is none.
fn highest(logits: &[f32]) -> f32 {
    let finite = |logit: f32| if logit.is_finite() { logit } else { f32::NEG_INFINITY };
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    // Side by side, so that the compiler can use wide registers.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = logits.chunks_exact(lanes.len());
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = higher(*lane, finite(*logit));
        }
    }
    rest.iter().copied().map(finite).chain(lanes).fold(f32::NEG_INFINITY, higher)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as sorting calls it")]
fn likeliest_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Logits with the highest of each chunk, so that most of them are read once.
struct Chunks<'a> {
    logits: &'a [f32],
    highest: Vec<f32>,
}

impl<'a> Chunks<'a> {
    fn new(logits: &'a [f32]) -> Self {
        Self { logits, highest: logits.chunks(CHUNK).map(highest).collect() }
    }

    fn highest(&self) -> Option<f32> {
        let highest = self.highest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        highest.is_finite().then_some(highest)
    }

    /// The `top` likeliest of the finite logits from `floor` on, in no order; all of them if `top` is 0.
    fn candidates(&self, floor: f64, top: usize) -> Vec<Candidate> {
        // As many chunks as tokens are wanted have one that is at least this high.
        let mut least = f32::NEG_INFINITY;
        if top > 0 && top < self.highest.len() {
            let mut highest = self.highest.clone();
            least = *highest.select_nth_unstable_by(top - 1, |a, b| b.total_cmp(a)).1;
        }
        let most = if top == 0 { usize::MAX } else { top.saturating_mul(2).max(1024) };
        let mut kept: Vec<Candidate> = Vec::new();
        let starts = (0_u32..).step_by(CHUNK);
        for ((start, chunk), highest) in starts.zip(self.logits.chunks(CHUNK)).zip(&self.highest) {
            if *highest < least || f64::from(*highest) < floor {
                continue;
            }
            for (token, &logit) in (start..).zip(chunk) {
                if logit >= least && logit.is_finite() && f64::from(logit) >= floor {
                    kept.push((token, logit));
                }
            }
            // Many equal ones.
            if kept.len() >= most {
                select(&mut kept, top);
                least = kept.iter().map(|token| token.1).fold(f32::INFINITY, f32::min).max(least);
            }
        }
        if top > 0 {
            select(&mut kept, top);
        }
        kept
    }
}

/// Keeps the `top` likeliest, in no order.
fn select(tokens: &mut Vec<Candidate>, top: usize) {
    if top < tokens.len() {
        tokens.select_nth_unstable_by(top, likeliest_first);
        tokens.truncate(top);
    }
}

/// The token that is `at`-th likeliest. Called with 0, 1, 2 and so on, it sorts not much more than was
/// asked for: each time as many as there were before.
fn in_order(tokens: &mut [Candidate], at: usize) -> Option<Candidate> {
    if at == 0 || (at >= SORTED && at.is_power_of_two()) {
        let rest = tokens.get_mut(at..)?;
        let count = at.max(SORTED);
        if rest.len() > count {
            rest.select_nth_unstable_by(count, likeliest_first);
        }
        rest.get_mut(..count.min(rest.len()))?.sort_unstable_by(likeliest_first);
    }
    tokens.get(at).copied()
}

/// How likely tokens were.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The natural logarithm of the chosen token's probability; negative infinity if it had none.
    pub chosen: f32,
    /// The likeliest tokens and theirs, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// The probability of a token and of the `top` likeliest, of all tokens and at temperature 1: what the
/// model thinks, before anything is cut off. None if there is no finite logit.
#[must_use]
pub fn logprobs(logits: &[f32], chosen: usize, top: usize) -> Option<Logprobs> {
    let chunks = Chunks::new(logits);
    let highest = chunks.highest()?;
    let sum: f64 = logits
        .chunks(CHUNK)
        .map(|chunk| {
            let part = |logit: &f32| if logit.is_finite() { (logit - highest).exp() } else { 0.0 };
            f64::from(chunk.iter().map(part).sum::<f32>())
        })
        .sum();
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm needs no 53 bits")]
    let of = |logit: f32| (f64::from(logit) - f64::from(highest) - sum.ln()) as f32;
    let mut likeliest = if top == 0 { vec![] } else { chunks.candidates(f64::MIN, top) };
    likeliest.sort_unstable_by(likeliest_first);
    let chosen = logits.get(chosen).copied().filter(|logit| logit.is_finite());
    Some(Logprobs {
        chosen: chosen.map_or(f32::NEG_INFINITY, of),
        top: likeliest.into_iter().map(|(token, logit)| (token, of(logit))).collect(),
    })
}

/// A number within 0 and 1, without 1: the SplitMix64 finalizer over seed and position. It has no
/// state, so it does not matter in which order, or how often, positions are asked for.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    let mut bits = seed ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
    for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(multiplier);
        bits ^= bits >> 27;
    }
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
