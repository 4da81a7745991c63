//! A second copy of some matrices in an order that suits decode, in a file of its own.
//!
//! In layers with activation sparsity one unit in twenty survives, and `ffn_down` has a column for each
//! unit, which GGUF keeps spread over all rows. The side file has them by columns ([`Columns`]), so
//! that a token reads what it needs. It may be lost: it is made again from the model's file, is tied to
//! that file's length, time and header, and ends with a checksum. It is mapped like the model.
//!
//! Layout, little-endian: [`MAGIC`], the model's length, the seconds and nanoseconds of its last change
//! (8 bytes each), the CRC-32 of its header (4 bytes), 4 zeros, the CRC-32 of the rest, zeros up to 4096;
//! then for each layer with activation sparsity its columns, each filled up to a multiple of 4096.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::gguf::Header;
use crate::kernels::Columns;
use crate::map::{Identity, Mapping};
use crate::model::{Down, Model};

const MAGIC: &[u8; 8] = b"NESTDC01";
const ALIGNMENT: usize = 4096;
/// Bytes of the header up to the checksum of the rest.
const FIXED: usize = 40;

/// An open side file.
pub struct SideFile {
    map: Mapping,
    /// For each layer.
    places: Vec<Place>,
}

/// A layer's `ffn_down`, with the first byte and the length of its columns; None if it has none.
type Place = Option<(Down, usize, usize)>;

impl SideFile {
    /// Opens the side file of a model. None if there is none, or it is not this model's, or damaged.
    pub fn open(path: &Path, model: &Model) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let map = Mapping::open(path)?;
        let (places, end) = places(model);
        let bytes = map.bytes();
        let whole = bytes.len() == end
            && bytes.get(..FIXED) == Some(&identity(model)?)
            && bytes.get(FIXED..FIXED + 4)
                == Some(&crc32fast::hash(bytes.get(ALIGNMENT..).unwrap_or_default()).to_le_bytes());
        Ok(whole.then_some(Self { map, places }))
    }

    /// Opens the side file of a model, which is made first if there is none, or it is not this model's. None
    /// if the model has nothing to put into one.
    pub fn open_or_write(path: &Path, model: &Model) -> Result<Option<Self>> {
        match Self::open(path, model)? {
            None if Self::write(path, model)? => Self::open(path, model),
            side => Ok(side),
        }
    }

    /// Makes the side file of a model: beside the place under another name first, so that it is there
    /// whole or not at all. False if no layer has anything to put into it.
    pub fn write(path: &Path, model: &Model) -> Result<bool> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let identity = identity(model)?;
        let (places, _) = places(model);
        if places.iter().all(Option::is_none) {
            return Ok(false);
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("side");
        let part = folder.join(format!(".{name}.{}.part", std::process::id()));
        let written = (|| {
            let mut out = Summed { out: BufWriter::new(File::create(&part)?), sum: None, len: 0 };
            out.write_all(&identity)?;
            out.pad()?;
            out.sum = Some(crc32fast::Hasher::new());
            for (down, _, _) in places.iter().flatten() {
                // Columns follow each other, so those of two parts are those of the whole.
                for part in down.parts() {
                    let matrix = part.matrix(model.map().bytes(), 0);
                    let matrix = matrix.ok_or(io::ErrorKind::InvalidData)?;
                    Columns::write(&matrix, &mut out)?;
                }
                out.pad()?;
            }
            let sum = out.sum.take().map_or(0, crc32fast::Hasher::finalize);
            let mut file = out.out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(FIXED as u64))?;
            file.write_all(&sum.to_le_bytes())?;
            file.sync_all()?;
            fs::rename(&part, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written.map_err(io)?;
        // What was copied while the file changed is void.
        model.map().check()?;
        Ok(true)
    }

    /// Fails if the file was changed after it was opened.
    pub fn check(&self) -> Result<()> {
        self.map.check()
    }

    /// The columns of a layer's `ffn_down`, where there are some.
    #[must_use]
    pub fn columns(&self, layer: usize) -> Option<Columns<'_>> {
        let (down, start, len) = self.places.get(layer)?.as_ref()?;
        let bytes = self.map.bytes().get(*start..start + len)?;
        Columns::new(down.first.kind.untiled(), down.first.rows, down.cols(), bytes)
    }
}

/// Where each layer's columns go, and the length of the file.
fn places(model: &Model) -> (Vec<Place>, usize) {
    let mut at = ALIGNMENT;
    let layers = model.weights.layers.iter().zip(&model.config().sparsity);
    let places = layers
        .map(|(layer, sparsity)| {
            let down = layer.down;
            let kind = down.first.kind.untiled();
            let len = Columns::size(kind, down.first.rows, down.cols())?;
            sparsity.map(|_| {
                let start = at;
                at = (at + len).next_multiple_of(ALIGNMENT);
                (down, start, len)
            })
        })
        .collect();
    (places, at)
}

/// The beginning of the file of this model.
fn identity(model: &Model) -> Result<[u8; FIXED]> {
    let map = model.map();
    // Of the file that is mapped: another may have its name by now.
    let Identity { len, changed: (seconds, nanoseconds) } = map.opened();
    let header = Header::read(map.bytes())?;
    let header = map.bytes().get(..header.data_start()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(FIXED);
    bytes.extend(MAGIC);
    bytes.extend(len.to_le_bytes());
    bytes.extend(seconds.to_le_bytes());
    bytes.extend(nanoseconds.to_le_bytes());
    bytes.extend(crc32fast::hash(header).to_le_bytes());
    bytes.resize(FIXED, 0);
    Ok(bytes.try_into().unwrap_or([0; FIXED]))
}

/// Counts and sums what goes through.
struct Summed<W> {
    out: W,
    sum: Option<crc32fast::Hasher>,
    len: usize,
}

impl<W: Write> Summed<W> {
    /// Zeros up to the next multiple of the alignment.
    fn pad(&mut self) -> io::Result<()> {
        let padding = self.len.next_multiple_of(ALIGNMENT) - self.len;
        self.write_all([0; ALIGNMENT].get(..padding).unwrap_or_default())
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        if let (Some(sum), Some(bytes)) = (&mut self.sum, bytes.get(..written)) {
            sum.update(bytes);
        }
        self.len += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
