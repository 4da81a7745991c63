//! Writes a GGUF file: synthetic models for benchmarks, nested copies, and models for tests.

use std::io::{self, Write};

use super::{ALIGNMENT, Header, MAGIC};
use crate::tensor::Kind;

/// A value to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A number.
    U32(u32),
    /// A number.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// A list.
    U32s(Vec<u32>),
    /// A list.
    I32s(Vec<i32>),
    /// A list.
    F32s(Vec<f32>),
    /// A list.
    Bools(Vec<bool>),
    /// A list of strings, which need not be UTF-8.
    Strings(Vec<Vec<u8>>),
}

/// What a file will hold. The tensors' data follow the header, in the order of their announcement.
#[derive(Debug)]
pub struct Writer {
    /// As they are in the file.
    pairs: Vec<u8>,
    count: u64,
    alignment: usize,
    tensors: Vec<(String, Kind, Vec<u64>)>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { pairs: Vec::new(), count: 0, alignment: ALIGNMENT, tensors: Vec::new() }
    }
}

impl Writer {
    /// With all keys of another file.
    #[must_use]
    pub fn like(header: &Header<'_>) -> Self {
        Self {
            pairs: header.pair_bytes.to_vec(),
            count: header.pairs.len() as u64,
            alignment: header.alignment,
            tensors: Vec::new(),
        }
    }

    /// Adds a key.
    pub fn pair(&mut self, key: impl AsRef<str>, value: &Entry) {
        name(key.as_ref(), &mut self.pairs);
        super::value::encode(value, &mut self.pairs);
        self.count += 1;
    }

    /// Announces a tensor; the innermost dimension, the columns, comes first.
    pub fn tensor(&mut self, name: impl Into<String>, kind: Kind, dims: &[usize]) {
        self.tensors.push((name.into(), kind, dims.iter().map(|dim| *dim as u64).collect()));
    }

    /// Writes the file. `data` is asked for each tensor in turn: name, kind and length in bytes; it
    /// writes exactly as many.
    pub fn write<W: Write>(
        &self,
        mut out: W,
        mut data: impl FnMut(&str, Kind, usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3_u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.count.to_le_bytes());
        header.extend(&self.pairs);
        let mut offset = 0_usize;
        let mut lengths = Vec::new();
        for (tensor, kind, dims) in &self.tensors {
            name(tensor, &mut header);
            header.extend(u32::try_from(dims.len()).unwrap_or(0).to_le_bytes());
            header.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            header.extend(kind.code().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            let length = length(*kind, dims).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("{tensor}: no whole blocks"))
            })?;
            lengths.push(length);
            offset += length.next_multiple_of(self.alignment);
        }
        header.resize(header.len().next_multiple_of(self.alignment), 0);
        out.write_all(&header)?;
        for ((tensor, kind, _), length) in self.tensors.iter().zip(lengths) {
            let mut counted = Counted { out: &mut out, left: length };
            data(tensor, *kind, length, &mut counted)?;
            if counted.left != 0 {
                let problem = format!("{tensor}: {} bytes are missing", counted.left);
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            let padding = length.next_multiple_of(self.alignment) - length;
            out.write_all(&vec![0; padding])?;
        }
        out.flush()
    }
}

fn name(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn length(kind: Kind, dims: &[u64]) -> Option<usize> {
    let (cols, rest) = dims.split_first()?;
    let row = kind.row_bytes(usize::try_from(*cols).ok()?)?;
    rest.iter().try_fold(row, |len, dim| len.checked_mul(usize::try_from(*dim).ok()?))
}

/// Lets through as many bytes as were announced.
struct Counted<W> {
    out: W,
    left: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than announced"));
        }
        self.out.write_all(bytes)?;
        self.left -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
