//! The KV caches of one sequence.
//!
//! Each layer that owns a cache has two buffers, keys and values, with a row for each position: full
//! layers one for every position up to the sequence's capacity, sliding layers a ring of the window and
//! [`SLACK`] more. The slack holds what one step writes before it is read, and lets a sequence be cut
//! back by as much. What a sequence takes is fixed when it is made: [`Shape::bytes`].

mod file;

use std::ops::Range;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::kernels::{Cached, Head};

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
    window: usize,
    /// Rows of a sliding layer's cache.
    ring: usize,
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
        Self { capacity, store, width: config.kv_width(), window: config.window, ring, rows }
    }

    /// Exactly what the caches take, full.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_of(self.capacity)
    }

    /// What they take with so many tokens in them.
    fn bytes_of(&self, tokens: usize) -> u64 {
        let row = self.store.row_bytes(self.width) as u64;
        self.rows.iter().map(|rows| 2 * row * tokens.min(*rows) as u64).sum()
    }
}

/// The tokens of a conversation so far, as keys and values. Any size of the model goes on with it.
#[derive(Clone)]
pub struct Sequence {
    shape: Shape,
    len: usize,
    /// The first position that the rings still have.
    first: usize,
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
    /// As bits: the system gives zeros of plain integers without writing them.
    F16(Vec<u16>),
    Q8_0(Vec<u8>),
}

impl Sequence {
    /// An empty one. Memory is asked for now and taken as it is filled.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        let buffer = |rows: usize| match shape.store {
            Store::F32 => Rows::F32(vec![0.0; rows * shape.width]),
            Store::F16 => Rows::F16(vec![0; rows * shape.width]),
            Store::Q8_0 => Rows::Q8_0(vec![0; rows * shape.store.row_bytes(shape.width)]),
        };
        let layer =
            |rows: &usize| Cache { rows: *rows, keys: buffer(*rows), values: buffer(*rows) };
        Self {
            shape: shape.clone(),
            len: 0,
            first: 0,
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

    /// The memory that it takes with the tokens that are in it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.bytes_of(self.len)
    }

    /// How far back it can be cut: every length from here on is still whole.
    #[must_use]
    pub fn shortest(&self) -> usize {
        // The window in front of the new end must not have been written over.
        if self.first == 0 { 0 } else { (self.first + self.shape.window).min(self.len) }
    }

    /// Cuts it back to its first `len` tokens. False, and nothing is done, if that is not possible.
    pub fn truncate(&mut self, len: usize) -> bool {
        let possible = len <= self.len && len >= self.shortest();
        if possible {
            self.len = len;
        }
        possible
    }

    /// A copy of the first `len` tokens with a capacity of its own; fails if it cannot be cut back so
    /// far, or they do not fit.
    pub fn copy(&self, len: usize, capacity: usize, config: &Config) -> Result<Self> {
        if len > self.len.min(capacity) || len < self.shortest() {
            return Err(Error::NoRoom { tokens: len, capacity: capacity.min(self.len) });
        }
        let mut copy = Self::new(&Shape::new(config, capacity, self.shape.store));
        copy.first = self.first;
        copy.advance(len);
        for (from, to) in self.layers.iter().zip(&mut copy.layers) {
            // Rings of two lengths keep a position in different rows.
            for position in len.saturating_sub(from.rows.min(to.rows))..len {
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

    /// Notes that as many more tokens are written over what is furthest back in the rings.
    pub(crate) fn write_over(&mut self, more: usize) {
        self.first = self.first.max((self.len + more).saturating_sub(self.shape.ring));
    }

    /// Counts tokens whose keys and values were written.
    pub(crate) fn advance(&mut self, more: usize) {
        self.write_over(more);
        self.len += more;
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

    /// These columns of the keys and of the values at these positions; None if they are not all there.
    pub fn heads(
        &self,
        width: usize,
        columns: Range<usize>,
        positions: Range<usize>,
    ) -> Option<[Head<'_>; 2]> {
        let head = |rows| Head::new(rows, width, columns.clone(), self.rows, positions.clone());
        Some([head(self.keys.cached())?, head(self.values.cached())?])
    }
}

impl Rows {
    fn cached(&self) -> Cached<'_> {
        match self {
            Self::F32(values) => Cached::F32(values),
            Self::F16(values) => Cached::F16(values),
            Self::Q8_0(bytes) => Cached::Q8_0(bytes),
        }
    }

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
