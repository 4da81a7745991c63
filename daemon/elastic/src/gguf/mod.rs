//! The header of a GGUF file (versions 2 and 3), read where it lies.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing is copied but the
//! tensors' names: a vocabulary of 262,144 strings stays in the mapping. Every length is checked
//! against what is left of the file before it is believed, and every tensor against the file and its
//! neighbours, so a header that lies is refused with the key or the tensor.

mod value;
mod write;

use std::collections::HashMap;

pub use value::{Array, Value};
pub use write::{Entry, Writer};

use crate::error::{Error, Result};
use crate::tensor::{Kind, Matrix};

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT: usize = 32;
/// More than any model has.
const MAX_TENSORS: u64 = 1 << 16;
const MAX_PAIRS: u64 = 1 << 12;
const MAX_NAME_BYTES: usize = 256;
/// Bytes of a header, ten times those of the largest vocabulary with its merges. A file of holes may claim texts
/// and lists of any length, and all of them are looked at.
const MAX_BYTES: usize = 256 << 20;
const MAX_DIMENSION: u64 = 1 << 32;

/// What a file says of itself, borrowed from its bytes.
#[derive(Debug)]
pub struct Header<'a> {
    pairs: HashMap<&'a str, Value<'a>>,
    tensors: HashMap<&'a str, Tensor>,
    /// The keys and their values as they lie there.
    pair_bytes: &'a [u8],
    /// Tensors begin at multiples of it.
    alignment: usize,
    /// A tensor of a kind that is not known here.
    unknown: Option<&'a str>,
    /// Bytes in front of the first tensor.
    data_start: usize,
}

/// Where a tensor lies. `rows` and `cols` are of one matrix; a vector is one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// How its weights are stored.
    pub kind: Kind,
    /// Matrices that follow each other.
    pub count: usize,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns of a matrix.
    pub cols: usize,
    /// The first byte, from the start of the file.
    pub start: usize,
    /// Bytes in all.
    pub len: usize,
}

impl Tensor {
    /// The bytes that it takes of the file.
    #[must_use]
    pub fn bytes<'f>(&self, file: &'f [u8]) -> &'f [u8] {
        file.get(self.start..self.start.saturating_add(self.len)).unwrap_or_default()
    }

    /// Its matrix, or one of them. `file` is what the header was read from.
    #[must_use]
    pub fn matrix<'f>(&self, file: &'f [u8], index: usize) -> Option<Matrix<'f>> {
        let bytes = self.len / self.count.max(1);
        let bytes = self.bytes(file).get(index.checked_mul(bytes)?..)?.get(..bytes)?;
        Matrix::new(self.kind, self.rows, self.cols, bytes)
    }
}

impl<'a> Header<'a> {
    /// Reads and checks the header of `file`.
    pub fn read(file: &'a [u8]) -> Result<Self> {
        let mut reader = value::Reader::new(file.get(..MAX_BYTES).unwrap_or(file));
        let short = || Error::format("header", "the file ends in it");
        if reader.take(4).ok_or_else(short)? != MAGIC {
            return Err(Error::format("header", "it does not begin with GGUF"));
        }
        let version = reader.u32().ok_or_else(short)?;
        if !(2..=3).contains(&version) {
            return Err(Error::unsupported(
                "header",
                format!("GGUF version {version}, not 2 or 3"),
            ));
        }
        let tensors = reader.u64().ok_or_else(short)?;
        let pairs = reader.u64().ok_or_else(short)?;
        if tensors > MAX_TENSORS || pairs > MAX_PAIRS {
            return Err(Error::format("header", format!("{tensors} tensors and {pairs} keys")));
        }
        let first = reader.position();
        let pairs = read_pairs(&mut reader, pairs)?;
        let pair_bytes = file.get(first..reader.position()).unwrap_or_default();
        let alignment = match pairs.get("general.alignment") {
            None => ALIGNMENT,
            Some(value) => match value.as_u64().map(usize::try_from) {
                Some(Ok(size)) if size.is_power_of_two() && (8..=1 << 16).contains(&size) => size,
                _ => return Err(Error::format("general.alignment", "not a power of two above 4")),
            },
        };
        let entries = read_entries(&mut reader, tensors)?;
        let data_start = reader.position().next_multiple_of(alignment);
        let tensors = place(&entries, file.len(), data_start, alignment)?;
        let unknown = entries.iter().find(|entry| Kind::from_code(entry.code).is_none());
        let unknown = unknown.map(|entry| entry.name);
        Ok(Self { pairs, tensors, pair_bytes, alignment, unknown, data_start })
    }

    /// The value of a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.pairs.get(key).copied()
    }

    /// Every key, in order.
    #[must_use]
    pub fn pairs(&self) -> Vec<(&'a str, Value<'a>)> {
        let mut pairs: Vec<_> = self.pairs.iter().map(|(key, value)| (*key, *value)).collect();
        pairs.sort_unstable_by_key(|(key, _)| *key);
        pairs
    }

    /// A tensor by its name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).copied()
    }

    /// A tensor that is left out, because its kind is not known here.
    #[must_use]
    pub fn unknown(&self) -> Option<&'a str> {
        self.unknown
    }

    /// Every tensor, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> Vec<(&'a str, Tensor)> {
        let mut tensors: Vec<_> = self.tensors.iter().map(|(name, t)| (*name, *t)).collect();
        tensors.sort_unstable_by_key(|(_, tensor)| tensor.start);
        tensors
    }

    /// Bytes in front of the first tensor.
    #[must_use]
    pub fn data_start(&self) -> usize {
        self.data_start
    }
}

fn read_pairs<'a>(
    reader: &mut value::Reader<'a>,
    count: u64,
) -> Result<HashMap<&'a str, Value<'a>>> {
    let mut pairs = HashMap::new();
    for index in 0..count {
        let key = reader
            .string()
            .filter(|key| !key.is_empty() && key.len() <= MAX_NAME_BYTES)
            .ok_or_else(|| Error::format(format!("key {index}"), "its name cannot be read"))?;
        let value = reader.value().ok_or_else(|| {
            Error::format(key, "its value is cut off, too long, or of an unknown type")
        })?;
        if pairs.insert(key, value).is_some() {
            return Err(Error::format(key, "it is there twice"));
        }
    }
    Ok(pairs)
}

/// A tensor as the header describes it, before it is compared with the file.
struct Described<'a> {
    name: &'a str,
    dims: [u64; 4],
    code: u32,
    offset: u64,
}

fn read_entries<'a>(reader: &mut value::Reader<'a>, count: u64) -> Result<Vec<Described<'a>>> {
    let mut entries = Vec::new();
    for index in 0..count {
        let name = reader
            .string()
            .filter(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES)
            .ok_or_else(|| Error::format(format!("tensor {index}"), "its name cannot be read"))?;
        let short = || Error::format(name, "the file ends in its description");
        let dimensions = reader.u32().ok_or_else(short)?;
        if !(1..=4).contains(&dimensions) {
            return Err(Error::format(name, format!("{dimensions} dimensions, not 1 to 4")));
        }
        let mut dims = [1; 4];
        for dim in dims.iter_mut().take(dimensions as usize) {
            *dim = reader.u64().ok_or_else(short)?;
            if *dim == 0 || *dim > MAX_DIMENSION {
                return Err(Error::format(name, format!("a dimension of {dim}")));
            }
        }
        let code = reader.u32().ok_or_else(short)?;
        let offset = reader.u64().ok_or_else(short)?;
        entries.push(Described { name, dims, code, offset });
    }
    Ok(entries)
}

/// Finds each tensor's place in the file. Tensors of kinds that are not known here are left out: if one
/// of them is needed, it is missed by name.
fn place<'a>(
    entries: &[Described<'a>],
    file_len: usize,
    data_start: usize,
    alignment: usize,
) -> Result<HashMap<&'a str, Tensor>> {
    let mut tensors = HashMap::new();
    let mut places = Vec::new();
    for Described { name, dims, code, offset } in entries {
        let Some(kind) = Kind::from_code(*code) else { continue };
        let [cols, rows, stacked, outer] =
            dims.map(|dim| usize::try_from(dim).unwrap_or(usize::MAX));
        let absurd = || Error::format(*name, format!("its dimensions {dims:?} are absurd"));
        let row_bytes = kind.row_bytes(cols).ok_or_else(|| {
            Error::format(*name, format!("rows of {cols} are no whole blocks of {}", kind.name()))
        })?;
        if !rows.is_multiple_of(kind.rows_together()) {
            let problem = format!("{rows} rows are no whole tiles of {}", kind.name());
            return Err(Error::format(*name, problem));
        }
        let count = stacked.checked_mul(outer).ok_or_else(absurd)?;
        let len = rows
            .checked_mul(row_bytes)
            .and_then(|matrix| matrix.checked_mul(count))
            .ok_or_else(absurd)?;
        let offset = usize::try_from(*offset).map_err(|_| absurd())?;
        if offset % alignment != 0 {
            return Err(Error::format(*name, format!("its offset {offset} is not aligned")));
        }
        let end = data_start.checked_add(offset).and_then(|start| start.checked_add(len));
        if end.is_none_or(|end| end > file_len) {
            return Err(Error::format(
                *name,
                format!(
                    "its {len} bytes at {offset} reach past the end of the file: is it cut off?"
                ),
            ));
        }
        let start = data_start + offset;
        let tensor = Tensor { kind, count, rows, cols, start, len };
        if tensors.insert(*name, tensor).is_some() {
            return Err(Error::format(*name, "it is there twice"));
        }
        places.push((start, len, *name));
    }
    places.sort_unstable();
    for (a, b) in places.iter().zip(places.iter().skip(1)) {
        if a.0 + a.1 > b.0 {
            return Err(Error::format(b.2, format!("it overlaps {}", a.2)));
        }
    }
    Ok(tensors)
}
