//! How fast the kernels are on this machine: decode (one token) as GB/s of weights on one and two
//! threads beside a plain read of the same memory, prefill (64 tokens) as GFLOP/s on two threads, and
//! what a sparse layer saves, where one unit in twenty is other than zero.
//!
//! ```text
//! cargo run --release -p nestd-elastic --example kernels [KIND...]
//! ```
//! The figures are medians of alternated runs, as a shared machine's bandwidth moves by the minute.

use std::hint::black_box;
use std::time::Instant;

use nestd_elastic::kernels::{Columns, Input, Kernels, Out};
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

/// Microseconds of one token on one thread: up with all rows and with those listed, down with all
/// columns and by columns.
fn sparse(kernels: &Kernels, kind: Kind, bytes: &[u8], round: usize) -> Option<[f64; 4]> {
    let (width, units) = (2048, 8192);
    let size = Columns::size(kind, width, units)?;
    let mut bits = 1_u64;
    let inputs: Vec<(u32, f32)> = (0..8192)
        .filter(|_| {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (bits >> 33).is_multiple_of(20)
        })
        .map(|unit| (unit, 0.5))
        .collect();
    let list: Vec<u32> = inputs.iter().map(|(unit, _)| *unit).collect();
    let mut x = Input::default();
    x.set(kernels, &vec![0.5; width], 1, width);
    let mut all = Input::default();
    all.set(kernels, &vec![0.5; units], 1, units);
    let mut out = vec![0.0; units];
    let out = Out::new(&mut out, units);
    // Other weights each time, or they would come from a cache.
    let mut parts = bytes.chunks_exact(size).cycle().skip(4 * round);
    let len = kind.row_bytes(width)? * units;
    let up = Matrix::new(kind, units, width, parts.next()?.get(..len)?)?;
    let whole = timed(1, |_| kernels.product(&up, 0..units, &x, &out));
    let up = Matrix::new(kind, units, width, parts.next()?.get(..len)?)?;
    let listed = timed(1, |_| kernels.product_of(&up, &list, 0..list.len(), &x, &out));
    let down = Matrix::new(kind, width, units, parts.next()?.get(..len)?)?;
    let dense = timed(1, |_| kernels.product(&down, 0..width, &all, &out));
    let down = Columns::new(kind, width, units, parts.next()?)?;
    let few = timed(1, |_| kernels.sparse_down(&down, 0..width, &inputs, &out));
    Some([whole, listed, dense, few].map(|seconds| seconds * 1e6))
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
        let kinds =
            Kind::ALL.into_iter().flat_map(|kind| std::iter::once(kind).chain(kind.tiled()));
        for kind in kinds.filter(|kind| wants(kind.name())) {
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
    println!();
    println!(
        "| ISA | kind | up 8192x2048, all rows | rows listed | down, dense | by columns (us) |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for kernels in Kernels::all() {
        if kernels.name() == "plain" {
            continue;
        }
        for kind in Kind::ALL.into_iter().filter(|kind| wants(kind.name())) {
            let mut runs: [Vec<f64>; 4] = Default::default();
            for round in 0..21 {
                let Some(times) = sparse(kernels, kind, &bytes, round) else { break };
                runs.iter_mut().zip(times).for_each(|(runs, time)| runs.push(time));
            }
            if runs.iter().any(|runs| !runs.is_empty()) {
                let [whole, listed, dense, few] = runs.map(median);
                println!(
                    "| {} | {} | {whole:.0} | {listed:.0} | {dense:.0} | {few:.0} |",
                    kernels.name(),
                    kind.name(),
                );
            }
        }
    }
}
