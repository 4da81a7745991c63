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

    /// Lets the system take back what none of these sizes reads, for as long as `go_on` says so.
    pub fn give_back(&self, slices: &[&Slice], go_on: &dyn Fn() -> bool) {
        let outside = slices.iter().map(|slice| self.outside(slice));
        let common = outside.reduce(|a, b| without(&a, &without(&a, &b)));
        self.map().give_back(&common.unwrap_or_default(), go_on);
    }

    /// Everything that this size needs for every token.
    #[must_use]
    pub fn needed(&self, slice: &Slice) -> Vec<Range<usize>> {
        let mut unneeded = self.outside(slice);
        unneeded.push(range(&self.weights.ple_table));
        without(std::slice::from_ref(&(0..self.map().bytes().len())), &joined(unneeded))
    }

    /// The parts of the file that this size does not read. Where single rows of down are cut in the middle,
    /// their rests are too short to hold whole pages, so they count as read; those of tiled rows are not.
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
                    if *width <= layer.down.first.cols {
                        ranges.extend(layer.down.rest.iter().map(range));
                    }
                    let (before, part) = layer.down.end(*width);
                    if part.kind.is_tiled() {
                        ranges.extend(behind(&part, *width - before));
                    }
                }
            }
        }
        joined(ranges)
    }
}

/// What each band of a tiled tensor has behind so many columns.
fn behind(tensor: &Tensor, cols: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let Tensor { kind, start, rows, .. } = *tensor;
    let bytes = |cols| kind.rows_together() * kind.row_bytes(cols).unwrap_or(0);
    let (read, band) = (bytes(cols), bytes(tensor.cols));
    let bands = if read < band { rows / kind.rows_together() } else { 0 };
    (0..bands).map(move |number| start + number * band).map(move |at| at + read..at + band)
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
            self.ple_gate,
            self.ple_projection,
        ];
        let kv = self.kv.iter().flat_map(|kv| [kv.k, kv.v]);
        all.into_iter().chain(self.down.parts()).chain(kv)
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

/// The parts of some ranges that lie in none of the others, both in order and apart.
fn without(ranges: &[Range<usize>], others: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut left = Vec::new();
    for range in ranges {
        let mut start = range.start;
        for other in others {
            if other.start < range.end && start < other.end {
                left.push(start..other.start);
                start = other.end;
            }
        }
        left.push(start..range.end);
    }
    left.retain(|range| range.start < range.end);
    left
}

#[cfg(test)]
#[test]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of one")]
fn what_is_left_of_ranges() {
    let cases: [[&[Range<usize>]; 3]; 6] = [
        [&[0..10], &[], &[0..10]],
        [&[0..10], &[0..10], &[]],
        [&[0..10], &[2..3, 5..7], &[0..2, 3..5, 7..10]],
        [&[5..10, 20..30], &[0..6, 9..21, 40..50], &[6..9, 21..30]],
        [&[5..6, 8..9], &[0..100], &[]],
        [&[5..6], &[0..5, 6..7], &[5..6]],
    ];
    for [ranges, others, left] in cases {
        assert_eq!(without(ranges, others), left, "{ranges:?} without {others:?}");
    }
}
