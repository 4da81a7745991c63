//! A matrix by columns, for layers where few inputs are other than zero.
//!
//! GGUF has a row's columns side by side, so that a product reads all of them. Here each group of 32
//! columns has the scales of all rows, and then for each column the values of all rows: a product
//! reads what belongs to inputs other than zero and nothing else. Nothing is rounded again.
//!
//! | kind | a group of 32 columns, for n rows |
//! | --- | --- |
//! | `Q4_0` | n scales (F16), 32 times n / 2 bytes |
//! | `Q8_0` | n scales (F16), 32 times n bytes |
//! | `Q4_K` | before each eighth group n times d (F16), n times dmin (F16); then n scales and n minima of a byte each, 32 times n / 2 bytes |
//!
//! Values of 4 bits go by 32 rows: 16 bytes, the lower halves the first 16 rows.

use std::io::{self, Write};

use crate::tensor::{Kind, Matrix};

/// A view of such a copy in somebody else's memory.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    kind: Kind,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

/// Where a group's parts are, all with a place for each row.
pub(super) struct Group<'a> {
    /// F16: d and dmin of `Q4_K`, d of the others.
    pub(super) d: &'a [u8],
    pub(super) dmin: &'a [u8],
    /// Bytes: scales and minima of `Q4_K`, empty for the others.
    pub(super) scales: &'a [u8],
    pub(super) minima: &'a [u8],
    /// The values of one column after the other.
    pub(super) values: &'a [u8],
}

/// Bytes of a column's values for each 32 rows; None for kinds without such a layout.
fn value_bytes(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Q4_0 | Kind::Q4_K => Some(16),
        Kind::Q8_0 => Some(32),
        _ => None,
    }
}

impl<'a> Columns<'a> {
    /// The bytes of a copy; None for kinds or sizes without such a layout: rows must be a multiple
    /// of 32, columns a whole number of blocks.
    #[must_use]
    pub fn size(kind: Kind, rows: usize, cols: usize) -> Option<usize> {
        let values = value_bytes(kind)?.checked_mul(rows / 32)?.checked_mul(cols)?;
        let scales = match kind {
            Kind::Q4_K => cols / 256 * 4 + cols / 32 * 2,
            _ => cols / 32 * 2,
        };
        (rows.is_multiple_of(32) && cols.is_multiple_of(kind.block_len()))
            .then(|| scales.checked_mul(rows)?.checked_add(values))
            .flatten()
    }

    /// A view of bytes that [`Self::write`] has written; None if the sizes do not fit together.
    #[must_use]
    pub fn new(kind: Kind, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Self> {
        (Self::size(kind, rows, cols)? == bytes.len()).then_some(Self { kind, rows, cols, bytes })
    }

    /// How the weights are stored.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Outputs of a product with it.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a product with it.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one column's values.
    pub(super) fn column_bytes(&self) -> usize {
        value_bytes(self.kind).unwrap_or(0) * (self.rows / 32)
    }

    /// The group of 32 columns with this number; None past the end.
    pub(super) fn group(&self, group: usize) -> Option<Group<'a>> {
        if group >= self.cols / 32 {
            return None;
        }
        let halves = 2 * self.rows;
        let values = 32 * self.column_bytes();
        let (d, rest, dmin, scales) = if self.kind == Kind::Q4_K {
            let whole = 2 * halves + 8 * (halves + values);
            let head = self.bytes.get(group / 8 * whole..)?;
            let (d, rest) = head.split_at_checked(halves)?;
            let (dmin, rest) = rest.split_at_checked(halves)?;
            (d, rest.get(group % 8 * (halves + values)..)?, dmin, self.rows)
        } else {
            let group = self.bytes.get(group * (halves + values)..)?;
            let (d, rest) = group.split_at_checked(halves)?;
            (d, rest, &[][..], 0)
        };
        let (scales_, rest) = rest.split_at_checked(scales)?;
        let (minima, rest) = rest.split_at_checked(scales)?;
        Some(Group { d, dmin, scales: scales_, minima, values: rest.get(..values)? })
    }

    /// Writes such a copy of a matrix, which may be tiled; an error of kind `Unsupported` where there is no layout.
    pub fn write(w: &Matrix<'_>, to: &mut impl Write) -> io::Result<()> {
        let kind = w.kind().untiled();
        if Self::size(kind, w.rows(), w.cols()).is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let rows: Vec<_> = (0..w.rows()).map(|row| w.row(row)).collect();
        let mut part = Vec::new();
        for block in 0..w.cols() / kind.block_len() {
            part.clear();
            let size = kind.block_bytes();
            let blocks = || {
                let range = block * size..(block + 1) * size;
                rows.iter().map(move |row| row.get(range.clone()).unwrap_or_default())
            };
            match kind {
                Kind::Q4_K => put_q4_k(blocks, &mut part),
                Kind::Q8_0 => {
                    put(blocks(), 0..2, &mut part);
                    (2..34).for_each(|at| put(blocks(), at..at + 1, &mut part));
                }
                _ => {
                    put(blocks(), 0..2, &mut part);
                    put_nibbles(blocks, 2, &mut part);
                }
            }
            to.write_all(&part)?;
        }
        Ok(())
    }
}

/// Appends these bytes of each block.
fn put<'b>(
    blocks: impl Iterator<Item = &'b [u8]>,
    range: std::ops::Range<usize>,
    to: &mut Vec<u8>,
) {
    blocks.for_each(|block| to.extend(block.get(range.clone()).unwrap_or_default()));
}

/// Appends 32 columns, half a byte each, which begin `first` bytes into a block: there the lower
/// halves of 16 bytes are the first 16 columns.
fn put_nibbles<'b, B>(blocks: impl Fn() -> B, first: usize, to: &mut Vec<u8>)
where
    B: Iterator<Item = &'b [u8]>,
{
    put_halves(&blocks, first, 16, 0, to);
    put_halves(&blocks, first, 16, 4, to);
}

/// Appends `count` columns, the halves at `shift` of as many bytes.
fn put_halves<'b, B>(
    blocks: &impl Fn() -> B,
    first: usize,
    count: usize,
    shift: u8,
    to: &mut Vec<u8>,
) where
    B: Iterator<Item = &'b [u8]>,
{
    for at in first..first + count {
        let column: Vec<u8> =
            blocks().map(|b| b.get(at).map_or(0, |byte| byte >> shift & 15)).collect();
        for rows in column.chunks_exact(32) {
            let (low, high) = rows.split_at(16);
            to.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
        }
    }
}

fn put_q4_k<'b, B>(blocks: impl Fn() -> B, to: &mut Vec<u8>)
where
    B: Iterator<Item = &'b [u8]>,
{
    put(blocks(), 0..2, to);
    put(blocks(), 2..4, to);
    let scales: Vec<[(u8, u8); 8]> = blocks()
        .map(|block| {
            let packed = block.get(4..).and_then(|rest| rest.first_chunk());
            super::blocks::k_scales(*packed.unwrap_or(&[0; 12]))
        })
        .collect();
    for group in 0..8 {
        let of = |row: &[(u8, u8); 8]| row.get(group).copied().unwrap_or_default();
        to.extend(scales.iter().map(|row| of(row).0));
        to.extend(scales.iter().map(|row| of(row).1));
        // Two groups share 32 bytes.
        put_halves(&blocks, 16 + 32 * (group / 2), 32, if group % 2 == 0 { 0 } else { 4 }, to);
    }
}
