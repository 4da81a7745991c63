//! How much memory mistral.rs takes for a size of a model, estimated from shapes alone.
//!
//! It counts what a process must hold: the pages of the mapped files come on top in the resident
//! size while loading, but the kernel takes them back when memory is short. Called by the parent
//! module.

use super::super::Isq;
use super::super::sizes::Size;
use super::config::Config;
use super::tensors::{self, Wanted};
use super::towers;

/// The process with its runtimes and an empty cache.
const BASE_BYTES: u64 = 64 << 20;
/// Two copies of the tokenizer and a trie of its tokens, for each token: measured.
const TOKENIZER_BYTES: u64 = 2600;
/// Every linear layer is copied once while it is quantized, on this many threads at most.
const QUANTIZED_AT_ONCE: u64 = 4;
/// What the allocator loses between the tensors, in percent: measured.
const SLACK_PERCENT: u64 = 8;

/// What mistral.rs quantizes in place: these names, and `self_attn`'s and `mlp`'s projections.
const QUANTIZED: [&str; 13] = [
    "_proj.weight",
    "per_layer_model_projection.weight",
    "altup_projections.",
    "altup_unembed_projections.",
    "embedding_projection.weight",
    "lm_head.weight",
    "attn.q_proj.weight",
    "pos_proj.weight",
    "attention.post.weight",
    "ffw_layer_1.weight",
    "ffw_layer_2.weight",
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

/// The estimate for one size. `sliced` says that it is cut from a table; `full_precision` that
/// weights are kept in 32 bits where they are not quantized, and not in 16.
#[must_use]
pub fn estimate(
    config: &Config,
    size: &Size,
    sliced: bool,
    isq: Isq,
    full_precision: bool,
) -> Memory {
    let plain = if full_precision { 4 } else { 2 };
    let text = &config.text;
    let mut resident = 0;
    let mut largest = 0;
    let mut add = |wanted: &Wanted, plain: u64| {
        let count = elements(&wanted.shape);
        let quantized = QUANTIZED.iter().any(|name| wanted.name.contains(name))
            && !wanted.name.contains("vision_tower");
        let bits = if quantized { bits(isq, &wanted.shape) } else { None };
        if bits.is_some() {
            largest = largest.max(count * plain);
        }
        resident += bits.map_or(count * plain, |bits| count * bits / 16);
    };

    let kept_layers = (text.layers - size.skipped.len()) as u64;
    let mut table = 0;
    for mut wanted in tensors::outside_layers(text) {
        // The layers that are skipped lose their part of the per-layer embeddings.
        if wanted.name.ends_with("embed_tokens_per_layer.weight") {
            table = elements(&wanted.shape) * plain;
            wanted.shape = vec![
                text.vocab_size_per_layer_input,
                kept_layers * text.hidden_size_per_layer_input,
            ];
        }
        add(&wanted, plain);
    }
    for width in &size.widths {
        for (name, shape) in tensors::layer(text, *width) {
            add(&Wanted { name: name.into(), shape, group: None }, plain);
        }
    }
    for wanted in towers::towers(config) {
        // The vision tower is kept in 32 bits on a CPU.
        let plain = if wanted.name.contains("vision_tower") { 4 } else { plain };
        add(&wanted, plain);
    }
    let vocabulary = text.vocab_size.max(text.vocab_size_per_layer_input);
    if text.tie_word_embeddings && isq != Isq::None {
        // The output layer is the token embedding once more, quantized.
        add(
            &Wanted {
                name: "lm_head.weight".into(),
                shape: vec![text.vocab_size, text.hidden_size],
                group: None,
            },
            plain,
        );
    }
    let resident =
        BASE_BYTES + TOKENIZER_BYTES * vocabulary + resident * (100 + SLACK_PERCENT) / 100;
    // A slice's per-layer embeddings are copied out of the whole table, and both are there then; the
    // layers are not yet.
    let slicing = if sliced { table } else { 0 };
    Memory { resident, peak: resident + slicing.max(largest * QUANTIZED_AT_ONCE) }
}

fn elements(shape: &[u64]) -> u64 {
    shape.iter().product()
}

/// Sixteenths of a byte... of a weight after quantization: bits times two. None if it stays as it is.
/// A row that is not whole blocks of 256 takes a type with blocks of 32.
fn bits(isq: Isq, shape: &[u64]) -> Option<u64> {
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
