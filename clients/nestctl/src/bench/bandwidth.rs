//! How fast these threads can read the weights when they do nothing else: the bound of decode.

use std::hint::black_box;
use std::time::Instant;

use nestd_elastic::gguf::Header;
use nestd_elastic::pool::Pool;

/// Read at most so much: far more than any cache holds.
const MOST: usize = 1 << 30;
/// Read by a thread at a time.
const PIECE: usize = 1 << 20;
/// The median of these counts; the pages are brought in before.
const ROUNDS: usize = 5;

/// Bytes a second of plain reading over the layers' weights.
pub fn measure(file: &[u8], header: &Header<'_>, pool: &mut Pool) -> f64 {
    let layers = || header.tensors().into_iter().filter(|(name, _)| name.starts_with("blk."));
    let start = layers().map(|(_, tensor)| tensor.start).min().unwrap_or(0);
    let end = layers().map(|(_, tensor)| tensor.start + tensor.len).max().unwrap_or(0);
    let bytes = file.get(start..end.min(start.saturating_add(MOST))).unwrap_or_default();
    read(bytes, pool);
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            read(bytes, pool);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(ROUNDS / 2).copied().unwrap_or(f64::NAN);
    bytes.len() as f64 / median
}

fn read(bytes: &[u8], pool: &mut Pool) {
    let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
    pool.run(pieces.len(), &|piece| {
        let mut sums = [0_u64; 32];
        let piece = pieces.get(piece).copied().unwrap_or_default();
        for chunk in piece.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*word);
            }
        }
        black_box(sums);
    });
}
