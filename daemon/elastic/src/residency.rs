//! What of a model is in memory, by part, and giving back what the size in use does not read.
//!
//! Weights are pages of a mapped file: the system brings them in when they are read, and may take them
//! back at any time. This module tells it what will not be read for a while, and what will be soon.

use std::io;
use std::ops::Range;

use crate::gguf::Tensor;
use crate::model::{Layer, Model, range};
use crate::sizes::Slice;

/// Bytes of a model that are in memory, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// The layers' matrices.
    pub layers: u64,
    /// Token embeddings, and the output matrix where the file has one.
    pub embedding: u64,
    /// The table of per-layer embeddings.
    pub ple: u64,
    /// Everything else of the file: the header, and what all layers share.
    pub rest: u64,
}

impl Resident {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.layers + self.embedding + self.ple + self.rest
    }
}

impl Model {
    /// What of the file is in memory and mapped here.
    pub fn resident(&self) -> io::Result<Resident> {
        let weights = &self.weights;
        let of = |ranges: Vec<Range<usize>>| self.map().resident(&joined(ranges));
        let all = of(std::iter::once(0..self.map().bytes().len()).collect())?;
        let layers = weights.layers.iter().flat_map(Layer::matrices);
        let layers = of(layers.map(|tensor| range(&tensor)).collect())?;
        let embedding = of(vec![range(&weights.embedding), range(&weights.output)])?;
        let ple = of(vec![range(&weights.ple_table)])?;
        Ok(Resident { layers, embedding, ple, rest: all.saturating_sub(layers + embedding + ple) })
    }

    /// Lets the system take back what this size does not read.
    pub fn give_back(&self, slice: &Slice) {
        self.map().give_back(&self.outside(slice));
    }

    /// Has the system read what `to` needs and `from` does not.
    pub fn read_ahead(&self, from: &Slice, to: &Slice) {
        let needed = self.outside(from);
        let unneeded = self.outside(to);
        let missing = needed.into_iter().filter(|range| !unneeded.contains(range));
        self.map().read_ahead(&missing.collect::<Vec<_>>());
    }

    /// Has the system read everything that this size needs for every token.
    pub fn read_ahead_all(&self, slice: &Slice) {
        let outside = self.outside(slice);
        let mut start = 0;
        let mut needed = Vec::new();
        let ple = range(&self.weights.ple_table);
        let mut unneeded: Vec<_> = outside.into_iter().chain([ple]).collect();
        unneeded.sort_unstable_by_key(|range| range.start);
        for range in unneeded {
            needed.push(start..range.start);
            start = range.end;
        }
        needed.push(start..self.map().bytes().len());
        self.map().read_ahead(&needed);
    }

    /// The parts of the file that this size does not read. Rows of down are cut in the middle, and
    /// their rests are too short to hold whole pages, so they count as read.
    fn outside(&self, slice: &Slice) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        for (layer, width) in self.weights.layers.iter().zip(slice.widths()) {
            match width {
                None => ranges.extend(layer.matrices().map(|tensor| range(&tensor))),
                Some(width) => {
                    for tensor in [&layer.gate, &layer.up] {
                        let row = tensor.len / tensor.rows.max(1);
                        ranges.push(tensor.start + row * width..tensor.start + tensor.len);
                    }
                }
            }
        }
        joined(ranges)
    }
}

impl Layer {
    fn matrices(&self) -> impl Iterator<Item = Tensor> {
        let all = [
            self.q,
            self.o,
            self.laurel_left,
            self.laurel_right,
            self.gate,
            self.up,
            self.down,
            self.ple_gate,
            self.ple_projection,
        ];
        all.into_iter().chain(self.kv.iter().flat_map(|kv| [kv.k, kv.v]))
    }
}

/// The same places as fewer ranges, in order.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
