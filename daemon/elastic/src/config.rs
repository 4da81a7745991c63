//! The shape of a Gemma 3n model, from the keys of its GGUF header, each checked.
//!
//! Names and defaults are those of llama.cpp's converter and loader for the architecture `gemma3n`.

use crate::error::{Error, Result};
use crate::gguf::{Array, Header, Value};

/// What no model exceeds; beyond these a header is refused.
const MAX_LAYERS: u64 = 256;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_CONTEXT: u64 = 1 << 24;

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Full FFN width of each layer.
    pub widths: Vec<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, each read by `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of a layer's per-layer embedding (PLE).
    pub ple: usize,
    /// Streams of the `AltUp` stack; the layers compute on the first.
    pub altup: usize,
    /// Positions that sliding layers see.
    pub window: usize,
    /// Which layers attend to everything; the others slide.
    pub full: Vec<bool>,
    /// Layers, counted from the first, that own a KV cache; the rest read those of the last two kinds.
    pub own_kv: usize,
    /// Standard deviations above the mean that a gate must reach, for layers with activation sparsity.
    pub sparsity: Vec<Option<f32>>,
    /// The context that the model was trained for.
    pub context: usize,
    /// Base of the rotary embedding in full layers.
    pub rope_full: f32,
    /// The same in sliding layers.
    pub rope_sliding: f32,
    /// Added to mean squares.
    pub eps: f32,
    /// Logits are held within this, softly.
    pub softcap: f32,
}

impl Config {
    /// Reads and checks the keys.
    pub fn read(header: &Header<'_>) -> Result<Self> {
        let keys = Keys { header };
        match header.value("general.architecture").and_then(Value::as_str) {
            Some("gemma3n") => {}
            other => {
                let other = other.unwrap_or("missing");
                return Err(Error::unsupported(
                    "general.architecture",
                    format!("it is {other:?}, and this engine runs \"gemma3n\""),
                ));
            }
        }
        let layers = keys.count("block_count", 1..=MAX_LAYERS)?;
        let heads = keys.count("attention.head_count", 1..=1024)?;
        let kv_heads = keys.count("attention.head_count_kv", 1..=1024)?;
        if heads % kv_heads != 0 {
            return Err(Keys::wrong("attention.head_count_kv", "it does not divide the heads"));
        }
        let head_dim = keys.count("attention.key_length", 2..=4096)?;
        if head_dim % 2 != 0 || keys.count("attention.value_length", 1..=4096)? != head_dim {
            let problem = "keys and values are not of the same even length";
            return Err(Keys::wrong("attention.value_length", problem));
        }
        let shared = keys.count("attention.shared_kv_layers", 0..=MAX_LAYERS)?;
        let own_kv = layers.saturating_sub(shared);
        let full: Vec<bool> = keys
            .per_layer("attention.sliding_window_pattern", layers, Value::as_bool)?
            .into_iter()
            .map(|sliding| !sliding)
            .collect();
        let owners = full.get(..own_kv).unwrap_or_default();
        if shared > 0 && !(owners.contains(&true) && owners.contains(&false)) {
            let problem = "the layers that own caches are not of both kinds";
            return Err(Keys::wrong("attention.shared_kv_layers", problem));
        }
        let altup = keys.count("altup.num_inputs", 1..=16)?;
        if keys.count("altup.active_idx", 0..=15)? != 0 {
            let problem = "only the first input can be the active one";
            return Err(Error::unsupported("gemma3n.altup.active_idx", problem));
        }
        let sparsity = keys
            .per_layer("activation_sparsity_scale", layers, Value::as_f64)?
            .into_iter()
            .map(|scale| scale.is_finite().then_some(narrow(scale)))
            .collect();
        Ok(Self {
            hidden: keys.count("embedding_length", 1..=MAX_WIDTH)?,
            widths: keys.widths(layers)?,
            heads,
            kv_heads,
            head_dim,
            ple: keys.count("embedding_length_per_layer_input", 1..=MAX_WIDTH)?,
            altup,
            window: keys.count("attention.sliding_window", 1..=MAX_CONTEXT)?,
            full,
            own_kv,
            sparsity,
            context: keys.count("context_length", 1..=MAX_CONTEXT)?,
            rope_full: keys.positive("rope.freq_base", None)?,
            rope_sliding: keys.positive("rope.freq_base_swa", Some(10_000.0))?,
            eps: keys.positive("attention.layer_norm_rms_epsilon", None)?,
            softcap: keys.positive("final_logit_softcapping", Some(30.0))?,
        })
    }

    /// How many layers there are.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.full.len()
    }

    /// Width of the keys, and of the values, of one position.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The layer whose KV cache this layer reads.
    #[must_use]
    pub fn kv_source(&self, layer: usize) -> usize {
        if layer < self.own_kv {
            return layer;
        }
        let kind = self.full.get(layer);
        (0..self.own_kv).rev().find(|owner| self.full.get(*owner) == kind).unwrap_or(0)
    }
}

/// Keys hold what was an f32 before.
#[expect(clippy::cast_possible_truncation, reason = "that is meant")]
pub(crate) fn narrow(value: f64) -> f32 {
    value as f32
}

struct Keys<'h, 'a> {
    header: &'h Header<'a>,
}

impl<'a> Keys<'_, 'a> {
    fn wrong(key: &str, problem: impl Into<String>) -> Error {
        Error::format(format!("gemma3n.{key}"), problem)
    }

    fn value(&self, key: &str) -> Result<Value<'a>> {
        self.header
            .value(&format!("gemma3n.{key}"))
            .ok_or_else(|| Self::wrong(key, "the key is missing"))
    }

    fn count(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<usize> {
        let value = self.value(key)?.as_u64().filter(|value| range.contains(value));
        value.and_then(|value| usize::try_from(value).ok()).ok_or_else(|| {
            Self::wrong(key, format!("not a number from {} to {}", range.start(), range.end()))
        })
    }

    fn positive(&self, key: &str, default: Option<f32>) -> Result<f32> {
        let value = match (self.header.value(&format!("gemma3n.{key}")), default) {
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(Self::wrong(key, "the key is missing")),
            (Some(value), _) => value.as_f64(),
        };
        match value {
            Some(value) if value > 0.0 && value < 1e12 => Ok(narrow(value)),
            _ => Err(Self::wrong(key, "not a number above 0")),
        }
    }

    fn per_layer<T>(
        &self,
        key: &str,
        layers: usize,
        read: fn(Value<'a>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let list: Option<Vec<T>> = self
            .value(key)?
            .as_array()
            .filter(|array| array.len() == layers)
            .and_then(|array| array.scalars().map(read).collect());
        list.filter(|list| list.len() == layers)
            .ok_or_else(|| Self::wrong(key, format!("not a list of {layers}, one for each layer")))
    }

    /// A number for all layers, or one for each.
    fn widths(&self, layers: usize) -> Result<Vec<usize>> {
        let key = "feed_forward_length";
        let values: Vec<Value<'_>> = match self.value(key)? {
            // One more than there may be is as wrong as any number.
            Value::Array(array) => Array::scalars(&array).take(layers + 1).collect(),
            value => vec![value; layers],
        };
        let widths: Option<Vec<usize>> = values
            .into_iter()
            .map(|value| value.as_u64().filter(|width| (1..=MAX_WIDTH).contains(width)))
            .map(|width| width.and_then(|width| usize::try_from(width).ok()))
            .collect();
        widths
            .filter(|widths| widths.len() == layers)
            .ok_or_else(|| Self::wrong(key, format!("not {layers} widths from 1 to {MAX_WIDTH}")))
    }
}
