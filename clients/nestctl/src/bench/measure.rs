//! One conversation after another: a random prompt, then tokens made greedily.

use std::time::Instant;

use nestd_elastic::error::Result;
use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{SLACK, Sequence, Shape};
use nestd_elastic::model::Model;
use nestd_elastic::pool::Pool;

use super::random::Random;
use super::{Rung, Task, count};
use crate::render::Screen;

/// The first token that is text in Gemma's vocabulary.
const FIRST_TEXT: usize = 494;

/// The times of one conversation, in seconds.
pub struct Run {
    /// From the start to the first token.
    pub ttft: f64,
    /// Of every token after the first.
    pub tokens: Vec<Token>,
}

/// A token that was made.
#[derive(Clone, Copy)]
pub struct Token {
    pub seconds: f64,
    /// The place of its size among those measured.
    pub rung: usize,
    /// Whether the token before was of the other size.
    pub switched: bool,
}

/// What stays from one conversation to the next.
pub struct Bench<'m> {
    model: &'m Model,
    rungs: &'m [Rung],
    runner: Runner,
    shape: Shape,
    random: Random,
}

impl<'m> Bench<'m> {
    pub fn new(model: &'m Model, rungs: &'m [Rung], pool: Pool, shape: Shape) -> Self {
        Self { model, rungs, runner: Runner::new(pool, None), shape, random: Random::new(1) }
    }

    pub fn threads(&self) -> usize {
        self.runner.threads()
    }

    /// Holds one conversation. `told` is told how many tokens were read and made.
    pub fn run(
        &mut self,
        task: &Task<'_>,
        screen: &mut Screen,
        told: impl Fn(usize, &mut Screen),
    ) -> Result<Run> {
        let mut sequence = Sequence::new(&self.shape);
        let prompt: Vec<u32> = (0..task.prompt_tokens).map(|_| self.random_token()).collect();
        let start = Instant::now();
        let mut token = 0;
        for chunk in prompt.chunks(SLACK) {
            let last = sequence.len() + chunk.len() == prompt.len();
            let logits = if last { Logits::Last } else { Logits::None };
            token = self.step(0, &mut sequence, chunk, logits)?;
            told(sequence.len(), screen);
        }
        let mut run = Run { ttft: start.elapsed().as_secs_f64(), tokens: Vec::new() };
        let mut before = 0;
        for index in 1..count(task.max_tokens) {
            let rung = task.options.switch_every.map_or(0, |every| index / count(every) % 2);
            let start = Instant::now();
            token = self.step(rung, &mut sequence, &[token], Logits::Last)?;
            let seconds = start.elapsed().as_secs_f64();
            run.tokens.push(Token { seconds, rung, switched: rung != before });
            before = rung;
            told(sequence.len(), screen);
        }
        Ok(run)
    }

    /// Computes one step, and gives the likeliest next token.
    fn step(
        &mut self,
        rung: usize,
        sequence: &mut Sequence,
        tokens: &[u32],
        logits: Logits,
    ) -> Result<u32> {
        let Some(rung) = self.rungs.get(rung) else { return Ok(0) };
        let part = Part { sequence, tokens, logits };
        let logits = self.runner.step(self.model, &rung.slice, &mut [part])?;
        let likeliest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        Ok(likeliest.map_or(0, |(token, _)| u32::try_from(token).unwrap_or(0)))
    }

    /// A token of text, so that the rows of the tables are read as those of a real prompt are.
    fn random_token(&mut self) -> u32 {
        let vocabulary = self.model.vocabulary();
        let first = if vocabulary > FIRST_TEXT { FIRST_TEXT } else { 0 };
        let among = (vocabulary - first).max(1) as u64;
        u32::try_from(first as u64 + self.random.next() % among).unwrap_or(0)
    }
}
