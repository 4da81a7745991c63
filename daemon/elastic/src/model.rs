//! A model: its file mapped, and every tensor that the forward pass reads, found and checked.
//!
//! Matrices stay where they are. Vectors (norms, `AltUp`'s small tables) are a few hundred KB and are
//! copied out as f32.

use std::cell::Cell;
use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::gguf::{Header, Tensor};
use crate::kernels;
use crate::map::Mapping;
use crate::nest;
use crate::sidefile::SideFile;
use crate::sizes::{Size, Slice};
use crate::tensor::Matrix;
use crate::tiles;

/// Values of all vectors together, many times those of any model. A file of holes may claim more than there
/// is memory.
const MAX_COPIED: usize = 1 << 25;

/// A model that can be run.
pub struct Model {
    map: Mapping,
    config: Config,
    pub(crate) weights: Weights,
    side: Option<SideFile>,
}

/// Where every tensor of a model lies.
pub(crate) struct Weights {
    /// Token embeddings, which are the output matrix too unless the file has one.
    pub embedding: Tensor,
    pub output: Tensor,
    /// Per-layer embeddings: a row for each token, all layers side by side.
    pub ple_table: Tensor,
    pub ple_projection: Tensor,
    pub ple_norm: Vec<f32>,
    /// For each further stream of the `AltUp` stack, in and out.
    pub altup_in: Tensor,
    pub altup_out: Tensor,
    pub output_norm: Vec<f32>,
    pub layers: Vec<Layer>,
}

/// The weights of one layer.
pub(crate) struct Layer {
    pub attn_norm: Vec<f32>,
    pub q: Tensor,
    pub q_norm: Vec<f32>,
    /// None for a layer that reads another's cache.
    pub kv: Option<KeyValue>,
    pub o: Tensor,
    pub post_attn_norm: Vec<f32>,
    pub laurel_left: Tensor,
    pub laurel_right: Tensor,
    pub laurel_norm: Vec<f32>,
    pub ffn_norm: Vec<f32>,
    pub gate: Tensor,
    pub up: Tensor,
    pub down: Down,
    pub post_ffn_norm: Vec<f32>,
    pub router: Vec<f32>,
    pub router_norm: Vec<f32>,
    pub predict: Vec<f32>,
    pub correct: Vec<f32>,
    pub correct_scale: Vec<f32>,
    pub ple_gate: Tensor,
    pub ple_projection: Tensor,
    pub post_ple_norm: Vec<f32>,
}

/// `ffn_down`, whose columns a size reads from the first on: one matrix, or, in a nested file
/// ([`crate::nest`]), two, so that a narrow size reads pages that no wide one's columns share.
#[derive(Clone, Copy)]
pub(crate) struct Down {
    pub first: Tensor,
    /// The columns behind those.
    pub rest: Option<Tensor>,
}

impl Down {
    pub fn parts(self) -> impl Iterator<Item = Tensor> {
        std::iter::once(self.first).chain(self.rest)
    }

    /// Of all parts.
    pub fn cols(self) -> usize {
        self.parts().map(|part| part.cols).sum()
    }

    /// The part in which a size of that width ends, and how many columns are in front of it.
    pub fn end(self, width: usize) -> (usize, Tensor) {
        let before = self.first.cols;
        let rest = self.rest.filter(|_| width > before).map(|rest| (before, rest));
        rest.unwrap_or((0, self.first))
    }
}

pub(crate) struct KeyValue {
    pub k: Tensor,
    pub k_norm: Vec<f32>,
    pub v: Tensor,
}

impl Model {
    /// Opens a file and checks everything that the forward pass relies on.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapping::open(path)?;
        let header = Header::read(map.bytes())?;
        let config = Config::read(&header)?;
        let find = Find {
            header: &header,
            file: map.bytes(),
            config: &config,
            left: Cell::new(MAX_COPIED),
        };
        let weights = find.weights()?;
        drop(header);
        // What is read a row here and a row there shall not pull in its neighbours.
        map.expect_random(&range(&weights.ple_table));
        Ok(Self { map, config, weights, side: None })
    }

    /// With its side file.
    #[must_use]
    pub fn with_side(self, side: SideFile) -> Self {
        Self { side: Some(side), ..self }
    }

    /// Its side file, if it has one.
    #[must_use]
    pub fn side(&self) -> Option<&SideFile> {
        self.side.as_ref()
    }

    /// Fails if one of its files was changed after it was opened.
    pub fn check(&self) -> Result<()> {
        self.map.check()?;
        self.side.as_ref().map_or(Ok(()), SideFile::check)
    }

    /// Its file.
    #[must_use]
    pub fn map(&self) -> &Mapping {
        &self.map
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tokens that it knows.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.weights.embedding.rows
    }

    /// A size as the forward pass takes it, checked against the weights.
    pub fn slice(&self, size: &Size) -> Result<Slice> {
        let slice = size.slice();
        let wrong = |problem: String| Error::format(format!("size {:?}", size.name), problem);
        if slice.widths().len() != self.weights.layers.len() {
            return Err(wrong(format!("it is not for {} layers", self.weights.layers.len())));
        }
        for (index, (width, layer)) in slice.widths().iter().zip(&self.weights.layers).enumerate() {
            let cols = layer.down.cols();
            let (before, part) = layer.down.end(width.unwrap_or(0));
            let block = part.kind.block_len();
            let rows = layer.gate.kind.rows_together().max(layer.up.kind.rows_together());
            let whole =
                |width: usize| (width - before).is_multiple_of(block) && width.is_multiple_of(rows);
            match width {
                None if index < self.config.own_kv => {
                    return Err(wrong(format!("layer {index} is read by others")));
                }
                Some(width) if *width == 0 || *width > cols || !whole(*width) => {
                    let block = block.max(rows);
                    return Err(wrong(format!(
                        "the width {width} of layer {index} is no multiple of {block} up to {cols}"
                    )));
                }
                _ => {}
            }
        }
        Ok(slice)
    }

    /// The whole model.
    #[must_use]
    pub fn full(&self) -> Slice {
        Slice::new(self.config.widths.iter().map(|width| Some(*width)).collect())
    }

    /// A matrix of this model.
    pub(crate) fn matrix(&self, tensor: &Tensor) -> Matrix<'_> {
        self.stacked(tensor, 0)
    }

    /// One of the matrices that are stacked in a tensor of this model.
    pub(crate) fn stacked(&self, tensor: &Tensor, index: usize) -> Matrix<'_> {
        // Every tensor was checked when the model was opened; an empty matrix would multiply to nothing.
        tensor.matrix(self.map.bytes(), index).unwrap_or_else(Matrix::empty)
    }
}

/// Where a tensor lies in the file.
pub(crate) fn range(tensor: &Tensor) -> std::ops::Range<usize> {
    tensor.start..tensor.start + tensor.len
}

/// Finds tensors by name and checks their shapes.
struct Find<'h, 'a> {
    header: &'h Header<'a>,
    file: &'a [u8],
    config: &'h Config,
    /// Values that may still be copied.
    left: Cell<usize>,
}

impl Find<'_, '_> {
    fn any(&self, name: &str) -> Result<Tensor> {
        self.header.tensor(name).ok_or_else(|| {
            Error::format(name, "the tensor is missing, or of a kind that is not known here")
        })
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.stack(name, 1, rows, cols)
    }

    /// Fails for a tiled tensor whose rows are read one by one.
    fn by_rows(name: &str, tensor: Tensor) -> Result<Tensor> {
        if tensor.kind.is_tiled() {
            let problem =
                format!("it is of kind {}, and its rows are read one by one", tensor.kind.name());
            return Err(Error::format(name, problem));
        }
        Ok(tensor)
    }

    fn stack(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<Tensor> {
        let tensor = self.any(name)?;
        let (is, wanted) = ((tensor.count, tensor.rows, tensor.cols), (count, rows, cols));
        if is == wanted {
            return Ok(tensor);
        }
        Err(Error::format(name, format!("it is of shape {is:?}, and {wanted:?} is needed")))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.small(name, 1, len)
    }

    fn small(&self, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>> {
        let tensor = Self::by_rows(name, self.matrix(name, rows, cols)?)?;
        let left = self.left.get().checked_sub(rows * cols);
        self.left.set(left.ok_or_else(|| Error::format(name, "the vectors are too large"))?);
        let mut values = vec![0.0; rows * cols];
        kernels::dequantize(tensor.kind, tensor.bytes(self.file), &mut values);
        if values.iter().all(|value: &f32| value.is_finite()) {
            Ok(values)
        } else {
            Err(Error::format(name, "not all of its values are finite"))
        }
    }

    fn weights(&self) -> Result<Weights> {
        let Config { hidden, ple, altup, .. } = *self.config;
        let layers = self.config.layers();
        let embedding = self.any("token_embd.weight")?;
        let vocabulary = embedding.rows;
        if embedding.count != 1 || embedding.cols != hidden || vocabulary > 1 << 22 {
            return Err(Error::format("token_embd.weight", "its shape is not the model's"));
        }
        let output = match self.header.tensor("output.weight") {
            Some(_) => self.matrix("output.weight", vocabulary, hidden)?,
            None => embedding,
        };
        let ple_table = "per_layer_token_embd.weight";
        let ple_table = Self::by_rows(ple_table, self.any(ple_table)?)?;
        if (ple_table.count, ple_table.cols) != (1, layers * ple) || ple_table.rows > vocabulary {
            let problem = format!("its rows are not {} wide", layers * ple);
            return Err(Error::format("per_layer_token_embd.weight", problem));
        }
        let ple_projection = "per_layer_model_proj.weight";
        let mut projection = self.matrix(ple_projection, layers * ple, hidden)?;
        if !ple.is_multiple_of(tiles::ROWS) {
            // The rows of a layer that is kept may begin within a tile.
            projection = Self::by_rows(ple_projection, projection)?;
        }
        Ok(Weights {
            embedding,
            output,
            ple_table,
            ple_projection: projection,
            ple_norm: self.vector("per_layer_proj_norm.weight", ple)?,
            altup_in: self.stack("altup_proj.weight", altup - 1, hidden, hidden)?,
            altup_out: self.stack("altup_unembd_proj.weight", altup - 1, hidden, hidden)?,
            output_norm: self.vector("output_norm.weight", hidden)?,
            layers: (0..layers).map(|index| self.layer(index)).collect::<Result<_>>()?,
        })
    }

    fn down(&self, index: usize, width: usize) -> Result<Down> {
        let hidden = self.config.hidden;
        let Some(first) = self.header.tensor(&nest::first(index)) else {
            let whole = self.matrix(&nest::whole(index), hidden, width)?;
            return Ok(Down { first: whole, rest: None });
        };
        let cols = width.saturating_sub(first.cols);
        let first = self.matrix(&nest::first(index), hidden, width - cols)?;
        let rest = self.matrix(&nest::rest(index), hidden, cols)?;
        if first.kind.untiled() != rest.kind.untiled() {
            return Err(Error::format(
                nest::rest(index),
                "its kind is not that of the columns before",
            ));
        }
        Ok(Down { first, rest: Some(rest) })
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let Config { hidden, heads, head_dim, ple, altup, .. } = *self.config;
        let (query, key) = (heads * head_dim, self.config.kv_width());
        let width = self.config.widths.get(index).copied().unwrap_or(0);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let matrix = |part: &str, rows, cols| self.matrix(&name(part), rows, cols);
        let vector = |part: &str, len| self.vector(&name(part), len);
        let laurel_left = self.any(&name("laurel_l"))?;
        let rank = laurel_left.rows;
        // No key tells it, and every row of a step takes as many floats: published models have 64.
        if rank > hidden {
            let problem = format!("its rank of {rank} is above the model's width of {hidden}");
            return Err(Error::format(name("laurel_l"), problem));
        }
        let kv = if index < self.config.own_kv {
            Some(KeyValue {
                k: matrix("attn_k", key, hidden)?,
                k_norm: vector("attn_k_norm", head_dim)?,
                v: matrix("attn_v", key, hidden)?,
            })
        } else {
            None
        };
        let down = self.down(index, width)?;
        let mut up = matrix("ffn_up", width, hidden)?;
        if self.config.sparsity.get(index).is_some_and(Option::is_some) {
            up = Self::by_rows(&name("ffn_up"), up)?;
        }
        Ok(Layer {
            attn_norm: vector("attn_norm", hidden)?,
            q: matrix("attn_q", query, hidden)?,
            q_norm: vector("attn_q_norm", head_dim)?,
            kv,
            o: matrix("attn_output", hidden, query)?,
            post_attn_norm: vector("post_attention_norm", hidden)?,
            laurel_left: matrix("laurel_l", rank, hidden)?,
            laurel_right: matrix("laurel_r", hidden, rank)?,
            laurel_norm: vector("laurel_post_norm", hidden)?,
            ffn_norm: vector("ffn_norm", hidden)?,
            gate: matrix("ffn_gate", width, hidden)?,
            up,
            down,
            post_ffn_norm: vector("post_ffw_norm", hidden)?,
            router: self.small(&name("altup_router"), altup, hidden)?,
            router_norm: vector("altup_router_norm", hidden)?,
            predict: self.small(&name("altup_predict_coef"), altup * altup, altup)?,
            correct: self.small(&name("altup_correct_coef"), altup, altup)?,
            correct_scale: vector("altup_correct_scale", hidden)?,
            ple_gate: matrix("inp_gate", ple, hidden)?,
            ple_projection: matrix("proj", hidden, ple)?,
            post_ple_norm: vector("post_norm", hidden)?,
        })
    }
}
