//! How much memory mistral.rs takes for a size of a model, estimated from shapes alone.
//!
//! It counts what a process must hold: the pages of the mapped files come on top in the resident
//! size while loading, but the kernel takes them back when memory is short. Called by the parent
//! module.

use nestd_elastic::sizes::Size;

use super::super::Isq;
use super::config::Config;
use super::tensors;
use super::towers;

/// The process with its runtimes and an empty cache: measured.
const BASE_BYTES: u64 = 24 << 20;
/// Two copies of the tokenizer and a trie of its tokens, for each token: measured.
const TOKENIZER_BYTES: u64 = 1400;
/// What the allocator may lose between the tensors, in percent.
const SLACK_PERCENT: u64 = 5;
/// A tensor is copied to 32 bits to be quantized.
const QUANTIZING_BYTES: u64 = 4;

/// What mistral.rs quantizes: tensors with one of these in their names.
const QUANTIZED: [&str; 11] = [
    "_proj.weight",
    "per_layer_model_projection.weight",
    "altup_projections.",
    "altup_unembed_projections.",
    "embedding_projection.weight",
    "input_proj_linear.weight",
    "lm_head.weight",
    "attention.post.weight",
    "ffw_layer_",
    "linear_start.weight",
    "linear_end.weight",
];

/// Resident and at its peak, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Once it is loaded.
    pub resident: u64,
    /// While it loads; never less.
    pub peak: u64,
}

/// The estimate for one size. `sliced` says that it is cut from a table; `full` that
/// weights are kept in 32 bits where they are not quantized, and not in 16.
#[must_use]
pub fn estimate(config: &Config, size: &Size, sliced: bool, isq: Isq, full: bool) -> Memory {
    let text = &config.text;
    let plain = if full { 4 } else { 2 };
    let mut total = Total { isq, ..Total::default() };
    for wanted in towers::towers(config) {
        // The vision tower is kept in 32 bits on a CPU.
        let vision = wanted.name.contains("vision_tower");
        total.add(&wanted.name, &wanted.shape, if vision { 4 } else { plain });
    }
    // The layers that are skipped lose their part of the per-layer embeddings. It is copied out of the
    // whole table, and both are there then, but not yet the layers.
    let kept = (text.layers - size.skipped.len()) as u64 * text.hidden_size_per_layer_input;
    let rows = text.vocab_size_per_layer_input;
    let table = rows * text.layers as u64 * text.hidden_size_per_layer_input * plain;
    for wanted in tensors::outside_layers(text) {
        let shape = if wanted.name.ends_with("embed_tokens_per_layer.weight") {
            vec![rows, kept]
        } else {
            wanted.shape
        };
        total.add(&wanted.name, &shape, plain);
    }
    let slicing = total.bytes + if sliced { table } else { 0 };
    for width in &size.widths {
        for (name, shape) in tensors::layer(text, *width) {
            total.add(name, &shape, plain);
        }
    }
    if text.tie_word_embeddings && isq != Isq::None {
        // The output layer is the token embedding once more, quantized.
        total.add("lm_head.weight", &[text.vocab_size, text.hidden_size], plain);
    }
    let around = |bytes: u64| {
        BASE_BYTES
            + TOKENIZER_BYTES * text.vocab_size.max(rows)
            + bytes / 100 * (100 + SLACK_PERCENT)
    };
    let resident = around(total.bytes);
    let quantizing = resident + total.largest_quantized * QUANTIZING_BYTES;
    Memory { resident, peak: around(slicing).max(quantizing) }
}

#[derive(Default)]
struct Total {
    isq: Isq,
    bytes: u64,
    /// Elements of the largest tensor that is quantized.
    largest_quantized: u64,
}

impl Total {
    /// Counts a tensor of `plain` bytes for each element, unless it is quantized.
    fn add(&mut self, name: &str, shape: &[u64], plain: u64) {
        let count = elements(shape);
        let quantized = QUANTIZED.iter().any(|part| name.contains(part));
        let bits =
            half_bits(self.isq, shape).filter(|_| quantized && !name.contains("vision_tower"));
        if bits.is_some() {
            self.largest_quantized = self.largest_quantized.max(count);
        }
        self.bytes += bits.map_or(count * plain, |bits| count * bits / 16);
    }
}

fn elements(shape: &[u64]) -> u64 {
    shape.iter().product()
}

/// Twice the bits of a weight after quantization; none if it stays as it is. A row that is not whole
/// blocks of 256 takes a type with blocks of 32, or none at all and 32 bits.
fn half_bits(isq: Isq, shape: &[u64]) -> Option<u64> {
    let row = shape.last().copied().unwrap_or_default();
    let (large, small) = match isq {
        Isq::None => return None,
        Isq::Q4k => (9, 10),
        Isq::Q5k => (11, 11),
        Isq::Q6k => (13, 12),
        Isq::Q8_0 => (17, 17),
    };
    if row % 256 == 0 {
        Some(large)
    } else if row % 32 == 0 {
        Some(small)
    } else {
        Some(64)
    }
}
