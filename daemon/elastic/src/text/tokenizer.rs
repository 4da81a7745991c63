//! Text to tokens and back, as the BPE of `SentencePiece` does it.
//!
//! Spaces become U+2581. User-defined tokens are found first, the longest at each place; what lies
//! between is cut into characters, and of two neighbours that make a piece together those are merged
//! whose piece has the highest score, the leftmost first. A character without a piece becomes bytes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

pub use super::vocab::{Error, Kind, Vocabulary};
use super::vocab::{Pieces, SPACE};

/// What control tokens are that are written in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Tokens.
    Parse,
    /// Text like any other: who writes it must not steer the model.
    Text,
}

/// The tokenizer of one model.
pub struct Tokenizer {
    pieces: Pieces,
    /// A bit for each two bytes that meet inside some normal piece, where one character ends and the
    /// next begins. No merge reaches over two others, so a text may be cut there.
    meeting: Vec<u64>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unk: Option<u32>,
    add_space_prefix: bool,
}

impl Tokenizer {
    /// Reads a vocabulary.
    pub fn new<'a, T>(vocabulary: Vocabulary<'a, T>) -> Result<Self, Error>
    where
        T: IntoIterator<Item = &'a [u8]>,
    {
        let Vocabulary { bos, eos, eot, unk, add_space_prefix, .. } = vocabulary;
        let pieces = Pieces::new(vocabulary)?;
        let mut meeting = vec![0_u64; 1024];
        for id in 0..pieces.len() {
            if pieces.kind(id) != Some(Kind::Normal) {
                continue;
            }
            for pair in pieces.piece(id).windows(2) {
                if let &[left, right] = pair
                    && begins_character(right)
                {
                    let bit = pair_bit(left, right);
                    if let Some(word) = meeting.get_mut(bit / 64) {
                        *word |= 1 << (bit % 64);
                    }
                }
            }
        }
        for (name, id) in [("bos", bos), ("eos", eos), ("eot", eot), ("unknown", unk)] {
            if let Some(id) = id.filter(|id| *id >= pieces.len()) {
                return Err(Error::Outside { name, id, tokens: pieces.len() as usize });
            }
        }
        Ok(Self { pieces, meeting, bos, eos, eot, unk, add_space_prefix })
    }

    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.pieces.len()
    }

    /// Never: a vocabulary without tokens is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins a text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Ends a text.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Ends a turn of a chat.
    #[must_use]
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// Stands for what has no piece. Encoding never makes it.
    #[must_use]
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Whether an answer is over with this token.
    #[must_use]
    pub fn ends(&self, id: u32) -> bool {
        Some(id) == self.eos || Some(id) == self.eot
    }

    /// The bytes of a token, U+2581 for a space; the byte itself for a byte token. None for a token
    /// that does not exist.
    #[must_use]
    pub fn piece(&self, id: u32) -> &[u8] {
        self.pieces.piece(id)
    }

    /// What a token is for; None if it does not exist.
    #[must_use]
    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.pieces.kind(id)
    }

    /// The control token that is written like this.
    #[must_use]
    pub fn control(&self, piece: &str) -> Option<u32> {
        let piece = piece.replace(' ', SPACE);
        let control = |id, len| self.kind(id) == Some(Kind::Control) && len == piece.len();
        self.pieces.whole(piece.as_bytes(), control).map(|(id, _)| id)
    }

    /// The tokens of a text, without one that begins it.
    #[must_use]
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        self.encode_spaced(&spaced(text), |_| special == Special::Parse)
    }

    /// The tokens of a text that went through [`spaced`]; a control token counts where `trusted` says
    /// so of its bytes.
    pub(super) fn encode_spaced(
        &self,
        text: &str,
        trusted: impl Fn(Range<usize>) -> bool,
    ) -> Vec<u32> {
        let bytes = text.as_bytes();
        let mut tokens = Vec::with_capacity(text.len() / 4 + 4);
        let mut merger = Merger::default();
        let (mut start, mut at) = (0, 0);
        while let Some(&byte) = bytes.get(at) {
            let found = self.pieces.whole(bytes.get(at..).unwrap_or_default(), |id, len| {
                self.kind(id) == Some(Kind::UserDefined) || trusted(at..at + len)
            });
            let Some((id, len)) = found else {
                at += character_len(byte);
                continue;
            };
            self.encode_part(text.get(start..at).unwrap_or_default(), &mut merger, &mut tokens);
            tokens.push(id);
            at += len;
            start = at;
        }
        self.encode_part(text.get(start..).unwrap_or_default(), &mut merger, &mut tokens);
        tokens
    }

    /// Text without whole tokens.
    fn encode_part(&self, part: &str, merger: &mut Merger, tokens: &mut Vec<u32>) {
        let prefixed;
        let part = if self.add_space_prefix && !part.is_empty() {
            prefixed = format!("{SPACE}{part}");
            prefixed.as_bytes()
        } else {
            part.as_bytes()
        };
        let mut start = 0;
        for (at, pair) in part.windows(2).enumerate() {
            let &[left, right] = pair else { continue };
            if begins_character(right) && !self.meet(left, right) {
                merger.run(self, part.get(start..=at).unwrap_or_default(), tokens);
                start = at + 1;
            }
        }
        merger.run(self, part.get(start..).unwrap_or_default(), tokens);
    }

    fn meet(&self, left: u8, right: u8) -> bool {
        let bit = pair_bit(left, right);
        self.meeting.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Text of tokens, control tokens left out.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut decoder = Decoder::default();
        let mut text: String = tokens.iter().map(|id| decoder.push(self, *id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// Memory on the heap, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.pieces.memory_bytes() + self.meeting.capacity() * 8
    }
}

/// A text with its spaces as the pieces have them.
pub(super) fn spaced(text: &str) -> String {
    text.replace(' ', SPACE)
}

fn pair_bit(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

fn begins_character(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

/// Bytes of the character that begins with this one.
fn character_len(byte: u8) -> usize {
    match byte {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// Merges the characters of one text. Kept for the next text, so that its memory is used again.
#[derive(Default)]
struct Merger {
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
    #[expect(clippy::cast_possible_truncation, reason = "a text is shorter than LONGEST")]
    fn run(&mut self, tokenizer: &Tokenizer, text: &[u8], tokens: &mut Vec<u32>) {
        let text = text.get(..LONGEST).unwrap_or(text);
        let pieces = &tokenizer.pieces;
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

/// Makes text of tokens as they come: characters only whole.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// The first bytes of a character.
    held: Vec<u8>,
}

impl Decoder {
    /// The text that is certain with the next token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        match tokenizer.kind(id) {
            // A byte is never a space's replacement.
            Some(Kind::Byte) => {
                self.held.extend_from_slice(tokenizer.piece(id));
                self.valid()
            }
            Some(Kind::Normal | Kind::UserDefined) => {
                self.held.extend_from_slice(tokenizer.piece(id));
                self.valid().replace(SPACE, " ")
            }
            Some(Kind::Control | Kind::Unknown | Kind::Unused) | None => String::new(),
        }
    }

    /// The answer is over: what was held back never became a character.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }

    /// Whether the first bytes of a character wait for the others.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes out what is whole or broken.
    fn valid(&mut self) -> String {
        let mut text = String::new();
        let mut open = Vec::new();
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            if chunks.peek().is_none()
                && std::str::from_utf8(chunk.invalid())
                    .is_err_and(|error| error.error_len().is_none())
            {
                open.extend_from_slice(chunk.invalid());
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held = open;
        text
    }
}
