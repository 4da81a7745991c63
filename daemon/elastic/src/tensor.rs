//! Kinds of weights as GGUF has them, and matrices as views of a mapping.
//!
//! The layouts are those of the GGUF specification and ggml's block formats: a row is a sequence of
//! blocks, a block holds 32 or 256 weights with their scales, little-endian, without padding.

use std::ops::Range;

/// How the weights of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the field's names")]
pub enum Kind {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// 32 weights of 4 bits, one F16 scale: 18 bytes. w = d (q - 8).
    Q4_0,
    /// 32 weights of 8 bits, one F16 scale: 34 bytes. w = d q.
    Q8_0,
    /// 256 weights of 4 bits in 8 sub-blocks with 6-bit scales and minima: 144 bytes.
    Q4_K,
    /// As `Q4_K` with a fifth bit: 176 bytes.
    Q5_K,
    /// 256 weights of 6 bits in 16 sub-blocks with 8-bit scales: 210 bytes.
    Q6_K,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The number of this kind in a GGUF header.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// The kind with this number in a GGUF header.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The field's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Weights of a block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of a row of `cols` weights; None if `cols` is no whole number of blocks, or absurd.
    #[must_use]
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len())
            .then(|| (cols / self.block_len()).checked_mul(self.block_bytes()))
            .flatten()
    }
}

/// A matrix of weights in somebody else's memory: `rows` rows of `row_bytes` bytes each. A view may
/// have fewer columns than its rows have in memory.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    kind: Kind,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// None if the sizes do not fit together.
    #[must_use]
    pub fn new(kind: Kind, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Self> {
        let row_bytes = kind.row_bytes(cols)?;
        (row_bytes.checked_mul(rows)? == bytes.len()).then_some(Self {
            kind,
            rows,
            cols,
            row_bytes,
            bytes,
        })
    }

    /// One without rows.
    #[must_use]
    pub fn empty() -> Self {
        Self { kind: Kind::F32, rows: 0, cols: 0, row_bytes: 0, bytes: &[] }
    }

    /// How its weights are stored.
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

    /// The bytes of one row, as many as there are columns; empty past the end.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u8] {
        let length = self.kind.row_bytes(self.cols).unwrap_or(0);
        let start = row.saturating_mul(self.row_bytes);
        self.bytes.get(start..start.saturating_add(length)).unwrap_or_default()
    }

    /// The first byte of the first row, for whoever finds all rows from there: the bytes of one row
    /// ([`Self::row`]) give no leave to read another's.
    #[must_use]
    pub(crate) fn start(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// Bytes from one row to the next.
    #[must_use]
    pub fn row_stride(&self) -> usize {
        self.row_bytes
    }

    /// Whether [`Self::row`] is as long as it should be for every row, which kernels rely on.
    #[must_use]
    pub fn holds_its_rows(&self) -> bool {
        let last = self.rows.wrapping_sub(1);
        self.rows == 0 || Some(self.row(last).len()) == self.kind.row_bytes(self.cols)
    }

    /// The same with the first `cols` columns only; None unless that is a whole number of blocks.
    #[must_use]
    pub fn first_cols(&self, cols: usize) -> Option<Self> {
        (cols <= self.cols && cols.is_multiple_of(self.kind.block_len()))
            .then_some(Self { cols, ..*self })
    }

    /// The same with these rows only; None if there are not as many.
    #[must_use]
    pub fn rows_range(&self, rows: Range<usize>) -> Option<Self> {
        let bytes = self
            .bytes
            .get(rows.start.checked_mul(self.row_bytes)?..rows.end.checked_mul(self.row_bytes)?)?;
        Some(Self { rows: rows.len(), bytes, ..*self })
    }
}
