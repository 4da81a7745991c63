//! Writes models of random weights: Gemma 3n's real dimensions without its weights.
//!
//! Speed, memory and reading from storage depend on shapes and kinds alone, so such a file is enough
//! to measure a device, or to try a program, before the real one is there. It answers with noise. Every
//! key and tensor of the architecture is in it, in the kinds that llama.cpp's quantizer leaves, and
//! llama.cpp loads it too. Called by `nestctl model synth`, benchmarks and tests.

mod fill;
mod vocabulary;

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::gguf::{Entry, Writer};
use crate::tensor::Kind;

use self::fill::{Fill, Random};

/// Every fifth layer attends to everything.
const FULL_EVERY: usize = 5;
/// Standard deviations above the mean that 5 % of a normal distribution reach.
const TOP_5_PERCENT: f32 = 1.644_853_6;
/// What `general.file_type` calls each kind.
const FILE_TYPES: [(Quant, u32); 4] =
    [(Quant::Q4_0, 2), (Quant::Q4_K, 15), (Quant::Q8_0, 7), (Quant::F16, 1)];
/// Bytes that are made at a time.
const CHUNK: usize = 1 << 20;

/// The dimensions of a model to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What the file is called inside.
    pub name: &'static str,
    /// All layers.
    pub layers: usize,
    /// Layers that read the KV caches of others.
    pub shared_kv: usize,
    /// Layers, from the first, whose gates are cut to the top 5 %.
    pub sparse: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// FFN width.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of a layer's per-layer embedding; llama.cpp takes 256 only.
    pub ple: usize,
    /// Rank of `LAuReL`; llama.cpp takes 64 only.
    pub laurel: usize,
    /// Streams of the `AltUp` stack.
    pub altup: usize,
    /// Positions that sliding layers see.
    pub window: usize,
    /// Positions.
    pub context: usize,
    /// Tokens, and rows of both tables.
    pub vocabulary: usize,
}

impl Shape {
    /// Gemma 3n E4B.
    pub const E4B: Self = Self {
        name: "Gemma 3n E4B (synthetic)",
        layers: 35,
        shared_kv: 15,
        sparse: 10,
        hidden: 2048,
        width: 16384,
        heads: 8,
        kv_heads: 2,
        head_dim: 256,
        ple: 256,
        laurel: 64,
        altup: 4,
        window: 512,
        context: 32768,
        vocabulary: 262_400,
    };
    /// Gemma 3n E2B.
    pub const E2B: Self = Self {
        name: "Gemma 3n E2B (synthetic)",
        layers: 30,
        shared_kv: 10,
        width: 8192,
        ..Self::E4B
    };
    /// The smallest that every kind can be written for: 15 MB in 4 bits.
    pub const SMALL: Self = Self {
        name: "Gemma 3n small (synthetic)",
        layers: 25,
        shared_kv: 5,
        hidden: 256,
        width: 512,
        heads: 2,
        kv_heads: 1,
        head_dim: 128,
        window: 64,
        context: 2048,
        vocabulary: 1024,
        ..Self::E4B
    };

    /// Bytes of the file, but for the header.
    #[must_use]
    pub fn bytes(&self, quant: Quant) -> u64 {
        let bytes = |tensor: &Tensor| {
            let row = tensor.kind.row_bytes(tensor.cols()).unwrap_or(0);
            tensor.dims.iter().skip(1).fold(row as u64, |bytes, dim| bytes * *dim as u64)
        };
        self.tensors(quant).iter().map(bytes).sum()
    }
}

/// What the large matrices are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the field's names")]
pub enum Quant {
    /// 4 bits, embeddings in 6.
    Q4_0,
    /// 4 bits with finer scales, embeddings in 6.
    Q4_K,
    /// 8 bits.
    Q8_0,
    /// 16 bits.
    F16,
}

impl Quant {
    /// Large matrices.
    fn kind(self) -> Kind {
        match self {
            Self::Q4_0 => Kind::Q4_0,
            Self::Q4_K => Kind::Q4_K,
            Self::Q8_0 => Kind::Q8_0,
            Self::F16 => Kind::F16,
        }
    }

    /// Tables of which a token reads a row, one of them the output matrix too.
    fn embeddings(self) -> Kind {
        match self {
            Self::Q4_0 | Self::Q4_K => Kind::Q6_K,
            Self::Q8_0 => Kind::Q8_0,
            Self::F16 => Kind::F16,
        }
    }
}

/// Writes a model. The same seed makes the same file. It appears under its name when it is whole;
/// `progress` is told the bytes done and the bytes in all.
pub fn write(
    path: &Path,
    shape: &Shape,
    quant: Quant,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let part = partial(path);
    let result =
        write_file(&part, shape, quant, seed, progress).and_then(|()| std::fs::rename(&part, path));
    result.map_err(|source| {
        let _ = std::fs::remove_file(&part);
        Error::Io { path: path.to_owned(), source }
    })
}

/// The name until the file is whole, in the same folder.
#[must_use]
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

fn write_file(
    path: &Path,
    shape: &Shape,
    quant: Quant,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> std::io::Result<()> {
    let mut writer = Writer::default();
    keys(&mut writer, shape, quant);
    vocabulary::keys(&mut writer, shape.vocabulary, seed);
    let tensors = shape.tensors(quant);
    for tensor in &tensors {
        writer.tensor(tensor.name.clone(), tensor.kind, &tensor.dims);
    }
    let (mut done, total) = (0, shape.bytes(quant));
    let mut random = Random::new(seed);
    let mut tensors = tensors.iter();
    let mut chunk = Vec::new();
    let out = BufWriter::with_capacity(CHUNK, File::create(path)?);
    writer.write(out, |_, kind, length, out| {
        let Some(tensor) = tensors.next() else { return Ok(()) };
        let mut filler = tensor.fill.filler(kind);
        let whole_blocks = (CHUNK / kind.block_bytes()).max(1) * kind.block_bytes();
        let mut left = length;
        while left > 0 {
            chunk.resize(left.min(whole_blocks), 0);
            random.bytes(&mut chunk);
            filler.shape(&mut chunk);
            out.write_all(&chunk)?;
            left -= chunk.len();
            done += chunk.len() as u64;
            progress(done, total);
        }
        Ok(())
    })
}

fn keys(writer: &mut Writer, shape: &Shape, quant: Quant) {
    let number = |value: usize| Entry::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let layers = 0..shape.layers;
    let file_type = FILE_TYPES.iter().find(|(other, _)| *other == quant).map_or(0, |(_, t)| *t);
    let width = u32::try_from(shape.width).unwrap_or(u32::MAX);
    let sliding = layers.clone().map(|layer| layer % FULL_EVERY != FULL_EVERY - 1);
    let sparsity =
        layers.clone().map(|l| if l < shape.sparse { TOP_5_PERCENT } else { f32::NEG_INFINITY });
    let general = [
        ("architecture", Entry::String("gemma3n".into())),
        ("name", Entry::String(shape.name.into())),
        ("file_type", Entry::U32(file_type)),
        ("quantization_version", Entry::U32(2)),
    ];
    let model = [
        ("context_length", number(shape.context)),
        ("embedding_length", number(shape.hidden)),
        ("block_count", number(shape.layers)),
        ("feed_forward_length", Entry::U32s(layers.map(|_| width).collect())),
        ("attention.head_count", number(shape.heads)),
        ("attention.head_count_kv", number(shape.kv_heads)),
        ("attention.key_length", number(shape.head_dim)),
        ("attention.value_length", number(shape.head_dim)),
        ("attention.layer_norm_rms_epsilon", Entry::F32(1e-6)),
        ("attention.sliding_window", number(shape.window)),
        ("attention.sliding_window_pattern", Entry::Bools(sliding.collect())),
        ("attention.shared_kv_layers", number(shape.shared_kv)),
        ("altup.active_idx", Entry::U32(0)),
        ("altup.num_inputs", number(shape.altup)),
        ("embedding_length_per_layer_input", number(shape.ple)),
        ("activation_sparsity_scale", Entry::F32s(sparsity.collect())),
        ("rope.freq_base", Entry::F32(1e6)),
        ("rope.freq_base_swa", Entry::F32(1e4)),
        ("final_logit_softcapping", Entry::F32(30.0)),
    ];
    for (key, value) in general {
        writer.pair(format!("general.{key}"), &value);
    }
    for (key, value) in model {
        writer.pair(format!("gemma3n.{key}"), &value);
    }
}

/// A tensor to write.
struct Tensor {
    name: String,
    kind: Kind,
    dims: Vec<usize>,
    fill: Fill,
}

impl Tensor {
    fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(0)
    }
}

impl Shape {
    /// Every tensor, in the order of the file.
    fn tensors(&self, quant: Quant) -> Vec<Tensor> {
        let (hidden, ple, all) = (self.hidden, self.ple, self.layers * self.ple);
        let mut list = List { kind: quant.kind(), tensors: Vec::new() };
        let embeddings = quant.embeddings();
        // Lookups are multiplied by the root of their width, and are of standard deviation 1 then.
        let table = |width: usize| Fill::Spread(1.0 / (width as f32).sqrt());
        list.add("token_embd", embeddings, &[hidden, self.vocabulary], table(hidden));
        list.add("per_layer_token_embd", embeddings, &[all, self.vocabulary], table(ple));
        list.matrix_in("per_layer_model_proj", Kind::F16, &[hidden, all]);
        list.norm("per_layer_proj_norm", ple, 1.0);
        list.matrix_in("altup_proj", Kind::F16, &[hidden, hidden, self.altup - 1]);
        list.matrix_in("altup_unembd_proj", Kind::F16, &[hidden, hidden, self.altup - 1]);
        // The embedding is the output matrix too, so without the signs the likeliest next token
        // would always be the last one.
        list.add("output_norm", Kind::F32, &[hidden], Fill::Signs);
        for layer in 0..self.layers {
            self.layer(layer, &mut list);
        }
        list.tensors
    }

    fn layer(&self, index: usize, list: &mut List) {
        let Self { hidden, width, ple, altup, laurel, head_dim, .. } = *self;
        let (query, key) = (self.heads * head_dim, self.kv_heads * head_dim);
        let name = |part: &str| format!("blk.{index}.{part}");
        for (part, rows, cols) in [
            ("attn_q", query, hidden),
            ("attn_k", key, hidden),
            ("attn_v", key, hidden),
            ("attn_output", hidden, query),
            ("ffn_gate", width, hidden),
            ("ffn_up", width, hidden),
            ("ffn_down", hidden, width),
            ("inp_gate", ple, hidden),
            ("proj", hidden, ple),
        ] {
            list.matrix_in(&name(part), list.kind, &[cols, rows]);
        }
        list.matrix_in(&name("laurel_l"), Kind::F16, &[hidden, laurel]);
        list.matrix_in(&name("laurel_r"), Kind::F16, &[laurel, hidden]);
        // Normed branches are added to the stream: small weights keep 35 layers of them in bounds.
        // Those of queries and keys keep the softmax from choosing a single position.
        for (part, len, about) in [
            ("attn_norm", hidden, 1.0),
            ("attn_q_norm", head_dim, 0.4),
            ("attn_k_norm", head_dim, 0.4),
            ("post_attention_norm", hidden, 0.2),
            ("laurel_post_norm", hidden, 0.2),
            ("ffn_norm", hidden, 1.0),
            ("post_ffw_norm", hidden, 0.2),
            ("post_norm", hidden, 0.2),
            ("altup_router_norm", hidden, 1.0),
            ("altup_correct_scale", hidden, 1.0),
        ] {
            list.norm(&name(part), len, about);
        }
        for (part, rows, cols, spread) in [
            ("altup_router", altup, hidden, 1.0 / (hidden as f32).sqrt()),
            ("altup_predict_coef", altup * altup, altup, 0.02),
            ("altup_correct_coef", altup, altup, 0.1),
        ] {
            list.add(&name(part), Kind::F32, &[cols, rows], Fill::Spread(spread));
        }
    }
}

struct List {
    /// Of large matrices.
    kind: Kind,
    tensors: Vec<Tensor>,
}

impl List {
    fn add(&mut self, name: &str, kind: Kind, dims: &[usize], fill: Fill) {
        let name = format!("{name}.weight");
        self.tensors.push(Tensor { name, kind, dims: dims.to_vec(), fill });
    }

    /// One whose products are as large as its inputs.
    fn matrix_in(&mut self, name: &str, kind: Kind, dims: &[usize]) {
        let cols = dims.first().copied().unwrap_or(1).max(1);
        self.add(name, kind, dims, Fill::Spread(1.0 / (cols as f32).sqrt()));
    }

    fn norm(&mut self, name: &str, len: usize, about: f32) {
        self.add(name, Kind::F32, &[len], Fill::About(about));
    }
}
