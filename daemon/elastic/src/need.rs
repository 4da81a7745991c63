//! The memory that a size of a model needs, and what a token costs, from the header alone.
//!
//! Weights are pages of the mapped file, so whole pages are counted, each once, where they are in the
//! file: a row of `ffn_down` of which a size reads the first half takes the pages of that half, and at
//! 4 bits these are most of the row's, unless the file is nested ([`crate::nest`]). What is counted is what decode reads again for every token; the
//! system may take any of it back, and then it is read from storage again. Called by the daemon to
//! choose a size that fits, and by `nestctl model inspect`.

use std::ops::Range;

use crate::config::Config;
use crate::gguf::{Header, Tensor};
use crate::kv::{SLACK, Shape, Store};
use crate::map::page_size;
use crate::nest;
use crate::sizes::Slice;

/// Memory that one conversation at one size needs, in bytes, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The weights of the layers that are kept, as wide as they are, and those that all layers share.
    pub layers: u64,
    /// Token embeddings, all of which the output matrix multiplies; where the file has an output
    /// matrix of its own, that one, and a row of the embeddings for each token of the context.
    pub embedding: u64,
    /// Rows of the table of per-layer embeddings. A row is read when its token is computed, so this
    /// assumes that no token of the context is like another, and that the system keeps every page.
    pub ple: u64,
    /// Keys and values, full.
    pub kv: u64,
    /// Activations of the largest step, and the logits of one token.
    pub work: u64,
}

impl Need {
    /// All of it. The process itself, with the tokenizer, comes on top: about 30 MB.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.layers + self.embedding + self.ple + self.kv + self.work
    }
}

/// What `slice` needs for a conversation of `context` tokens. The slice and the header belong together;
/// a tensor that is not there counts nothing.
#[must_use]
pub fn need(
    header: &Header<'_>,
    config: &Config,
    slice: &Slice,
    context: usize,
    store: Store,
) -> Need {
    let file = File { header, config };
    let kept = file.layers(slice).chain(file.shared(slice));
    let (matrices, copied): (Vec<_>, Vec<_>) = kept.partition(|part| part.tensor.rows > 1);
    // Vectors are copied out of the file when it is opened.
    let copied: u64 = copied.iter().map(Part::bytes).sum();
    let own_output = header.tensor("output.weight");
    let output = own_output.or_else(|| header.tensor("token_embd.weight"));
    let embedding = own_output.and_then(|_| header.tensor("token_embd.weight"));
    Need {
        layers: copied + pages(matrices.iter().flat_map(Part::ranges)),
        embedding: pages(output.iter().map(whole)) + rows_on_demand(embedding, context),
        ple: rows_on_demand(header.tensor("per_layer_token_embd.weight"), context),
        kv: Shape::new(config, context, store).bytes(),
        work: work(config, slice, output.map_or(0, |output| output.rows), file.rank(slice)),
    }
}

/// Bytes of weights that decode reads for a token: on most devices its time is this over the memory's
/// bandwidth. In layers with activation sparsity only the rows of `ffn_up` count whose gates are
/// expected to survive. With a side file ([`crate::sidefile`]) less of their `ffn_down` is read than is
/// counted here.
#[must_use]
pub fn read_per_token(header: &Header<'_>, config: &Config, slice: &Slice) -> u64 {
    let file = File { header, config };
    let parts = file.layers(slice).chain(file.shared(slice));
    let parts: u64 = parts.map(|part| part.bytes() * part.alive / 1000).sum();
    let own_output = header.tensor("output.weight");
    let output = own_output.or_else(|| header.tensor("token_embd.weight"));
    let row = |name: &str| header.tensor(name).map_or(0, |tensor| tensor.len / tensor.rows.max(1));
    let rows = row("token_embd.weight") + row("per_layer_token_embd.weight");
    parts + output.map_or(0, |output| output.len as u64) + rows as u64
}

/// What a size reads of a tensor: the first bytes of some rows.
struct Part {
    tensor: Tensor,
    rows: Range<usize>,
    /// Of each row.
    row_bytes: usize,
    /// Of a thousand rows, how many decode reads for a token.
    alive: u64,
}

impl Part {
    fn whole(tensor: Tensor) -> Self {
        let row_bytes = tensor.kind.row_bytes(tensor.cols).unwrap_or(0);
        Self { tensor, rows: 0..tensor.rows * tensor.count, row_bytes, alive: 1000 }
    }

    fn bytes(&self) -> u64 {
        (self.rows.len() * self.row_bytes) as u64
    }

    /// Where that is in the file.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let stride = self.tensor.kind.row_bytes(self.tensor.cols).unwrap_or(0);
        let first = self.tensor.start + self.rows.start * stride;
        // Whole rows follow each other, and of a band of tiles the first columns of all its rows.
        let together = self.tensor.kind.rows_together();
        let (count, len) = if self.row_bytes == stride {
            (1, self.rows.len() * stride)
        } else {
            (self.rows.len() / together, self.row_bytes * together)
        };
        let stride = stride * together;
        (0..count).map(move |row| first + row * stride).map(move |start| start..start + len)
    }
}

struct File<'f, 'h> {
    header: &'f Header<'h>,
    config: &'f Config,
}

impl File<'_, '_> {
    /// What the slice reads of the layers.
    fn layers(&self, slice: &Slice) -> impl Iterator<Item = Part> {
        let kept = slice.widths().iter().enumerate();
        let kept = kept.filter_map(|(layer, width)| width.map(|width| (layer, width)));
        let tensors = self.header.tensors();
        kept.flat_map(move |(layer, width)| {
            let prefix = format!("blk.{layer}.");
            let parts = tensors.iter().filter_map(|(name, tensor)| {
                self.part(layer, width, name.strip_prefix(&prefix)?, *tensor)
            });
            parts.collect::<Vec<_>>()
        })
    }

    fn part(&self, layer: usize, width: usize, name: &str, tensor: Tensor) -> Option<Part> {
        let whole = Part::whole(tensor);
        match name {
            "ffn_gate.weight" => Some(Part { rows: 0..width.min(tensor.rows), ..whole }),
            "ffn_up.weight" => {
                let deviations = self.config.sparsity.get(layer).copied().flatten();
                let alive = deviations.map_or(1000, |deviations| above(f64::from(deviations)));
                Some(Part { rows: 0..width.min(tensor.rows), alive, ..whole })
            }
            "ffn_down.weight" | nest::FIRST | nest::REST => {
                let full = self.config.widths.get(layer).copied().unwrap_or(0);
                // Columns in front of this part's.
                let before = if name == nest::REST { full.saturating_sub(tensor.cols) } else { 0 };
                let width = width.saturating_sub(before).min(tensor.cols);
                let row_bytes = tensor.kind.row_bytes(width).unwrap_or(whole.row_bytes);
                (width > 0).then_some(Part { row_bytes, ..whole })
            }
            // In the file for every layer, and read where a cache is filled.
            "attn_k.weight" | "attn_v.weight" | "attn_k_norm.weight" => {
                (layer < self.config.own_kv).then_some(whole)
            }
            _ => Some(whole),
        }
    }

    /// The highest rank of `LAuReL`.
    fn rank(&self, slice: &Slice) -> usize {
        let kept = slice.widths().iter().enumerate().filter(|(_, width)| width.is_some());
        let left = kept.map(|(layer, _)| format!("blk.{layer}.laurel_l.weight"));
        left.filter_map(|name| self.header.tensor(&name)).map(|left| left.rows).max().unwrap_or(0)
    }

    /// What all layers share, but for the embeddings.
    fn shared(&self, slice: &Slice) -> impl Iterator<Item = Part> {
        let ple = self.config.ple;
        let widths = slice.widths().iter().enumerate();
        let kept = widths.filter(|(_, width)| width.is_some()).map(|(layer, _)| layer);
        let projection = self.header.tensor("per_layer_model_proj.weight");
        let projections = kept.filter_map(move |layer| {
            let rows = layer * ple..(layer + 1) * ple;
            Some(Part { rows, ..Part::whole(projection?) })
        });
        ["altup_proj", "altup_unembd_proj", "per_layer_proj_norm", "output_norm"]
            .into_iter()
            .filter_map(|name| self.header.tensor(&format!("{name}.weight")))
            .map(Part::whole)
            .chain(projections)
    }
}

fn whole(tensor: &Tensor) -> Range<usize> {
    tensor.start..tensor.start + tensor.len
}

/// Bytes of the pages that these ranges touch, each page once.
fn pages(ranges: impl IntoIterator<Item = Range<usize>>) -> u64 {
    let page = page_size();
    let ranges = ranges.into_iter().filter(|range| !range.is_empty());
    let mut ranges: Vec<_> = ranges.map(|r| r.start / page..r.end.div_ceil(page)).collect();
    // The rows of a tensor are in order, which this sort makes use of.
    ranges.sort_by_key(|range| range.start);
    let (mut count, mut seen) = (0, 0);
    for range in ranges {
        count += range.end.saturating_sub(range.start.max(seen));
        seen = seen.max(range.end);
    }
    (count * page) as u64
}

/// Bytes of the pages that one row for each token touches, wherever the rows begin.
fn rows_on_demand(table: Option<Tensor>, tokens: usize) -> u64 {
    let page = page_size();
    let Some(table) = table else { return 0 };
    let row = table.kind.row_bytes(table.cols).unwrap_or(0) * table.kind.rows_together();
    let each = (row + page).saturating_sub(2) / page + 1;
    let all = (each * page).saturating_mul(tokens.min(table.rows));
    all.min(table.len.next_multiple_of(page)) as u64
}

/// Buffers of the forward pass for a step of [`SLACK`] tokens of which one predicts.
fn work(config: &Config, slice: &Slice, vocabulary: usize, rank: usize) -> u64 {
    const F32: usize = 4;
    let hidden = config.hidden;
    let query = config.heads * config.head_dim;
    let width = slice.widths().iter().flatten().copied().max().unwrap_or(0);
    // The `AltUp` stack twice, per-layer embeddings twice, what goes in and comes out of the branches
    // (the FFN's twice), queries, keys and values, sine and cosine, the FFN's units.
    let floats = 2 * config.altup * hidden
        + 2 * config.layers() * config.ple
        + 5 * hidden
        + query
        + 2 * config.kv_width()
        + 2 * config.head_dim
        + width;
    // Inputs of products have a copy in 8 bits, with a scale and a sum for each 32 and 16 values.
    // The second one is `LAuReL`'s, the FFN's and the per-layer embedding's in turn.
    let inputs = hidden + width.max(query).max(config.ple).max(rank);
    let row = floats * F32 + inputs * 11 / 2;
    (row * SLACK + vocabulary * F32) as u64
}

/// Of a thousand normally distributed values, how many are above so many standard deviations.
fn above(deviations: f64) -> u64 {
    let x = deviations;
    // A logistic curve of a cubic is within 0.0002 of the normal distribution's.
    let share = 1.0 / (1.0 + (1.5976 * x + 0.070_56 * x * x * x).exp());
    (0..1000).filter(|step| (f64::from(*step) + 0.5) / 1000.0 < share).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_once() {
        let page = page_size();
        assert_eq!(pages([0..1, 1..2, page - 1..page]), page as u64);
        assert_eq!(pages(std::iter::once(page - 1..page + 1)), 2 * page as u64);
        let mixed = [0..10 * page, page..2 * page, 3 * page..3 * page];
        assert_eq!(pages(mixed), 10 * page as u64);
    }

    #[test]
    fn the_top_five_percent_are_five_percent() {
        assert_eq!((above(1.644_85), above(0.0), above(f64::MAX)), (50, 500, 0));
    }
}
