//! What `config.json` and `generation_config.json` of a Gemma 3n folder say, checked: every number is
//! bounded, so that products of them cannot overflow. Called by the parent module and by `view`.

use nestd_elastic::sizes::Shape;
use serde::Deserialize;

/// Where a key is absent, mistral.rs takes these.
const HEADS: u64 = 8;
const KV_HEADS: u64 = 4;
const HEAD_DIM: u64 = 256;
const VOCABULARY: u64 = 262_208;
const CONTEXT_TOKENS: u32 = 131_072;

const MAX_LAYERS: usize = 256;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_ROWS: u64 = 1 << 24;
const MAX_STREAMS: u64 = 16;
const MAX_CHANNELS: u64 = 1 << 12;
const MAX_KERNEL: u64 = 64;
/// What activation sparsity mistral.rs gives a slice, whatever the configuration says, and to how
/// many layers; and how many layers own a KV cache in it.
const SLICE_SPARSITY: f64 = 0.95;
const SLICE_SPARSE_LAYERS: usize = 10;
const SLICE_CACHE_LAYERS: usize = 20;

/// `config.json`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Config {
    model_type: String,
    /// The language model.
    #[serde(rename = "text_config")]
    pub text: Text,
    /// The vision tower's way into the language model; the tower itself is always the same.
    #[serde(rename = "vision_config")]
    pub vision: Vision,
    /// The audio tower.
    #[serde(rename = "audio_config")]
    pub audio: Audio,
    #[serde(default, rename = "quantization_config")]
    quantization: Option<serde::de::IgnoredAny>,
}

/// `text_config`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Text {
    /// Width of the residual stream.
    pub hidden_size: u64,
    #[serde(deserialize_with = "one_or_many")]
    intermediate_size: Vec<u64>,
    /// Layers, all of them.
    #[serde(rename = "num_hidden_layers")]
    pub layers: usize,
    /// Of those, the last ones that read the KV cache of another.
    #[serde(rename = "num_kv_shared_layers")]
    pub kv_shared_layers: usize,
    /// Attention heads.
    #[serde(rename = "num_attention_heads", default = "heads")]
    pub heads: u64,
    /// KV heads.
    #[serde(rename = "num_key_value_heads", default = "kv_heads")]
    pub kv_heads: u64,
    /// Width of a head.
    #[serde(default = "head_dim")]
    pub head_dim: u64,
    /// Rows of the token embedding.
    #[serde(default = "vocabulary")]
    pub vocab_size: u64,
    /// Rows of the per-layer embedding.
    pub vocab_size_per_layer_input: u64,
    /// Width of the per-layer embedding, for one layer.
    pub hidden_size_per_layer_input: u64,
    /// Streams of AltUp.
    pub altup_num_inputs: u64,
    /// Rank of LAuReL.
    pub laurel_rank: u64,
    /// The context that the model was made for.
    #[serde(rename = "max_position_embeddings", default = "context_tokens")]
    pub context_tokens: u32,
    /// Whether the output reads the token embedding.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    activation_sparsity_pattern: Vec<f64>,
    layer_types: Vec<String>,
}

/// `vision_config`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Vision {
    /// Width of the tower's output.
    #[serde(default = "vision_width")]
    pub hidden_size: u64,
    /// Rows of its own embedding.
    #[serde(default = "vision_rows")]
    pub vocab_size: u64,
}

/// `audio_config`. The published values go for what is absent.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Audio {
    /// Mel bands.
    pub input_feat_size: u64,
    /// Width of the conformer.
    pub hidden_size: u64,
    /// Heads of the conformer.
    pub conf_num_attention_heads: u64,
    /// Layers of the conformer.
    pub conf_num_hidden_layers: usize,
    /// Taps of its convolution.
    pub conf_conv_kernel_size: u64,
    /// Channels of the two subsampling convolutions.
    pub sscp_conv_channel_size: [u64; 2],
    /// Their kernels, time and frequency.
    pub sscp_conv_kernel_size: [[u64; 2]; 2],
    /// Their strides, time and frequency.
    pub sscp_conv_stride_size: [[u64; 2]; 2],
    /// Rows of its own embedding.
    pub vocab_size: u64,
}

impl Default for Audio {
    fn default() -> Self {
        Self {
            input_feat_size: 80,
            hidden_size: 1536,
            conf_num_attention_heads: 8,
            conf_num_hidden_layers: 12,
            conf_conv_kernel_size: 5,
            sscp_conv_channel_size: [128, 32],
            sscp_conv_kernel_size: [[3, 3], [3, 3]],
            sscp_conv_stride_size: [[2, 2], [2, 2]],
            vocab_size: 128,
        }
    }
}

impl Config {
    /// Reads and checks `config.json`.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        // The kind first: another model's configuration lacks keys of this one for a good reason.
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            model_type: String,
        }
        let kind: Kind = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if kind.model_type != "gemma3n" {
            return Err(format!(
                "model_type is {:?}, and only \"gemma3n\" can be loaded",
                kind.model_type
            ));
        }
        let config: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.quantization.is_some() {
            return Err("the weights are quantized already, and sizes can only be cut from \
                        unquantized ones: use the original checkpoint"
                .into());
        }
        let Text { layers, kv_shared_layers, .. } = self.text;
        if !(3..=MAX_LAYERS).contains(&layers) || kv_shared_layers + 2 > layers {
            return Err(format!(
                "text_config: {layers} layers of which {kv_shared_layers} share a KV cache: there \
                 are 3 to {MAX_LAYERS}, and two at least have their own"
            ));
        }
        for (key, count) in [
            ("intermediate_size", self.text.intermediate_size.len()),
            ("activation_sparsity_pattern", self.text.activation_sparsity_pattern.len()),
            ("layer_types", self.text.layer_types.len()),
        ] {
            if count != layers && !(key == "intermediate_size" && count == 1) {
                return Err(format!("text_config.{key} has {count} entries for {layers} layers"));
            }
        }
        let text = &self.text;
        let audio = &self.audio;
        let mut widths = vec![
            ("text_config.hidden_size", text.hidden_size),
            ("text_config.num_attention_heads", text.heads),
            ("text_config.num_key_value_heads", text.kv_heads),
            ("text_config.head_dim", text.head_dim),
            ("text_config.hidden_size_per_layer_input", text.hidden_size_per_layer_input),
            ("text_config.laurel_rank", text.laurel_rank),
            ("text_config.max_position_embeddings", text.context_tokens.into()),
            ("vision_config.hidden_size", self.vision.hidden_size),
            ("audio_config.input_feat_size", audio.input_feat_size),
            ("audio_config.hidden_size", audio.hidden_size),
            ("audio_config.conf_num_attention_heads", audio.conf_num_attention_heads),
            ("audio_config.conf_conv_kernel_size", audio.conf_conv_kernel_size),
        ];
        widths.extend(text.intermediate_size.iter().map(|w| ("text_config.intermediate_size", *w)));
        let channels = audio.sscp_conv_channel_size;
        let kernels = [audio.sscp_conv_kernel_size, audio.sscp_conv_stride_size];
        let kernels = kernels.as_flattened().as_flattened().iter();
        let rows = [
            ("text_config.vocab_size", text.vocab_size),
            ("text_config.vocab_size_per_layer_input", text.vocab_size_per_layer_input),
            ("vision_config.vocab_size", self.vision.vocab_size),
            ("audio_config.vocab_size", audio.vocab_size),
        ];
        let limited = widths
            .into_iter()
            .map(|(key, value)| (key, value, MAX_WIDTH))
            .chain(rows.map(|(key, value)| (key, value, MAX_ROWS)))
            .chain(channels.map(|n| ("audio_config.sscp_conv_channel_size", n, MAX_CHANNELS)))
            .chain(kernels.map(|n| ("audio_config.sscp_conv_*_size", *n, MAX_KERNEL)))
            .chain([
                ("text_config.altup_num_inputs", text.altup_num_inputs, MAX_STREAMS),
                (
                    "audio_config.conf_num_hidden_layers",
                    audio.conf_num_hidden_layers as u64,
                    MAX_LAYERS as u64,
                ),
            ]);
        for (key, value, limit) in limited {
            if !(1..=limit).contains(&value) {
                return Err(format!("{key}: {value} is not within 1 and {limit}"));
            }
        }
        if !text.heads.is_multiple_of(text.kv_heads) {
            return Err(format!("{} heads cannot share {} KV heads", text.heads, text.kv_heads));
        }
        Ok(())
    }

    /// What a table of sizes is checked against.
    #[must_use]
    pub fn shape(&self) -> Shape {
        let text = &self.text;
        let widths = match text.intermediate_size.as_slice() {
            [one] => vec![*one; text.layers],
            many => many.to_vec(),
        };
        Shape { widths, first_shared_layer: text.layers - text.kv_shared_layers }
    }

    /// Why mistral.rs would compute a size of this model wrongly, if it would: it does not read these
    /// values for a slice, but knows them.
    pub fn check_sliceable(&self) -> Result<(), String> {
        let text = &self.text;
        let shape = self.shape();
        if shape.first_shared_layer != SLICE_CACHE_LAYERS {
            return Err(format!(
                "{} layers own a KV cache, and sizes need {SLICE_CACHE_LAYERS}",
                shape.first_shared_layer
            ));
        }
        let wanted = |layer| if layer < SLICE_SPARSE_LAYERS { SLICE_SPARSITY } else { 0.0 };
        let pattern = text.activation_sparsity_pattern.iter().enumerate();
        if pattern.into_iter().any(|(layer, sparsity)| (sparsity - wanted(layer)).abs() > 1e-9) {
            return Err(format!(
                "sizes need an activation_sparsity_pattern of {SLICE_SPARSITY} in the first \
                 {SLICE_SPARSE_LAYERS} layers and 0 in the others"
            ));
        }
        if shape.widths.iter().any(|width| Some(width) != shape.widths.first()) {
            return Err("sizes need the same intermediate_size in every layer".into());
        }
        Ok(())
    }
}

/// `generation_config.json`: how tokens are drawn when a request does not say. Greedy if absent.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Generation {
    do_sample: bool,
    temperature: Option<f64>,
    /// At most this many of the likeliest tokens; 0 is all.
    pub top_k: Option<u32>,
    /// The likeliest tokens up to this much probability.
    pub top_p: Option<f64>,
    /// Tokens of at least this much of the likeliest one's probability.
    pub min_p: Option<f64>,
    /// Above 1: what was said becomes less likely.
    pub repetition_penalty: Option<f64>,
}

impl Generation {
    /// Reads `generation_config.json`.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }

    /// 0 is greedy.
    #[must_use]
    pub fn temperature(&self) -> f64 {
        if self.do_sample { self.temperature.unwrap_or(1.0) } else { 0.0 }
    }
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Numbers {
        One(u64),
        Many(Vec<u64>),
    }
    Ok(match Numbers::deserialize(from)? {
        Numbers::One(number) => vec![number],
        Numbers::Many(numbers) => numbers,
    })
}

fn heads() -> u64 {
    HEADS
}
fn kv_heads() -> u64 {
    KV_HEADS
}
fn head_dim() -> u64 {
    HEAD_DIM
}
fn vocabulary() -> u64 {
    VOCABULARY
}
fn context_tokens() -> u32 {
    CONTEXT_TOKENS
}
fn yes() -> bool {
    true
}
fn vision_width() -> u64 {
    2048
}
fn vision_rows() -> u64 {
    262_400
}
