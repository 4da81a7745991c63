//! Text to tokens and back, as the BPE of `SentencePiece` does it.
//!
//! Spaces become U+2581. User-defined tokens are found first, the longest at each place; what lies
//! between is cut into characters, and of two neighbours that make a piece together those are merged
//! whose piece has the highest score, the leftmost first. A character without a piece becomes bytes.
//!
//! Compared with the `tokenizers` package (`tests/reference/tokenizer.py`): the same ids for 866 hard texts
//! with the demo model's vocabulary, and for 21 MB in 70 languages (7.7 million tokens) with Gemma's; at
//! 12 MB a second. They differ where two or more literal U+2581 stand beside spaces. `SentencePiece` itself, with which
//! Gemma was trained, makes one run of both ("▁▁ " is the token of three spaces), and so does this. That package
//! looks for its added tokens, which are written with U+2581, before it replaces the spaces (two, and one), and
//! llama.cpp, whose files have them with spaces, finds no run in literal ones (one, one, and one).

use std::ops::Range;

pub use super::decoder::Decoder;
use super::merge::{Merger, character_len};
use super::pieces::Pieces;
use super::vocab::{END_OF_TURN, SPACE};
pub use super::vocab::{Error, Kind, MAX_ENTRIES, Vocabulary};

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
        let mut tokenizer = Self { pieces, meeting, bos, eos, eot, unk, add_space_prefix };
        // Many files do not say which it is; an answer would go on with the user's next turn.
        tokenizer.eot = eot.or_else(|| tokenizer.control(END_OF_TURN));
        Ok(tokenizer)
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

    /// What a token reads by itself: U+FFFD for bytes that are no whole character, and the piece as it is
    /// written for a control token.
    #[must_use]
    pub fn shown(&self, id: u32) -> String {
        let text = String::from_utf8_lossy(self.piece(id));
        // A byte is never a space's replacement.
        if self.kind(id) == Some(Kind::Byte) { text.into_owned() } else { text.replace(SPACE, " ") }
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
                merger.run(&self.pieces, part.get(start..=at).unwrap_or_default(), tokens);
                start = at + 1;
            }
        }
        merger.run(&self.pieces, part.get(start..).unwrap_or_default(), tokens);
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
