//! A vocabulary as a model's file has it, and why one is refused.

/// More entries than this are no vocabulary.
pub const MAX_ENTRIES: usize = 1 << 22;
/// No piece is longer than this many bytes.
pub(super) const MAX_PIECE: usize = 1024;
/// The character that stands for a space.
pub(super) const SPACE: &str = "\u{2581}";

/// Ends a turn of Gemma's chats.
pub(super) const END_OF_TURN: &str = "<end_of_turn>";
/// Begins one.
pub(super) const START_OF_TURN: &str = "<start_of_turn>";

/// A vocabulary as a file has it.
pub struct Vocabulary<'a, T> {
    /// The pieces, in the order of their ids.
    pub tokens: T,
    /// Which merge comes first: the one with the higher score.
    pub scores: &'a [f32],
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub kinds: &'a [u32],
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn of a chat.
    pub eot: Option<u32>,
    /// Stands for what has no piece.
    pub unk: Option<u32>,
    /// Whether a text gets a space in front.
    pub add_space_prefix: bool,
}

/// Why a vocabulary is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// There are no pieces.
    #[error("the vocabulary is empty")]
    Empty,
    /// The file is broken or hostile.
    #[error("the vocabulary has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The lists are of different length.
    #[error("the vocabulary has {tokens} tokens, {scores} scores and {kinds} token types")]
    Lengths {
        /// How many tokens.
        tokens: usize,
        /// How many scores.
        scores: usize,
        /// How many token types.
        kinds: usize,
    },
    /// A piece is too long.
    #[error("token {id} has {bytes} bytes, more than {MAX_PIECE}")]
    TooLong {
        /// Its place.
        id: usize,
        /// Its length.
        bytes: usize,
    },
    /// A token type that is not known.
    #[error("token {id} has type {kind}, which is not known")]
    Kind {
        /// Its place.
        id: usize,
        /// What the file has.
        kind: u32,
    },
    /// A score that orders nothing.
    #[error("token {id} has a score that is no number")]
    Score {
        /// Its place.
        id: usize,
    },
    /// Two entries with one text: which is meant would be chance.
    #[error("tokens {first} and {second} are both {piece:?}")]
    Duplicate {
        /// The first of them.
        first: usize,
        /// The other.
        second: usize,
        /// Their text.
        piece: String,
    },
    /// A byte token that is not written `<0x00>` to `<0xFF>`.
    #[error("token {id} is of type byte, but {piece:?} is no byte")]
    NoByte {
        /// Its place.
        id: usize,
        /// Its text.
        piece: String,
    },
    /// Some text could not be encoded.
    #[error("the vocabulary has no token for byte 0x{0:02X}")]
    MissingByte(u8),
    /// A special token that does not exist.
    #[error("the {name} token is {id}, but the vocabulary has {tokens} entries")]
    Outside {
        /// Which of them.
        name: &'static str,
        /// What the file has.
        id: u32,
        /// How many entries there are.
        tokens: usize,
    },
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Made by merges.
    Normal,
    /// Stands for what has no piece.
    Unknown,
    /// Steers the model; it is no text.
    Control,
    /// Found in the text before any merge.
    UserDefined,
    /// Never made.
    Unused,
    /// One byte of a character without a piece.
    Byte,
}
