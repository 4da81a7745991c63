//! A folder as Hugging Face has it. Of the weights there is the header; the data is a hole.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is a find")]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::Config;
use super::safetensors::Tensor;
use super::{Checkpoint, SIZES_FILE, tensors};
use crate::engine::Isq;

/// The largest hole: the target is about headers.
const LARGEST: u64 = 1 << 40;

/// `config.json`, `generation_config.json`, `sizes.csv` (the last two are not there where they are empty)
/// and the bytes of data in digits, each with a zero behind it; then the safetensors file up to its data.
pub(crate) fn run(folder: &Path, bytes: &[u8]) {
    let mut parts = bytes.splitn(5, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::write(folder.join(name), "{}").unwrap();
    }
    fs::write(folder.join("config.json"), part()).unwrap();
    for name in ["generation_config.json", SIZES_FILE] {
        let content = part();
        if !content.is_empty() {
            fs::write(folder.join(name), content).unwrap();
        }
    }
    let hole = str::from_utf8(part()).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let mut weights = File::create(folder.join("model.safetensors")).unwrap();
    let header = part();
    weights.write_all(header).unwrap();
    weights.set_len(header.len() as u64 + LARGEST.min(hole)).unwrap();

    let Ok(checkpoint) = Checkpoint::open("demo", folder) else { return };
    assert!(!checkpoint.sizes.is_empty());
    let temperature = checkpoint.generation.temperature();
    assert!(temperature.is_finite(), "{temperature}");
    for isq in [Isq::None, Isq::Q4k, Isq::Q5k, Isq::Q6k, Isq::Q8_0] {
        let info = checkpoint.info(isq);
        assert_eq!(info.sizes.len(), checkpoint.sizes.len());
        for size in &checkpoint.sizes {
            let memory = checkpoint.memory(size, isq);
            assert!(memory.resident <= memory.peak);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let heads =
        "name,# Layers,# Effective Params (B),MMLU PT accuracy,FFN Hidden Dims,Layers Skipped";
    let row = |name, width| format!("{name},20,0.1,,\"[{}]\",\n", [width; 20].join(", "));
    let table = format!("{heads}\n{}{}", row("whole", "32 * 2"), row("half", "32"));
    vec![
        seed(3, 1, "", br#"{"do_sample":true,"temperature":0.7,"top_k":64,"top_p":0.95}"#),
        seed(20, 0, &table, b""),
    ]
}

/// A model of these layers, of which the last `shared` read the KV cache of another.
fn seed(layers: usize, shared: usize, table: &str, generation: &[u8]) -> Vec<u8> {
    let sparsity: Vec<f64> = (0..layers).map(|layer| if layer < 10 { 0.95 } else { 0.0 }).collect();
    let config = json!({
        "model_type": "gemma3n",
        "text_config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
            "num_kv_shared_layers": shared, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 16, "vocab_size": 64, "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 32, "altup_num_inputs": 1, "laurel_rank": 16,
            "max_position_embeddings": 4096, "activation_sparsity_pattern": sparsity,
            "layer_types": vec!["full_attention"; layers],
        },
        "vision_config": { "vocab_size": 128 },
        "audio_config": { "hidden_size": 64, "conf_num_hidden_layers": 1 },
    })
    .to_string();
    let mut header = Map::new();
    let mut end = 0;
    let wanted = tensors::wanted(&Config::parse(config.as_bytes()).unwrap());
    for wanted in wanted.into_iter().filter(|wanted| wanted.group.is_none()) {
        let from = end;
        end += Tensor::new("BF16", wanted.shape.clone()).bytes().unwrap();
        let entry = json!({ "dtype": "BF16", "shape": wanted.shape, "data_offsets": [from, end] });
        header.insert(wanted.name, entry);
    }
    let header = Value::Object(header).to_string();
    let digits = end.to_string();
    let parts = [config.as_bytes(), generation, table.as_bytes(), digits.as_bytes()];
    let mut seed = parts.into_iter().flat_map(|part| [part, &[0]]).collect::<Vec<_>>().concat();
    seed.extend((header.len() as u64).to_le_bytes());
    seed.extend(header.as_bytes());
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_models() {
        for (seed, sliced) in seeds().iter().zip([false, true]) {
            let folder = tempfile::tempdir().unwrap();
            run(folder.path(), seed);
            assert_eq!(Checkpoint::open("demo", folder.path()).unwrap().sliced, sliced);
        }
    }
}
