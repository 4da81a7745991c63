//! The demo model for tests: its published folder turned into GGUF of any kind, and the stored outputs
//! of the reference implementation.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use nestd_elastic::gguf::{Entry, Header, Value, Writer};
use nestd_elastic::kernels;
use nestd_elastic::sizes::{self, Shape, Size};
use nestd_elastic::tensor::Kind;

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// A safetensors file, all of it.
pub struct Tensors {
    bytes: Vec<u8>,
    start: usize,
    header: serde_json::Map<String, serde_json::Value>,
}

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..start]).unwrap();
        Self { bytes, start, header }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.keys().map(String::as_str).filter(|name| *name != "__metadata__")
    }

    fn raw(&self, name: &str) -> (&str, &[u8]) {
        let entry = self.header.get(name).unwrap_or_else(|| panic!("no {name}"));
        let at = |index: usize| entry["data_offsets"][index].as_u64().unwrap() as usize;
        (entry["dtype"].as_str().unwrap(), &self.bytes[self.start + at(0)..self.start + at(1)])
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        let shape = self.header[name]["shape"].as_array().unwrap();
        shape.iter().map(|dim| dim.as_u64().unwrap() as usize).collect()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let (dtype, bytes) = self.raw(name);
        match dtype {
            "F32" => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            "F16" => bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
            other => panic!("{name} is {other}"),
        }
    }

    pub fn integers(&self, name: &str) -> Vec<u32> {
        let (dtype, bytes) = self.raw(name);
        assert_eq!(dtype, "I32");
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// The model's sizes, largest first.
pub fn ladder() -> Vec<Size> {
    let table = std::fs::read_to_string(folder().join("hf/sizes.csv")).unwrap();
    sizes::parse(&table, &Shape { widths: vec![256; 35], first_shared_layer: 20 }).unwrap()
}

/// Writes the model with its matrices in `kind`; what has no rows of whole blocks stays F32.
pub fn write_gguf(path: &Path, kind: Kind) {
    let source = Tensors::read(&folder().join("hf/model.safetensors"));
    let mut writer = Writer::default();
    for (key, value) in config() {
        let key =
            if key.starts_with("general.") { key.to_owned() } else { format!("gemma3n.{key}") };
        writer.pair(key, &value);
    }
    tokenizer(&mut writer);
    let mut parts: HashMap<String, Vec<String>> = HashMap::new();
    for name in source.names() {
        parts.entry(gguf_name(name)).or_default().push(name.to_owned());
    }
    let mut names: Vec<_> = parts.keys().cloned().collect();
    names.sort();
    for name in &names {
        let stacked = parts.get_mut(name).unwrap();
        stacked.sort();
        let mut dims: Vec<usize> = source.shape(&stacked[0]).into_iter().rev().collect();
        let whole =
            dims.len() > 1 && dims[0].is_multiple_of(kind.block_len()) && !name.contains("router");
        if name.starts_with("altup_") {
            dims.push(stacked.len());
        }
        writer.tensor(name, if whole { kind } else { Kind::F32 }, &dims);
    }
    let out = BufWriter::new(File::create(path).unwrap());
    writer
        .write(out, |name, kind, _, out: &mut dyn Write| {
            let values: Vec<f32> =
                parts[name].iter().flat_map(|source_name| source.floats(source_name)).collect();
            let mut bytes = Vec::new();
            assert!(quantize(kind, &values, &mut bytes), "{name}");
            out.write_all(&bytes)
        })
        .unwrap();
}

fn quantize(kind: Kind, values: &[f32], out: &mut Vec<u8>) -> bool {
    kernels::quantize(kind, values, out)
}

fn config() -> Vec<(&'static str, Entry)> {
    let sliding = (0..35).map(|layer| (layer + 1) % 5 != 0).collect();
    let sparsity = (0..35).map(|layer| if layer < 10 { 1.644_853_6 } else { f32::NEG_INFINITY });
    vec![
        ("general.architecture", Entry::String("gemma3n".into())),
        ("block_count", Entry::U32(35)),
        ("context_length", Entry::U32(4096)),
        ("embedding_length", Entry::U32(64)),
        ("feed_forward_length", Entry::U32s(vec![256; 35])),
        ("attention.head_count", Entry::U32(4)),
        ("attention.head_count_kv", Entry::U32(2)),
        ("attention.key_length", Entry::U32(32)),
        ("attention.value_length", Entry::U32(32)),
        ("attention.layer_norm_rms_epsilon", Entry::F32(1e-6)),
        ("attention.sliding_window", Entry::U32(512)),
        ("attention.sliding_window_pattern", Entry::Bools(sliding)),
        ("attention.shared_kv_layers", Entry::U32(15)),
        ("rope.freq_base", Entry::F32(1e6)),
        ("altup.active_idx", Entry::U32(0)),
        ("altup.num_inputs", Entry::U32(4)),
        ("embedding_length_per_layer_input", Entry::U32(32)),
        ("activation_sparsity_scale", Entry::F32s(sparsity.collect())),
    ]
}

/// The keys of the tokenizer and the chat template, as the shipped file has them.
fn tokenizer(writer: &mut Writer) {
    let shipped = std::fs::read(folder().join("nestd-demo-Q8_0.gguf")).unwrap();
    for (key, value) in Header::read(&shipped).unwrap().pairs() {
        let entry = match value {
            _ if !key.starts_with("tokenizer.") => continue,
            Value::Unsigned(value) => Entry::U32(value as u32),
            Value::Bool(value) => Entry::Bool(value),
            Value::String(value) => Entry::String(value.into()),
            Value::Array(list) => match list.scalars().next() {
                None => Entry::Strings(list.strings().map(<[u8]>::to_vec).collect()),
                Some(Value::Unsigned(_)) => Entry::I32s(
                    list.scalars().map(|value| value.as_u64().unwrap() as i32).collect(),
                ),
                Some(_) => Entry::F32s(
                    list.scalars().map(|value| value.as_f64().unwrap() as f32).collect(),
                ),
            },
            other => panic!("{key} is {other:?}"),
        };
        writer.pair(key, &entry);
    }
}

/// llama.cpp's name for a tensor of the published checkpoint.
fn gguf_name(name: &str) -> String {
    let name = name.strip_prefix("model.language_model.").unwrap();
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let (prefix, part) = match layer {
        Some((layer, part)) => (format!("blk.{layer}."), part),
        None => (String::new(), name),
    };
    let part = match part {
        "embed_tokens" => "token_embd",
        "embed_tokens_per_layer" => "per_layer_token_embd",
        "per_layer_model_projection" => "per_layer_model_proj",
        "per_layer_projection_norm" => "per_layer_proj_norm",
        "norm" => "output_norm",
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "post_attention_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "per_layer_input_gate" => "inp_gate",
        "per_layer_projection" => "proj",
        "post_per_layer_input_norm" => "post_norm",
        "altup.correction_coefs" => "altup_correct_coef",
        "altup.correct_output_scale" => "altup_correct_scale",
        "altup.prediction_coefs" => "altup_predict_coef",
        "altup.modality_router" => "altup_router",
        "altup.router_norm" => "altup_router_norm",
        "laurel.linear_left" => "laurel_l",
        "laurel.linear_right" => "laurel_r",
        "laurel.post_laurel_norm" => "laurel_post_norm",
        part if part.starts_with("altup_projections") => "altup_proj",
        part if part.starts_with("altup_unembed_projections") => "altup_unembd_proj",
        other => panic!("no name for {other}"),
    };
    format!("{prefix}{part}.weight")
}
