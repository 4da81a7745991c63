//! Queries and the heads of a KV cache.

use nestd_elastic::kernels::{Cached, Head};

use super::*;

/// A cache of floats in each way of keeping it, and the values that it then stands for.
struct Caches {
    values: Vec<f32>,
    halves: Vec<u16>,
    /// Only for whole blocks.
    blocks: Option<Vec<u8>>,
}

impl Caches {
    fn new(random: &mut Random, rows: usize, width: usize) -> Self {
        let values = random.values(rows * width, 1.0);
        let halves = values.iter().map(|value| f16::from_f32(*value).to_bits()).collect();
        let mut blocks = Vec::new();
        let whole = width.is_multiple_of(32) && quantize(Kind::Q8_0, &values, &mut blocks);
        Self { values, halves, blocks: whole.then_some(blocks) }
    }

    fn all(&self) -> Vec<(Cached<'_>, Vec<f32>)> {
        let halves = self.halves.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect();
        let mut all = vec![
            (Cached::F32(&self.values), self.values.clone()),
            (Cached::F16(&self.halves), halves),
        ];
        if let Some(blocks) = &self.blocks {
            let mut rounded = vec![0.0; self.values.len()];
            dequantize(Kind::Q8_0, blocks, &mut rounded);
            all.push((Cached::Q8_0(blocks), rounded));
        }
        all
    }
}

/// The sum of the products, and of their sizes.
fn exact<'v>(terms: impl Iterator<Item = (&'v f32, &'v f32)>) -> (f64, f64) {
    let terms = terms.map(|(a, b)| f64::from(*a) * f64::from(*b));
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

#[test]
fn scores_and_sums_are_those_of_the_formula_whatever_the_ring() {
    let mut random = Random(6);
    let (ring, heads) = (37, 3);
    for dim in [2, 15, 16, 32, 50, 64, 256] {
        let width = heads * dim;
        let caches = Caches::new(&mut random, ring, width);
        for (positions, queries) in
            [(0..1, 1), (0..37, 4), (30..51, 2), (100..137, 5), (36..45, 3), (74..74, 2)]
        {
            let q = random.values(queries * dim, 2.0);
            let weights = random.values(queries * positions.len(), 1.0);
            for (cached, rounded) in caches.all() {
                let columns = dim..2 * dim;
                let head = Head::new(cached, width, columns.clone(), ring, positions.clone());
                let head = head.unwrap();
                let rows: Vec<&[f32]> = positions
                    .clone()
                    .map(|position| &rounded[position % ring * width..][columns.clone()])
                    .collect();
                for kernels in Kernels::all() {
                    let near = |got: f32, (sum, size): (f64, f64), what: &str| {
                        let error = (f64::from(got) - sum).abs();
                        let name = kernels.name();
                        assert!(error <= 1e-6 * size, "{name} {what} {dim} {positions:?}");
                    };
                    let mut scores = vec![f32::NAN; queries * rows.len()];
                    kernels.scores(&q, &head, &mut scores);
                    for (query, q) in q.chunks(dim).enumerate() {
                        for (i, row) in rows.iter().enumerate() {
                            let want = exact(q.iter().zip(*row));
                            near(scores[query * rows.len() + i], want, "score");
                        }
                    }
                    let mut out = vec![f32::NAN; queries * dim];
                    kernels.blend(&weights, &head, &mut out);
                    for (i, got) in out.iter().enumerate() {
                        let weights = weights.iter().skip(i / dim * rows.len());
                        let column = rows.iter().map(|row| &row[i % dim]);
                        near(*got, exact(weights.zip(column)), "sum");
                    }
                }
            }
        }
    }
}

/// Threads divide the heads as they are many, which must not change an answer.
#[test]
fn results_do_not_depend_on_how_many_queries_go_together() {
    let mut random = Random(9);
    let (dim, ring, queries) = (64, 40, 7);
    let caches = Caches::new(&mut random, ring, 2 * dim);
    let q = random.values(queries * dim, 1.0);
    let weights = random.values(queries * 33, 1.0);
    for (cached, _) in caches.all() {
        let head = Head::new(cached, 2 * dim, dim..2 * dim, ring, 20..53).unwrap();
        for kernels in Kernels::all() {
            let mut together = vec![0.0; queries * 33];
            kernels.scores(&q, &head, &mut together);
            let mut sums = vec![0.0; queries * dim];
            kernels.blend(&weights, &head, &mut sums);
            for query in 0..queries {
                let mut alone = vec![0.0; 33];
                kernels.scores(&q[query * dim..][..dim], &head, &mut alone);
                assert_eq!(alone, together[query * 33..][..33], "{}", kernels.name());
                let mut sum = vec![0.0; dim];
                kernels.blend(&weights[query * 33..][..33], &head, &mut sum);
                assert_eq!(sum, sums[query * dim..][..dim], "{}", kernels.name());
            }
        }
    }
}

#[test]
fn heads_that_are_not_there() {
    let values = vec![0.0; 4 * 8];
    let head = |columns, ring, positions| {
        Head::new(Cached::F32(&values), 8, columns, ring, positions).is_some()
    };
    assert!(head(4..8, 4, 10..14));
    assert!(!head(4..9, 4, 0..1), "columns beyond the row");
    assert!(!head(4..4, 4, 0..1), "no columns");
    assert!(!head(0..4, 5, 0..1), "more rows than the cache has");
    assert!(!head(0..4, 4, 0..5), "a position that has been written over");
    assert!(!head(0..4, 0, 0..1), "a cache without rows");
    assert!(!head(0..4, usize::MAX, 0..1), "rows without end");
    let blocks = vec![0; 4 * 68];
    let head = |columns| Head::new(Cached::Q8_0(&blocks), 64, columns, 4, 0..4).is_some();
    assert!(head(32..64) && !head(16..48) && !head(32..63));
}
