//! The pieces of a vocabulary in little memory, and how they are found.
//!
//! Gemma's 262144 pieces take 7 MB and 20 ms here: one buffer of bytes, 32-bit offsets, and a hash table
//! of 32-bit entries. As a map of strings they would take 70 MB, much of what a small device has.

use std::hash::{BuildHasher as _, RandomState};

use super::vocab::{
    END_OF_TURN, Error, Kind, MAX_ENTRIES, MAX_PIECE, SPACE, START_OF_TURN, Vocabulary,
};

/// The pieces, their scores, and the two ways to find one.
pub(super) struct Pieces {
    /// All pieces, one after the other.
    bytes: Vec<u8>,
    /// Where each piece ends.
    ends: Vec<u32>,
    scores: Vec<f32>,
    kinds: Vec<Kind>,
    /// Open addressing over the normal pieces: 0 is free, else the id plus one in the lower bits and
    /// some bits of the hash above, so that most wrong entries are passed without a look at the piece.
    table: Vec<u32>,
    seed: u64,
    /// Tokens that are found whole (user-defined, control, unknown), by their bytes.
    whole: Vec<u32>,
    /// Which bytes they begin with.
    first: [bool; 256],
    /// The token of each byte.
    pub byte_tokens: [u32; 256],
}

/// Bits of a table entry that hold the id plus one.
const ID_BITS: u32 = 23;
const ID_MASK: u32 = (1 << ID_BITS) - 1;

impl Pieces {
    pub fn new<'a, T>(vocabulary: Vocabulary<'a, T>) -> Result<Self, Error>
    where
        T: IntoIterator<Item = &'a [u8]>,
    {
        let Vocabulary { tokens, scores, kinds, .. } = vocabulary;
        let steering = [vocabulary.bos, vocabulary.eos, vocabulary.eot];
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(scores.len().min(MAX_ENTRIES)),
            scores: Vec::with_capacity(scores.len().min(MAX_ENTRIES)),
            kinds: Vec::with_capacity(scores.len().min(MAX_ENTRIES)),
            table: Vec::new(),
            // A file cannot know it, so it cannot put all its pieces in one place.
            seed: RandomState::new().hash_one(0),
            whole: Vec::new(),
            first: [false; 256],
            byte_tokens: [u32::MAX; 256],
        };
        let mut count = 0;
        for (id, token) in tokens.into_iter().enumerate() {
            count = id + 1;
            if count > MAX_ENTRIES {
                return Err(Error::TooManyEntries);
            }
            if token.len() > MAX_PIECE {
                return Err(Error::TooLong { id, bytes: token.len() });
            }
            let (Some(&score), Some(&kind)) = (scores.get(id), kinds.get(id)) else { continue };
            pieces.add(id, token, score, kind, &steering)?;
        }
        if (scores.len(), kinds.len()) != (count, count) {
            return Err(Error::Lengths { tokens: count, scores: scores.len(), kinds: kinds.len() });
        }
        if count == 0 {
            return Err(Error::Empty);
        }
        if let Some(byte) = pieces.byte_tokens.iter().position(|token| *token == u32::MAX) {
            return Err(Error::MissingByte(u8::try_from(byte).unwrap_or_default()));
        }
        pieces.bytes.shrink_to_fit();
        pieces.index()?;
        pieces.sort_whole()?;
        Ok(pieces)
    }

    fn add(
        &mut self,
        id: usize,
        token: &[u8],
        score: f32,
        kind: u32,
        steering: &[Option<u32>],
    ) -> Result<(), Error> {
        let index = u32::try_from(id).unwrap_or(u32::MAX);
        let mut kind = match kind {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            kind => return Err(Error::Kind { id, kind }),
        };
        // What begins and ends texts and turns is never text, whatever else the file says.
        let turn = [START_OF_TURN, END_OF_TURN].iter().any(|piece| piece.as_bytes() == token);
        if turn || steering.contains(&Some(index)) {
            kind = Kind::Control;
        }
        if score.is_nan() {
            return Err(Error::Score { id });
        }
        match kind {
            Kind::Byte => {
                let byte =
                    byte_of(token).ok_or_else(|| Error::NoByte { id, piece: lossy(token) })?;
                let slot = self.byte_tokens.get_mut(usize::from(byte));
                if let Some(slot) = slot {
                    if *slot != u32::MAX {
                        let first = *slot as usize;
                        return Err(Error::Duplicate { first, second: id, piece: lossy(token) });
                    }
                    *slot = index;
                }
                // What it stands for, not how it is written.
                self.bytes.push(byte);
            }
            // Files have these with spaces, texts are searched with spaces already replaced.
            Kind::UserDefined | Kind::Control | Kind::Unknown => {
                for byte in token {
                    match byte {
                        b' ' => self.bytes.extend_from_slice(SPACE.as_bytes()),
                        byte => self.bytes.push(*byte),
                    }
                }
                // A part of a character is in no text, and would be found inside of a whole one.
                if !token.is_empty() && std::str::from_utf8(token).is_ok() {
                    self.whole.push(index);
                }
            }
            _ => self.bytes.extend_from_slice(token),
        }
        self.ends.push(u32::try_from(self.bytes.len()).map_err(|_| Error::TooManyEntries)?);
        self.scores.push(score);
        self.kinds.push(kind);
        Ok(())
    }

    /// Fills the hash table.
    fn index(&mut self) -> Result<(), Error> {
        let normal = self.kinds.iter().filter(|kind| **kind == Kind::Normal).count();
        let mut table = vec![0_u32; (normal * 2).next_power_of_two().max(16)];
        let mask = table.len() - 1;
        for id in 0..self.len() {
            let piece = self.piece(id);
            if self.kind(id) != Some(Kind::Normal) || piece.is_empty() {
                continue;
            }
            let hash = hash(self.seed, piece);
            let entry = tag(hash) | (id + 1);
            let mut at = place(hash, mask);
            while let Some(slot) = table.get_mut(at) {
                if *slot == 0 {
                    *slot = entry;
                    break;
                }
                let other = (*slot & ID_MASK) - 1;
                if *slot & !ID_MASK == tag(hash) && self.piece(other) == piece {
                    return Err(duplicate(other, id, piece));
                }
                at = (at + 1) & mask;
            }
        }
        self.table = table;
        Ok(())
    }

    /// Puts the tokens that are found whole into the order in which they are searched.
    fn sort_whole(&mut self) -> Result<(), Error> {
        let mut whole = std::mem::take(&mut self.whole);
        whole.sort_unstable_by(|a, b| self.piece(*a).cmp(self.piece(*b)).then(a.cmp(b)));
        for pair in whole.windows(2) {
            if let &[a, b] = pair
                && self.piece(a) == self.piece(b)
            {
                return Err(duplicate(a, b, self.piece(a)));
            }
        }
        for &id in &whole {
            let piece = self.piece(id);
            if let Some(other) = self.find(piece) {
                return Err(duplicate(id.min(other), id.max(other), piece));
            }
            let byte = piece.first().copied().unwrap_or_default();
            if let Some(slot) = self.first.get_mut(usize::from(byte)) {
                *slot = true;
            }
        }
        self.whole = whole;
        Ok(())
    }

    /// How many tokens there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.ends.len()).unwrap_or(u32::MAX)
    }

    /// The bytes of a token; none for one that does not exist.
    pub fn piece(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        self.bytes.get(start.unwrap_or(0) as usize..end as usize).unwrap_or_default()
    }

    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)
    }

    /// The normal token that is written like this.
    pub fn find(&self, piece: &[u8]) -> Option<u32> {
        if piece.len() > MAX_PIECE {
            return None;
        }
        let mask = self.table.len().wrapping_sub(1);
        let hash = hash(self.seed, piece);
        let mut at = place(hash, mask);
        loop {
            let entry = *self.table.get(at)?;
            if entry == 0 {
                return None;
            }
            let id = (entry & ID_MASK) - 1;
            if entry & !ID_MASK == tag(hash) && self.piece(id) == piece {
                return Some(id);
            }
            at = (at + 1) & mask;
        }
    }

    /// The longest token of those found whole that `text` begins with and `wanted` lets through.
    pub fn whole(&self, text: &[u8], wanted: impl Fn(u32, usize) -> bool) -> Option<(u32, usize)> {
        let first = *text.first()?;
        if !*self.first.get(usize::from(first))? {
            return None;
        }
        // The tokens that begin like the text are a part of the sorted list, smaller with each byte.
        let mut left: &[u32] = &self.whole;
        let mut longest = None;
        for (at, &byte) in text.iter().enumerate() {
            let of = |id: &u32| self.piece(*id).get(at).copied();
            let from = left.partition_point(|id| of(id) < Some(byte));
            let to = left.partition_point(|id| of(id) <= Some(byte));
            left = left.get(from..to)?;
            let Some(&shortest) = left.first() else { break };
            let len = at + 1;
            if self.piece(shortest).len() == len && wanted(shortest, len) {
                longest = Some((shortest, len));
            }
        }
        longest
    }

    /// Memory on the heap, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
            + 4 * (self.ends.capacity() + self.scores.capacity() + self.table.capacity())
            + self.kinds.capacity()
            + 4 * self.whole.capacity()
    }
}

/// The byte that `<0x0A>` stands for.
fn byte_of(token: &[u8]) -> Option<u8> {
    let digits = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

fn lossy(piece: &[u8]) -> String {
    String::from_utf8_lossy(piece).into_owned()
}

fn duplicate(first: u32, second: u32, piece: &[u8]) -> Error {
    Error::Duplicate { first: first as usize, second: second as usize, piece: lossy(piece) }
}

/// Eight bytes at a time, each mixed by one wide multiplication.
#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let fold = |a: u64, b: u64| {
        let wide = u128::from(a) * u128::from(b);
        wide as u64 ^ (wide >> 64) as u64
    };
    let mut state = seed ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        state =
            fold(state ^ u64::from_le_bytes(word), 0x9e37_79b9_7f4a_7c15 ^ seed.rotate_left(32));
    }
    fold(state, 0xbf58_476d_1ce4_e5b9)
}

fn place(hash: u64, mask: usize) -> usize {
    usize::try_from(hash & mask as u64).unwrap_or(0)
}

fn tag(hash: u64) -> u32 {
    ((hash >> 32) as u32) & !ID_MASK
}
