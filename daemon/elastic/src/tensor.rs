//! Kinds of weights as GGUF has them, and matrices as views of a mapping.
//!
//! The layouts are those of the GGUF specification and ggml's block formats: a row is a sequence of
//! blocks, a block holds 32 or 256 weights with their scales, little-endian, without padding.

use std::borrow::Cow;

use crate::tiles;

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
    /// `Q4_0` by tiles ([`crate::tiles`]), as the following are of the other kinds.
    Q4_0x16,
    /// `Q8_0` by tiles.
    Q8_0x16,
    /// `Q4_K` by tiles.
    Q4_Kx16,
    /// `Q5_K` by tiles.
    Q5_Kx16,
    /// `Q6_K` by tiles.
    Q6_Kx16,
}

/// What the number of a tiled kind in a GGUF header has more than that of the kind it is made from. No other
/// program has kinds up there, nor can read these.
const TILED: u32 = 1 << 16;

impl Kind {
    /// Those that other programs know too.
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
            tiled => TILED + tiled.untiled().code(),
        }
    }

    /// The kind with this number in a GGUF header.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        let tiled = Self::ALL.into_iter().filter_map(Self::tiled);
        Self::ALL.into_iter().chain(tiled).find(|kind| kind.code() == code)
    }

    /// The same by tiles, for kinds that have it.
    #[must_use]
    pub const fn tiled(self) -> Option<Self> {
        match self {
            Self::Q4_0 => Some(Self::Q4_0x16),
            Self::Q8_0 => Some(Self::Q8_0x16),
            Self::Q4_K => Some(Self::Q4_Kx16),
            Self::Q5_K => Some(Self::Q5_Kx16),
            Self::Q6_K => Some(Self::Q6_Kx16),
            _ => None,
        }
    }

    /// The kind of the rows that [`Matrix::row`] gives: this one, or what a tiled one is made from.
    #[must_use]
    pub const fn untiled(self) -> Self {
        match self {
            Self::Q4_0x16 => Self::Q4_0,
            Self::Q8_0x16 => Self::Q8_0,
            Self::Q4_Kx16 => Self::Q4_K,
            Self::Q5_Kx16 => Self::Q5_K,
            Self::Q6_Kx16 => Self::Q6_K,
            kind => kind,
        }
    }

    /// Whether it is by tiles.
    #[must_use]
    pub fn is_tiled(self) -> bool {
        self != self.untiled()
    }

    /// Rows that lie together: those of a matrix are a multiple.
    #[must_use]
    pub fn rows_together(self) -> usize {
        if self.is_tiled() { tiles::ROWS } else { 1 }
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
            Self::Q4_0x16 => "Q4_0x16",
            Self::Q8_0x16 => "Q8_0x16",
            Self::Q4_Kx16 => "Q4_Kx16",
            Self::Q5_Kx16 => "Q5_Kx16",
            Self::Q6_Kx16 => "Q6_Kx16",
        }
    }

    /// Weights of a block, or of a row of a tile.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => tiles::COLS,
        }
    }

    /// Bytes of a block, or of a row of a tile.
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
            tiled => {
                let kind = tiled.untiled();
                kind.block_bytes() * tiles::COLS / kind.block_len()
            }
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
        let fits = rows.is_multiple_of(kind.rows_together());
        (fits && row_bytes.checked_mul(rows)? == bytes.len()).then_some(Self {
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

    /// The bytes of one row, of the kind [`Kind::untiled`], as many as there are columns; empty past the end.
    #[must_use]
    pub fn row(&self, row: usize) -> Cow<'a, [u8]> {
        let length = self.kind.row_bytes(self.cols).unwrap_or(0);
        let together = self.kind.rows_together();
        let start = (row / together).saturating_mul(self.row_bytes * together);
        let bytes = self.bytes.get(start..start.saturating_add(length * together));
        let bytes = bytes.unwrap_or_default();
        if self.kind.is_tiled() {
            Cow::Owned(tiles::row(bytes, row % together, self.kind.block_bytes()))
        } else {
            Cow::Borrowed(bytes)
        }
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
        let together = self.kind.rows_together();
        let Some(last) = (self.rows / together).checked_sub(1) else { return self.rows == 0 };
        let length = self.kind.row_bytes(self.cols).map(|length| length * together);
        let start = last.checked_mul(self.row_bytes * together);
        let end = start.zip(length).and_then(|(start, length)| start.checked_add(length));
        self.rows.is_multiple_of(together) && end.is_some_and(|end| end <= self.bytes.len())
    }

    /// The same with the first `cols` columns only; None unless that is a whole number of blocks.
    #[must_use]
    pub fn first_cols(&self, cols: usize) -> Option<Self> {
        (cols <= self.cols && cols.is_multiple_of(self.kind.block_len()))
            .then_some(Self { cols, ..*self })
    }
}
