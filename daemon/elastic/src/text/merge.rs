//! Merges the characters of a text into pieces.
//!
//! The merges that are possible wait in a heap, so that a text of a million equal characters takes as long
//! as any other.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::pieces::Pieces;

/// Bytes of the character that begins with this one.
pub(super) fn character_len(byte: u8) -> usize {
    match byte {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// Merges the characters of one text. Kept for the next text, so that its memory is used again.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    /// Merges that are possible, or were.
    merges: BinaryHeap<Merge>,
}

/// A part of the text; one without bytes was merged into the one before it.
struct Symbol {
    start: u32,
    len: u32,
    /// The symbol before, `NONE` for the first.
    before: u32,
    /// The symbol after, `NONE` for the last.
    after: u32,
}

const NONE: u32 = u32::MAX;
/// A text that is longer is cut; it is far beyond any context.
const LONGEST: usize = 1 << 30;

/// Two neighbours that make a piece together.
struct Merge {
    score: f32,
    left: u32,
    /// Bytes of both; if they are no longer this many, one of them was merged otherwise.
    len: u32,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl Merger {
    /// Adds the tokens of a text to `tokens`.
    #[expect(clippy::cast_possible_truncation, reason = "a text is shorter than LONGEST")]
    pub fn run(&mut self, pieces: &Pieces, text: &[u8], tokens: &mut Vec<u32>) {
        let text = text.get(..LONGEST).unwrap_or(text);
        self.symbols.clear();
        let mut start = 0;
        while let Some(&byte) = text.get(start) {
            let len = character_len(byte).min(text.len() - start);
            let index = self.symbols.len() as u32;
            let before = index.checked_sub(1).unwrap_or(NONE);
            self.symbols.push(Symbol {
                start: start as u32,
                len: len as u32,
                before,
                after: index + 1,
            });
            start += len;
        }
        if let Some(last) = self.symbols.last_mut() {
            last.after = NONE;
        }
        let mut merges = std::mem::take(&mut self.merges).into_vec();
        merges.clear();
        for left in 0..self.symbols.len() as u32 {
            merges.extend(self.merge(pieces, text, left));
        }
        self.merges = merges.into();
        while let Some(Merge { left, len, .. }) = self.merges.pop() {
            if let Some(before) = self.join(left, len) {
                for left in [before, left] {
                    let merge = self.merge(pieces, text, left);
                    self.merges.extend(merge);
                }
            }
        }
        for symbol in self.symbols.iter().filter(|symbol| symbol.len > 0) {
            let start = symbol.start as usize;
            let bytes = text.get(start..start + symbol.len as usize).unwrap_or_default();
            match pieces.find(bytes) {
                Some(id) => tokens.push(id),
                None => tokens.extend(
                    bytes
                        .iter()
                        .filter_map(|byte| pieces.byte_tokens.get(usize::from(*byte)).copied()),
                ),
            }
        }
    }

    /// The merge of a symbol with the one after it.
    fn merge(&self, pieces: &Pieces, text: &[u8], left: u32) -> Option<Merge> {
        let symbol = self.symbols.get(left as usize)?;
        let after = self.symbols.get(symbol.after as usize)?;
        let start = symbol.start as usize;
        let len = symbol.len + after.len;
        let id = pieces.find(text.get(start..start + len as usize)?)?;
        Some(Merge { score: pieces.score(id), left, len })
    }

    /// Merges a symbol with the one after it, if both are still as they were; says which one is before.
    fn join(&mut self, left: u32, len: u32) -> Option<u32> {
        let symbol = self.symbols.get(left as usize).filter(|symbol| symbol.len > 0)?;
        let (before, right) = (symbol.before, symbol.after);
        let after = self.symbols.get(right as usize)?;
        if symbol.len + after.len != len {
            return None;
        }
        let next = after.after;
        self.symbols.get_mut(right as usize)?.len = 0;
        let symbol = self.symbols.get_mut(left as usize)?;
        symbol.len = len;
        symbol.after = next;
        if let Some(next) = self.symbols.get_mut(next as usize) {
            next.before = left;
        }
        Some(before)
    }
}
