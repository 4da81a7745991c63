//! Tiled kinds: matrices in the order in which decode reads them.
//!
//! In GGUF a row's blocks follow each other, and a product takes the same columns of 16 rows at once: it reads
//! 16 places of memory in turn, which on a busy machine gets four fifths of what one place after the other
//! gets. In a tiled matrix those bytes lie side by side, already turned as vector registers hold them.
//! Nothing is rounded again: the blocks are those of the kind that it was made from ([`Kind::untiled`]).
//!
//! | level | holds |
//! | --- | --- |
//! | matrix | bands of [`ROWS`] rows |
//! | band | tiles of [`COLS`] columns |
//! | tile | the first four bytes of each row, the next four of each row, and so on; where a kind leaves two bytes over (`Q6_K`), then those of each row |
//!
//! A single row is spread over its band: matrices of which rows are read one by one stay as they are.

use crate::tensor::Kind;

/// Rows of a band.
pub const ROWS: usize = 16;
/// Columns of a tile.
pub const COLS: usize = 256;
/// Bytes that stay together.
const WORD: usize = 4;

/// The tiled kind that a matrix can have, if there is one.
#[must_use]
pub fn kind(kind: Kind, rows: usize, cols: usize) -> Option<Kind> {
    let fits = rows > 0 && rows.is_multiple_of(ROWS) && cols > 0 && cols.is_multiple_of(COLS);
    kind.tiled().filter(|_| fits)
}

/// Where the bytes of a row's stretch are in its tile: those of each word, and what is left over.
fn places(row: usize, stretch: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (words, rest) = (stretch / WORD, stretch % WORD);
    let word = move |at: usize| (at * ROWS + row) * WORD;
    let left = words * WORD * ROWS + row * rest;
    (0..words).map(move |at| word(at)..word(at) + WORD).chain(std::iter::once(left..left + rest))
}

/// The bytes of a band, from those of its rows, all of the same length: `stretch` bytes hold the columns of
/// one tile.
#[must_use]
pub fn band(rows: &[&[u8]; ROWS], stretch: usize) -> Vec<u8> {
    let len = rows.iter().map(|row| row.len()).min().unwrap_or(0) / stretch.max(1) * stretch;
    let mut band = vec![0; len * ROWS];
    for (number, row) in rows.iter().enumerate() {
        for (tile, mut row) in band.chunks_exact_mut(stretch * ROWS).zip(row.chunks(stretch)) {
            for place in places(number, stretch) {
                let Some((bytes, rest)) = row.split_at_checked(place.len()) else { break };
                row = rest;
                if let Some(to) = tile.get_mut(place) {
                    to.copy_from_slice(bytes);
                }
            }
        }
    }
    band
}

/// The bytes of one row of a band, of as many tiles as there are.
#[must_use]
pub fn row(band: &[u8], number: usize, stretch: usize) -> Vec<u8> {
    let mut row = Vec::with_capacity(band.len() / ROWS);
    for tile in band.chunks_exact(stretch.max(1) * ROWS) {
        for place in places(number, stretch) {
            row.extend(tile.get(place).unwrap_or_default());
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_a_band() {
        // As of Q6_K, whose blocks are no whole words, and Q4_0.
        for stretch in [210, 144] {
            let rows: [Vec<u8>; ROWS] = std::array::from_fn(|row| {
                (0..=250_u8).cycle().skip(7 * row).take(3 * stretch).collect()
            });
            let band = band(&rows.each_ref().map(Vec::as_slice), stretch);
            assert_eq!(band.len(), ROWS * 3 * stretch);
            for (number, bytes) in rows.iter().enumerate() {
                assert_eq!(&row(&band, number, stretch), bytes, "row {number}");
            }
            // The second word of the first row follows the first of all.
            assert_eq!(band.get(64..68), rows.first().and_then(|row| row.get(4..8)));
        }
    }

    #[test]
    fn only_whole_tiles() {
        assert_eq!(kind(Kind::Q4_0, 32, 512), Some(Kind::Q4_0x16));
        for (of, rows, cols) in [
            (Kind::Q4_0, 8, 512),
            (Kind::Q4_0, 32, 288),
            (Kind::F16, 32, 512),
            (Kind::Q4_0, 0, 256),
            (Kind::Q6_Kx16, 16, 256),
        ] {
            assert_eq!(kind(of, rows, cols), None, "{of:?} {rows}x{cols}");
        }
    }
}
