//! Nested files: a model in the order in which Nestd reads it.
//!
//! - Its matrices are tiled ([`crate::tiles`]) where they have whole tiles and are read whole for every token:
//!   not the per-layer embeddings, nor `ffn_up` in layers with activation sparsity, of which decode
//!   reads some rows.
//! - A row of `ffn_down` has the columns of all sizes side by side, and half a row at 4 bits is no whole
//!   number of pages: a narrow size keeps almost all pages of the wide one in memory. In a nested file
//!   there are two tensors in place of `blk.N.ffn_down.weight`, `blk.N.`[`FIRST`] with the columns of the
//!   narrowest size and `blk.N.`[`REST`] with those behind them.
//!
//! Everything else is as it was, nothing is rounded again, and the file is as long as before. It is for this
//! crate only: others do not know the tiled kinds, and miss `ffn_down` by its name.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::{Header, Tensor, Writer};
use crate::ladder;
use crate::model::Model;
use crate::synth::partial;
use crate::tensor::{Kind, Matrix};
use crate::tiles;

/// The columns of the narrowest size.
pub const FIRST: &str = "ffn_down_first.weight";
/// The columns behind those.
pub const REST: &str = "ffn_down_rest.weight";
/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

pub(crate) fn whole(layer: usize) -> String {
    format!("blk.{layer}.ffn_down.weight")
}

pub(crate) fn first(layer: usize) -> String {
    format!("blk.{layer}.{FIRST}")
}

pub(crate) fn rest(layer: usize) -> String {
    format!("blk.{layer}.{REST}")
}

/// Writes the nested file of a model, cut after its table of sizes, which goes with it where it is the
/// file's own. It appears under its name when it is whole and on the disk; `progress` is told the bytes
/// done and the bytes in all.
pub fn write(from: &Path, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let model = Model::open(from)?;
    let header = Header::read(model.map().bytes())?;
    if let Some(name) = header.unknown() {
        return Err(Error::unsupported(name, "a tensor of a kind that is not known here"));
    }
    let cuts = cuts(from, &model)?;
    let parts = parts(&header, &cuts, &model);
    if parts.iter().all(Part::is_as_it_was) {
        let problem = "no size is narrower than the whole model and no matrix can be tiled, or the file is \
                       nested already";
        return Err(Error::unsupported(from.display().to_string(), problem));
    }
    let part = partial(to);
    let io = |source| Error::Io { path: to.to_owned(), source };
    let written = write_file(&part, &model, &header, &parts, progress)
        .map_err(io)
        // What was copied while the file changed is void.
        .and_then(|()| model.check())
        .and_then(|()| ladder::copy_table(from, to))
        .and_then(|()| fs::rename(&part, to).and_then(|()| sync_folder(to)).map_err(io));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Has a file's name on the disk too: whoever wrote a copy may remove the original.
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// For each layer the columns of the narrowest size that keeps it, where those are not all.
fn cuts(from: &Path, model: &Model) -> Result<Vec<Option<usize>>> {
    let mut narrowest: Vec<_> =
        model.weights.layers.iter().map(|layer| layer.down.cols()).collect();
    for size in ladder::sizes_of(from, model.config())? {
        for (least, width) in narrowest.iter_mut().zip(model.slice(&size)?.widths()) {
            *least = width.map_or(*least, |width| width.min(*least));
        }
    }
    let layers = model.weights.layers.iter().zip(narrowest);
    Ok(layers.map(|(layer, least)| (least < layer.down.first.cols).then_some(least)).collect())
}

/// A tensor to write: some columns of one that is there.
struct Part {
    name: String,
    tensor: Tensor,
    /// What it is written as.
    kind: Kind,
    cols: Range<usize>,
}

impl Part {
    fn is_as_it_was(&self) -> bool {
        self.kind == self.tensor.kind && self.cols.len() == self.tensor.cols
    }

    /// The rows that lie together from this one on, as they are written.
    fn rows(&self, matrix: &Matrix<'_>, first: usize) -> Vec<u8> {
        // Cuts are at whole blocks.
        let bytes = |cols: usize| self.tensor.kind.untiled().row_bytes(cols).unwrap_or(0);
        let cut = bytes(self.cols.start)..bytes(self.cols.end);
        let row = |row: usize| {
            let bytes = matrix.row(first + row);
            bytes.get(cut.clone()).unwrap_or_default().to_vec()
        };
        if self.kind.is_tiled() {
            let rows: [Vec<u8>; tiles::ROWS] = std::array::from_fn(row);
            tiles::band(&rows.each_ref().map(Vec::as_slice), self.kind.block_bytes())
        } else {
            row(0)
        }
    }
}

fn parts(header: &Header<'_>, cuts: &[Option<usize>], model: &Model) -> Vec<Part> {
    let by_rows = read_by_rows(header, model);
    let mut parts = Vec::new();
    for (name, tensor) in header.tensors() {
        let layer = (0..cuts.len()).find(|layer| name == whole(*layer));
        let cut = layer.and_then(|layer| Some((layer, (*cuts.get(layer)?)?)));
        let mut add = |name: String, cols: Range<usize>| {
            let tiled = tiles::kind(tensor.kind, tensor.rows, cols.len());
            let tiled = tiled.filter(|_| !by_rows.contains(&name));
            parts.push(Part { name, tensor, kind: tiled.unwrap_or(tensor.kind), cols });
        };
        match cut {
            Some((layer, cut)) => {
                add(first(layer), 0..cut);
                add(rest(layer), cut..tensor.cols);
            }
            None => add(name.to_owned(), 0..tensor.cols),
        }
    }
    parts
}

/// The tensors of which a step reads some rows.
fn read_by_rows(header: &Header<'_>, model: &Model) -> Vec<String> {
    let sparse = model.config().sparsity.iter().enumerate().filter(|(_, cut)| cut.is_some());
    let mut names: Vec<String> =
        sparse.map(|(layer, _)| format!("blk.{layer}.ffn_up.weight")).collect();
    names.push("per_layer_token_embd.weight".to_owned());
    if !model.config().ple.is_multiple_of(tiles::ROWS) {
        names.push("per_layer_model_proj.weight".to_owned());
    }
    // Where it is the output matrix too, all of it is read.
    if header.tensor("output.weight").is_some() {
        names.push("token_embd.weight".to_owned());
    }
    names
}

fn write_file(
    path: &Path,
    model: &Model,
    header: &Header<'_>,
    parts: &[Part],
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let mut writer = Writer::like(header);
    for Part { name, tensor, kind, cols } in parts {
        let mut dims = vec![cols.len(), tensor.rows, tensor.count];
        while dims.len() > 1 && dims.last() == Some(&1) {
            dims.pop();
        }
        writer.tensor(name, *kind, &dims);
    }
    let total = parts.iter().map(|part| {
        let row = part.kind.row_bytes(part.cols.len()).unwrap_or(0);
        row * part.tensor.rows * part.tensor.count
    });
    let (mut done, total) = (0, total.sum::<usize>() as u64);
    let mut out = BufWriter::with_capacity(CHUNK, File::create(path)?);
    let mut next = parts.iter();
    writer.write(&mut out, |_, _, _, out| {
        let Some(part) = next.next() else { return Ok(()) };
        for index in 0..part.tensor.count {
            let matrix = part.tensor.matrix(model.map().bytes(), index);
            let matrix = matrix.ok_or(io::ErrorKind::InvalidData)?;
            for row in (0..matrix.rows()).step_by(part.kind.rows_together()) {
                let bytes = part.rows(&matrix, row);
                out.write_all(&bytes)?;
                done += bytes.len() as u64;
                progress(done, total);
            }
        }
        Ok(())
    })?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}
