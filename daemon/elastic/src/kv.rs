//! The KV caches of one sequence.
//!
//! Each layer that owns a cache has two buffers, keys and values, with a row for each position: full
//! layers one for every position up to the sequence's capacity, sliding layers a ring of the window and
//! [`SLACK`] more. The slack holds what one step writes before it is read, and lets a sequence be cut
//! back by as much. What a sequence takes is fixed when it is made: [`Shape::bytes`].

use half::f16;

use crate::config::Config;
use crate::error::{Error, Result};

/// Rows of a ring beyond the window: the most tokens of one sequence in one step, and the most that a
/// sequence can be cut back by once it has outgrown the window.
pub const SLACK: usize = 128;

/// What cached keys and values are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// 32-bit floats, to compare with a reference.
    F32,
    /// 16-bit floats.
    #[default]
    F16,
    /// 8 bits and a scale for each 32: half the memory. The width of a head must be a multiple of 32.
    Q8_0,
}

impl Store {
    /// Bytes of a row of this many values.
    #[must_use]
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => width * 4,
            Self::F16 => width * 2,
            Self::Q8_0 => width / 32 * 34,
        }
    }
}

/// The caches that a sequence of some capacity needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Positions.
    pub capacity: usize,
    /// How they are stored.
    pub store: Store,
    width: usize,
    /// Rows of each owned cache.
    rows: Vec<usize>,
}

impl Shape {
    /// For sequences of up to `capacity` tokens.
    #[must_use]
    pub fn new(config: &Config, capacity: usize, store: Store) -> Self {
        let ring = (config.window + SLACK).min(capacity);
        let rows = config.full.iter().take(config.own_kv);
        let rows = rows.map(|full| if *full { capacity } else { ring }).collect();
        Self { capacity, store, width: config.kv_width(), rows }
    }

    /// Exactly what the caches take, full.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let row = self.store.row_bytes(self.width) as u64;
        self.rows.iter().map(|rows| 2 * row * *rows as u64).sum()
    }
}

/// The tokens of a conversation so far, as keys and values. Any size of the model goes on with it.
#[derive(Clone)]
pub struct Sequence {
    shape: Shape,
    len: usize,
    /// The longest that it has been: what was written there took the place of older rows.
    longest: usize,
    layers: Vec<Cache>,
}

/// One layer's keys and values.
#[derive(Clone)]
pub(crate) struct Cache {
    rows: usize,
    pub keys: Rows,
    pub values: Rows,
}

/// Rows of values in the form of the store.
#[derive(Clone)]
pub(crate) enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Q8_0(Vec<u8>),
}

impl Sequence {
    /// An empty one. Memory is asked for now and taken as it is filled.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let buffer = |rows: usize| match shape.store {
            Store::F32 => Rows::F32(vec![0.0; rows * shape.width]),
            Store::F16 => Rows::F16(vec![f16::ZERO; rows * shape.width]),
            Store::Q8_0 => Rows::Q8_0(vec![0; rows * shape.store.row_bytes(shape.width)]),
        };
        let layer =
            |rows: &usize| Cache { rows: *rows, keys: buffer(*rows), values: buffer(*rows) };
        Self {
            shape: shape.clone(),
            len: 0,
            longest: 0,
            layers: shape.rows.iter().map(layer).collect(),
        }
    }

    /// Tokens in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shape.capacity
    }

    /// The memory that it takes, full.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.bytes()
    }

    /// How far back it can be cut: every length from here on is still whole.
    #[must_use]
    pub fn shortest(&self) -> usize {
        let ring = self.layers.iter().map(|cache| cache.rows).filter(|r| *r < self.shape.capacity);
        match ring.min() {
            // The window in front of the new end must not have been written over.
            Some(rows) if self.longest > rows => self.longest - SLACK.min(rows),
            _ => 0,
        }
    }

    /// Cuts it back to its first `len` tokens. False, and nothing is done, if that is not possible.
    pub fn truncate(&mut self, len: usize) -> bool {
        let possible = len <= self.len && len >= self.shortest();
        if possible {
            self.len = len;
        }
        possible
    }

    /// A copy with another capacity, which is at least its length. A shorter one costs less to keep.
    pub fn resized(&self, capacity: usize, config: &Config) -> Result<Self> {
        if capacity < self.len {
            return Err(Error::NoRoom { tokens: self.len, capacity });
        }
        let mut copy = Self::new(&Shape::new(config, capacity, self.shape.store));
        copy.advance(self.len);
        for (from, to) in self.layers.iter().zip(&mut copy.layers) {
            // Rings of two lengths keep a position in different rows.
            let first = self.len.saturating_sub(from.rows.min(to.rows));
            for position in first..self.len {
                let (from_row, to_row) = (position % from.rows, position % to.rows);
                to.keys.copy_row(to_row, &from.keys, from_row, self.shape.width);
                to.values.copy_row(to_row, &from.values, from_row, self.shape.width);
            }
        }
        Ok(copy)
    }

    /// Fails if there is no room for as many more.
    pub(crate) fn check_room(&self, more: usize) -> Result<()> {
        let (tokens, capacity) = (self.len.saturating_add(more), self.shape.capacity);
        if tokens <= capacity { Ok(()) } else { Err(Error::NoRoom { tokens, capacity }) }
    }

    /// Counts tokens whose keys and values were written.
    pub(crate) fn advance(&mut self, more: usize) {
        self.len += more;
        self.longest = self.longest.max(self.len);
    }

    pub(crate) fn cache(&self, layer: usize) -> Option<&Cache> {
        self.layers.get(layer)
    }

    pub(crate) fn cache_mut(&mut self, layer: usize) -> Option<&mut Cache> {
        self.layers.get_mut(layer)
    }
}

impl Cache {
    /// The row of a position.
    pub fn row(&self, position: usize) -> usize {
        position % self.rows.max(1)
    }
}

impl Rows {
    fn copy_row(&mut self, row: usize, from: &Self, from_row: usize, width: usize) {
        fn copy<T: Copy>(to: &mut [T], row: usize, from: &[T], from_row: usize, len: usize) {
            let to = to.get_mut(row * len..(row + 1) * len);
            if let (Some(to), Some(from)) = (to, from.get(from_row * len..(from_row + 1) * len)) {
                to.copy_from_slice(from);
            }
        }
        match (self, from) {
            (Self::F32(to), Self::F32(from)) => copy(to, row, from, from_row, width),
            (Self::F16(to), Self::F16(from)) => copy(to, row, from, from_row, width),
            (Self::Q8_0(to), Self::Q8_0(from)) => {
                copy(to, row, from, from_row, Store::Q8_0.row_bytes(width));
            }
            // Copies have their original's store.
            _ => {}
        }
    }
}
