//! KV caches that are kept after their request, so that the next one need not read the same text again:
//! the turns of a conversation so far, and standing instructions that many conversations begin with.

use nestd_elastic::config::Config;
use nestd_elastic::kv::{Sequence, Shape};

use super::spill::Away;

/// Shorter beginnings are read again as fast as they are copied.
const SHORTEST: usize = 16;

/// The kept caches, the least recently used first.
pub struct Prefixes {
    kept: Vec<Kept>,
    /// Memory for all of them together.
    bytes: u64,
}

struct Kept {
    /// Whose turns they are.
    session: Option<u64>,
    tokens: Vec<u32>,
    sequence: Sequence,
}

impl Kept {
    fn away(self) -> Option<Away> {
        let Self { session, tokens, sequence } = self;
        Some(Away { session: session?, tokens, sequence })
    }
}

impl Prefixes {
    /// None yet, and never more than this many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { kept: Vec::new(), bytes }
    }

    /// A sequence of this shape that begins with as much of the prompt as is known; its last token is
    /// left to read, because its logits are what is wanted.
    pub fn take(&mut self, prompt: &[u32], shape: &Shape, config: &Config) -> Sequence {
        let readable = prompt.len().saturating_sub(1);
        let usable = |kept: &Kept| {
            let common = kept.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
            let common = common.min(readable);
            (common >= SHORTEST && common >= kept.sequence.shortest()).then_some(common)
        };
        let best = self
            .kept
            .iter()
            .enumerate()
            .filter_map(|(index, kept)| Some((usable(kept)?, index)))
            .max();
        if let Some((common, index)) = best {
            let kept = self.kept.remove(index);
            let copy = kept.sequence.copy(common, shape.capacity, config);
            self.kept.push(kept);
            if let Ok(copy) = copy {
                return copy;
            }
        }
        Sequence::new(shape)
    }

    /// The same with caches that came back from storage, of these tokens.
    pub fn take_back(
        &mut self,
        (tokens, sequence): (Vec<u32>, Sequence),
        prompt: &[u32],
        shape: &Shape,
        config: &Config,
    ) -> Sequence {
        let common = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len().saturating_sub(1)).min(sequence.len());
        // It fails where they cannot be cut back so far.
        let copy = sequence.copy(common, shape.capacity, config);
        copy.unwrap_or_else(|_| self.take(prompt, shape, config))
    }

    /// What the kept ones take.
    pub fn bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.sequence.bytes()).sum()
    }

    /// How many of a prompt's tokens need not be read.
    pub fn known(&self, prompt: &[u32]) -> usize {
        let common =
            |kept: &Kept| kept.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.kept.iter().map(common).max().unwrap_or(0)
    }

    /// Forgets all; gives what sessions left.
    pub fn clear(&mut self) -> Vec<Away> {
        self.kept.drain(..).filter_map(Kept::away).collect()
    }

    /// Forgets what a session left.
    pub fn forget(&mut self, session: u64) {
        self.kept.retain(|kept| kept.session != Some(session));
    }

    /// Keeps a copy of a sequence whose tokens are these.
    pub fn keep(&mut self, tokens: &[u32], sequence: &Sequence, config: &Config) -> Vec<Away> {
        match sequence.copy(sequence.len(), sequence.len(), config) {
            Ok(copy) => self.give(None, tokens.to_vec(), copy),
            Err(_) => Vec::new(),
        }
    }

    /// Takes a sequence over whose tokens are these, in place of those that it continues, and of what the
    /// same session left before. Gives what of sessions has to go for it, the least recently used first.
    pub fn give(
        &mut self,
        session: Option<u64>,
        mut tokens: Vec<u32>,
        sequence: Sequence,
    ) -> Vec<Away> {
        tokens.truncate(sequence.len());
        if tokens.len() < SHORTEST {
            return Vec::new();
        }
        let kept = Kept { session, tokens, sequence };
        if kept.sequence.bytes() > self.bytes {
            return kept.away().into_iter().collect();
        }
        // One that can be cut back to an older one serves in its place.
        if let Some(session) = session {
            self.forget(session);
        }
        let shortest = kept.sequence.shortest();
        self.kept
            .retain(|old| !(kept.tokens.starts_with(&old.tokens) && shortest <= old.tokens.len()));
        self.kept.push(kept);
        let mut gone = Vec::new();
        while self.bytes() > self.bytes && !self.kept.is_empty() {
            gone.extend(self.kept.remove(0).away());
        }
        gone
    }
}
