//! KV caches that are kept after their request, so that the next one need not read the same text again:
//! the turns of a conversation so far, and standing instructions that many conversations begin with.
//!
//! How much of a prompt was known is told to who sent it, and can be felt. So turns are known to their own
//! user alone. Standing instructions are known to everybody, but only to who has them whole: else they could
//! be guessed word by word.

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
    /// Whose turns they are; None: standing instructions.
    owner: Option<Owner>,
    tokens: Vec<u32>,
    sequence: Sequence,
}

/// Whose turns a cache is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who may go on from there.
    pub account: String,
    /// The session that it was kept for.
    pub session: Option<u64>,
}

impl Kept {
    fn session(&self) -> Option<u64> {
        self.owner.as_ref()?.session
    }

    fn account(&self) -> Option<&str> {
        self.owner.as_ref().map(|owner| owner.account.as_str())
    }

    /// How many tokens of an account's prompt it knows.
    fn known(&self, account: &str, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        match self.account() {
            Some(own) if own == account => common,
            None if common == self.tokens.len() => common,
            _ => 0,
        }
    }

    /// Whether one that is older is of no more use beside it.
    fn replaces(&self, old: &Self) -> bool {
        let serves = match &self.owner {
            // It can be cut back to the older one.
            Some(_) => {
                self.tokens.starts_with(&old.tokens) && self.sequence.shortest() <= old.tokens.len()
            }
            None => self.tokens == old.tokens,
        };
        serves && self.account() == old.account()
    }

    fn away(self) -> Option<Away> {
        let session = self.session()?;
        let Self { tokens, sequence, .. } = self;
        Some(Away { session, tokens, sequence })
    }
}

impl Prefixes {
    /// None yet, and never more than this many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { kept: Vec::new(), bytes }
    }

    /// A sequence of this shape that begins with as much of the prompt as is known; its last token is
    /// left to read, because its logits are what is wanted.
    pub fn take(
        &mut self,
        account: &str,
        prompt: &[u32],
        shape: &Shape,
        config: &Config,
    ) -> Sequence {
        let readable = prompt.len().saturating_sub(1);
        let usable = |kept: &Kept| {
            let common = kept.known(account, prompt).min(readable);
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
        account: &str,
        prompt: &[u32],
        shape: &Shape,
        config: &Config,
    ) -> Sequence {
        let common = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len().saturating_sub(1)).min(sequence.len());
        // It fails where they cannot be cut back so far.
        let copy = sequence.copy(common, shape.capacity, config);
        copy.unwrap_or_else(|_| self.take(account, prompt, shape, config))
    }

    /// What the kept ones take.
    pub fn bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.sequence.bytes()).sum()
    }

    /// How many tokens of an account's prompt need not be read.
    pub fn known(&self, account: &str, prompt: &[u32]) -> usize {
        self.kept.iter().map(|kept| kept.known(account, prompt)).max().unwrap_or(0)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    /// Forgets what a session left.
    pub fn forget(&mut self, session: u64) {
        self.kept.retain(|kept| kept.session() != Some(session));
    }

    /// Keeps a copy of a sequence whose tokens are these: standing instructions.
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
        owner: Option<Owner>,
        mut tokens: Vec<u32>,
        sequence: Sequence,
    ) -> Vec<Away> {
        tokens.truncate(sequence.len());
        if tokens.len() < SHORTEST {
            return Vec::new();
        }
        let kept = Kept { owner, tokens, sequence };
        if kept.sequence.bytes() > self.bytes {
            return kept.away().into_iter().collect();
        }
        if let Some(session) = kept.session() {
            self.forget(session);
        }
        self.kept.retain(|old| !kept.replaces(old));
        self.kept.push(kept);
        let mut gone = Vec::new();
        while self.bytes() > self.bytes && !self.kept.is_empty() {
            gone.extend(self.kept.remove(0).away());
        }
        gone
    }
}
