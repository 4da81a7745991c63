//! How fast the kernels are on this machine: decode (one token) as GB/s of weights on one and two
//! threads beside a plain read of the same memory, and prefill (64 tokens) as GFLOP/s.
//!
//! ```text
//! cargo run --release -p nestd-elastic --example kernels [KIND...]
//! ```
//! The figures are medians of alternated runs, as a shared machine's bandwidth moves by the minute.

use std::hint::black_box;
use std::time::Instant;

use nestd_elastic::kernels::{Input, Kernels, Out};
use nestd_elastic::tensor::{Kind, Matrix};

/// Weights for decode: more than any cache holds.
const BYTES: usize = 1 << 30;
/// Rows and columns of the matrices.
const SHAPES: [(usize, usize); 2] = [(2048, 8192), (8192, 2048)];
const ROUNDS: usize = 3;

/// Runs one closure for each thread and returns the seconds.
fn timed(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let work = &work;
            scope.spawn(move || work(thread));
        }
        work(0);
    });
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn read(bytes: &[u8], threads: usize) -> f64 {
    let seconds = timed(threads, |thread| {
        let part = bytes.len() / threads;
        let words = bytes.get(thread * part..(thread + 1) * part).unwrap_or_default();
        let mut sums = [0_u64; 32];
        for chunk in words.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*word);
            }
        }
        black_box(sums);
    });
    bytes.len() as f64 / seconds / 1e9
}

/// One token through matrices of that shape that fill the bytes, rows shared out to the threads.
fn decode(
    kernels: &Kernels,
    kind: Kind,
    bytes: &[u8],
    threads: usize,
    shape: (usize, usize),
) -> f64 {
    let (rows, cols) = shape;
    let len = kind.row_bytes(cols).unwrap_or(1) * rows;
    let matrices: Vec<Matrix<'_>> =
        bytes.chunks_exact(len).filter_map(|bytes| Matrix::new(kind, rows, cols, bytes)).collect();
    let mut x = Input::default();
    x.set(kernels, &vec![0.5; cols], 1, cols);
    let mut out = vec![0.0; rows];
    let shared = Out::new(&mut out, rows);
    let seconds = timed(threads, |thread| {
        let part = rows / threads;
        for w in &matrices {
            kernels.product(w, thread * part..(thread + 1) * part, &x, &shared);
        }
    });
    (matrices.len() * len) as f64 / seconds / 1e9
}

/// Many tokens through one matrix again and again.
fn prefill(
    kernels: &Kernels,
    kind: Kind,
    bytes: &[u8],
    tokens: usize,
    shape: (usize, usize),
) -> f64 {
    let (rows, cols) = shape;
    let len = kind.row_bytes(cols).unwrap_or(1) * rows;
    let Some(w) = bytes.get(..len).and_then(|bytes| Matrix::new(kind, rows, cols, bytes)) else {
        return f64::NAN;
    };
    let mut x = Input::default();
    x.set(kernels, &vec![0.5; tokens * cols], tokens, cols);
    let mut out = vec![0.0; tokens * rows];
    let shared = Out::new(&mut out, rows);
    let repeats = 6;
    let seconds = timed(2, |thread| {
        let part = rows / 2;
        for _ in 0..repeats {
            kernels.product(&w, thread * part..(thread + 1) * part, &x, &shared);
        }
    });
    (2 * rows * cols * tokens * repeats) as f64 / seconds / 1e9
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    // Half floats of modest size whatever the kind: 0x2c2c is 0.065.
    let bytes = vec![0x2c_u8; BYTES];
    println!("weights of {} MiB; GB/s: shape 2048x8192 / 8192x2048", BYTES >> 20);
    println!(
        "| ISA | kind | read 1 | decode 1 thread | read 2 | decode 2 threads | prefill 64 GFLOP/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for kernels in Kernels::all() {
        if kernels.name() == "plain" && !wanted.iter().any(|w| w == "plain") {
            continue;
        }
        for kind in Kind::ALL.into_iter().filter(|kind| wants(kind.name())) {
            let mut runs: [Vec<f64>; 8] = Default::default();
            for _ in 0..ROUNDS {
                let mut runs = runs.iter_mut();
                let mut keep = |value| runs.next().map(|runs| runs.push(value));
                for threads in [1, 2] {
                    keep(read(&bytes, threads));
                    for shape in SHAPES {
                        keep(decode(kernels, kind, &bytes, threads, shape));
                    }
                }
                for shape in SHAPES {
                    keep(prefill(kernels, kind, &bytes, 64, shape));
                }
            }
            let [read, one, one2, read2, two, two2, many, many2] = runs.map(median);
            println!(
                "| {} | {} | {read:.1} | {one:.1} / {one2:.1} | {read2:.1} | {two:.1} / {two2:.1} \
                 | {many:.0} / {many2:.0} |",
                kernels.name(),
                kind.name(),
            );
        }
    }
}
