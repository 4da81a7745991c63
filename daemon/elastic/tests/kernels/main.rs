//! Every kernel that this CPU can run against the reference, and the reference against sums in f64.

#![allow(
    clippy::cast_possible_truncation,
    clippy::float_cmp,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod attention;
mod edges;

use half::f16;
use nestd_elastic::kernels::{Columns, Input, Kernels, Out, Window, dequantize, quantize};
use nestd_elastic::tensor::{Kind, Matrix};
use nestd_elastic::tiles;

/// `SplitMix64`: the same values every time.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Within -1..1.
    fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * scale).collect()
    }

    /// Rows of a kind: any bits, but scales of sensible size.
    fn weights(&mut self, kind: Kind, rows: usize, cols: usize) -> Vec<u8> {
        let values = self.values(rows * cols, 0.1);
        let mut bytes = Vec::new();
        if quantize(kind, &values, &mut bytes) {
            return bytes;
        }
        bytes.resize_with(kind.row_bytes(cols).unwrap() * rows, || self.bits() as u8);
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            let mut put = |at: usize, value: f32| {
                block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
            };
            if kind == Kind::Q6_K {
                put(208, self.value() / 4096.0);
            } else {
                put(0, self.value() / 1024.0);
                put(2, self.value() / 1024.0);
            }
        }
        bytes
    }
}

fn product(kernels: &Kernels, w: &Matrix<'_>, x: &Input) -> Vec<f32> {
    product_of(kernels, w, x.into(), x.tokens())
}

fn product_of(kernels: &Kernels, w: &Matrix<'_>, x: Window<'_>, tokens: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; w.rows() * tokens];
    let shared = Out::new(&mut out, w.rows());
    // As threads would do it.
    let middle = w.rows() / 3;
    kernels.product(w, 0..middle, x, &shared);
    kernels.product(w, middle..w.rows(), x, &shared);
    out
}

/// The product in f64 of what the kernel is given, and the sum of the terms' sizes.
fn exact(w: &Matrix<'_>, x: &Input) -> Vec<(f64, f64)> {
    let cols = w.cols();
    let mut out = vec![(0.0, 0.0); w.rows() * x.tokens()];
    let mut weights = vec![0.0; cols];
    for row in 0..w.rows() {
        dequantize(w.kind(), &w.row(row), &mut weights);
        for token in 0..x.tokens() {
            let (mut sum, mut size) = (0.0, 0.0);
            for (c, weight) in weights.iter().enumerate() {
                let at = token * cols + c;
                let value = match w.kind() {
                    Kind::F32 | Kind::F16 | Kind::BF16 => f64::from(x.values()[at]),
                    _ => f64::from(x.q()[at]) * f64::from(x.scales()[at / 32]),
                };
                let term = value * f64::from(*weight);
                sum += term;
                size += term.abs();
            }
            out[token * w.rows() + row] = (sum, size);
        }
    }
    out
}

/// What runs on this CPU is in the log, and is what was expected where the caller says it
/// (`EXPECTED_KERNELS`, the slowest first, between commas): tests/aarch64.sh does.
#[test]
fn the_kernels_of_this_cpu() {
    let names: Vec<&str> = Kernels::all().iter().map(|kernels| kernels.name()).collect();
    let names = names.join(",");
    println!("kernels: {names}");
    if let Ok(expected) = std::env::var("EXPECTED_KERNELS") {
        assert_eq!(names, expected);
    }
    assert_eq!(names.rsplit(',').next(), Some(Kernels::best().name()));
}

#[test]
fn products_of_every_kind_and_shape() {
    let mut random = Random(1);
    let shapes = [
        (1, 1, 1),
        (3, 1, 2),
        (16, 2, 1),
        (17, 3, 3),
        (31, 9, 4),
        (33, 8, 5),
        (50, 4, 7),
        (70, 1, 70),
        (40, 2, 130),
    ];
    let variants = [(0, 1.0), (1, 1e4), (0, 1e-12), (1, 0.0)];
    for (at, kind) in Kind::ALL.into_iter().enumerate() {
        for (i, (rows, units, tokens)) in shapes.into_iter().enumerate() {
            let (cut, scale) = variants[(at + i) % variants.len()];
            let unit = kind.block_len().max(32);
            let more = units * unit;
            let cols = more - cut.min(units - 1) * unit;
            let bytes = random.weights(kind, rows, more);
            let whole = Matrix::new(kind, rows, more, &bytes).unwrap();
            let w = whole.first_cols(cols).unwrap();
            // One sign more often than the other: offsets and minima count.
            let mut values = random.values(tokens * cols, scale);
            for value in &mut values {
                *value += 0.3 * scale;
            }
            let mut x = Input::default();
            x.set(Kernels::all()[0], &values, tokens, cols);
            let exact = exact(&w, &x);
            for kernels in Kernels::all() {
                x.set(kernels, &values, tokens, cols);
                let got = product(kernels, &w, &x);
                for (i, (got, (sum, size))) in got.iter().zip(&exact).enumerate() {
                    let error = (f64::from(*got) - sum).abs();
                    assert!(
                        error <= 4e-6 * size + 1e-30,
                        "{} {kind:?} {rows}x{cols} {tokens} tokens, {i}: {got} for {sum}, \
                         terms {size}",
                        kernels.name(),
                    );
                }
            }
        }
    }
}

/// The same matrix by tiles.
fn tiled(w: &Matrix<'_>) -> (Kind, Vec<u8>) {
    let kind = tiles::kind(w.kind(), w.rows(), w.cols()).unwrap();
    let rows: Vec<_> = (0..w.rows()).map(|row| w.row(row)).collect();
    let bands = rows.as_chunks::<{ tiles::ROWS }>().0.iter();
    let bands =
        bands.map(|rows| tiles::band(&rows.each_ref().map(|row| &**row), kind.block_bytes()));
    (kind, bands.collect::<Vec<_>>().concat())
}

/// To the last bit: the sums are the same in the same order.
#[test]
fn tiled_products_are_those_of_the_rows() {
    let mut random = Random(3);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.tiled().is_some()) {
        for (rows, units, cut, tokens) in [
            (16, 1, 1, 1),
            (48, 3, 3, 1),
            (80, 4, 3, 1),
            (16, 2, 2, 2),
            (48, 3, 2, 3),
            (80, 2, 2, 70),
            (96, 1, 1, 130),
        ] {
            let bytes = random.weights(kind, rows, units * tiles::COLS);
            let by_rows = Matrix::new(kind, rows, units * tiles::COLS, &bytes).unwrap();
            let (kind, bytes) = tiled(&by_rows);
            let by_tiles = Matrix::new(kind, rows, units * tiles::COLS, &bytes).unwrap();
            assert!((0..rows).all(|row| by_tiles.row(row) == by_rows.row(row)), "{kind:?}");
            let cols = cut * tiles::COLS;
            let by_rows = by_rows.first_cols(cols).unwrap();
            let by_tiles = by_tiles.first_cols(cols).unwrap();
            assert!((0..rows).all(|row| by_tiles.row(row) == by_rows.row(row)), "{kind:?}");
            assert!(by_tiles.first_cols(cols - 32).is_none());
            for kernels in Kernels::all() {
                let mut x = Input::default();
                x.set(kernels, &random.values(tokens * cols, 1.0), tokens, cols);
                let (mut wanted, mut got) = (vec![0.0; rows * tokens], vec![1.0; rows * tokens]);
                kernels.product(&by_rows, 0..rows, &x, &Out::new(&mut wanted, rows));
                let out = Out::new(&mut got, rows);
                kernels.product(&by_tiles, 0..16, &x, &out);
                kernels.product(&by_tiles, 16..rows, &x, &out);
                assert_eq!(got, wanted, "{} {kind:?} {rows}x{cols} {tokens}", kernels.name());
            }
        }
    }
}

#[test]
#[cfg(not(debug_assertions))]
fn parts_of_tiles_are_not_multiplied() {
    let mut random = Random(9);
    let bytes = random.weights(Kind::Q4_0, 32, 256);
    let (kind, bytes) = tiled(&Matrix::new(Kind::Q4_0, 32, 256, &bytes).unwrap());
    assert!(Matrix::new(kind, 24, 256, &bytes[..24 * 144]).is_none());
    let w = Matrix::new(kind, 32, 256, &bytes).unwrap();
    for kernels in Kernels::all() {
        let mut x = Input::default();
        x.set(kernels, &random.values(256, 1.0), 1, 256);
        let mut out = vec![7.0; 32];
        kernels.product(&w, 0..8, &x, &Out::new(&mut out, 32));
        kernels.product(&w, 8..32, &x, &Out::new(&mut out, 32));
        kernels.product_of(&w, &[0, 16], 0..2, &x, &Out::new(&mut out, 32));
        assert_eq!(out, [7.0; 32], "{}", kernels.name());
    }
}

#[test]
fn floats_of_odd_lengths() {
    let mut random = Random(2);
    for kind in [Kind::F32, Kind::F16, Kind::BF16] {
        for cols in [1, 5, 16, 63, 129, 300] {
            let bytes = random.weights(kind, 5, cols);
            let w = Matrix::new(kind, 5, cols, &bytes).unwrap();
            for kernels in Kernels::all() {
                let mut x = Input::default();
                x.set(kernels, &random.values(7 * cols, 1.0), 7, cols);
                for (got, (sum, size)) in product(kernels, &w, &x).iter().zip(exact(&w, &x)) {
                    assert!((f64::from(*got) - sum).abs() <= 1e-6 * size, "{kind:?} {cols}");
                }
            }
        }
    }
}

#[test]
#[cfg(not(debug_assertions))]
fn sizes_that_do_not_fit_write_nothing() {
    let mut random = Random(4);
    let bytes = random.weights(Kind::Q4_0, 8, 64);
    let w = Matrix::new(Kind::Q4_0, 8, 64, &bytes).unwrap();
    for kernels in Kernels::all() {
        let mut x = Input::default();
        let mut out = vec![7.0; 16];
        x.set(kernels, &random.values(64, 1.0), 2, 32);
        kernels.product(&w, 0..8, &x, &Out::new(&mut out, 8));
        x.set(kernels, &random.values(128, 1.0), 2, 64);
        kernels.product(&w, 0..9, &x, &Out::new(&mut out, 8));
        kernels.product(&w, 0..8, &x, &Out::new(&mut out, 7));
        kernels.product(&w, 0..8, &x, &Out::new(&mut out, 9));
        x.values_mut(2, 64);
        kernels.product(&w, 0..8, &x, &Out::new(&mut out, 8));
        assert!(out.iter().all(|v| (v - 7.0).abs() < 1e-9), "{}", kernels.name());
    }
}

#[test]
fn int8_copies_are_the_same_everywhere() {
    let mut random = Random(5);
    let mut values = random.values(4 * 96, 3.0);
    values[..32].fill(0.0);
    values[32..64].iter_mut().for_each(|v| *v *= 1e-37);
    values[64..96].iter_mut().for_each(|v| *v *= 1e37);
    let mut plain = Input::default();
    plain.set(Kernels::all()[0], &values, 4, 96);
    assert_eq!((plain.q()[0], plain.scales()[0].to_bits()), (0, 0));
    assert_eq!(plain.q().iter().map(|q| q.unsigned_abs()).max(), Some(127));
    for kernels in Kernels::all() {
        let mut x = Input::default();
        x.set(kernels, &random.values(64 * 320, 1.0), 64, 320);
        x.values_mut(4, 96).copy_from_slice(&values);
        x.quantize(kernels);
        assert_eq!((x.q(), x.scales()), (plain.q(), plain.scales()), "{}", kernels.name());
        assert_eq!((x.sums(), x.halves()), (plain.sums(), plain.halves()), "{}", kernels.name());
        assert_eq!(x.values(), values);
    }
}

#[test]
fn few_inputs_by_columns() {
    let mut random = Random(8);
    for kind in [Kind::Q4_0, Kind::Q8_0, Kind::Q4_K] {
        let (rows, cols) = (96, 1024);
        let bytes = random.weights(kind, rows, cols);
        let w = Matrix::new(kind, rows, cols, &bytes).unwrap();
        let mut copy = Vec::new();
        Columns::write(&w, &mut copy).unwrap();
        assert_eq!(Columns::size(kind, rows, cols), Some(copy.len()));
        let columns = Columns::new(kind, rows, cols, &copy).unwrap();
        for every in [1, 3, 20, 400, 2000] {
            let inputs: Vec<(u32, f32)> = (0..cols as u32)
                .filter(|col| (col * 7 + 5) % every == 0)
                .map(|col| (col, random.value() + 0.3))
                .collect();
            let mut exact = vec![(0.0, 0.0); rows];
            for (row, (sum, size)) in exact.iter_mut().enumerate() {
                let mut weights = vec![0.0; cols];
                dequantize(kind, &w.row(row), &mut weights);
                for (col, input) in &inputs {
                    let term = f64::from(*input) * f64::from(weights[*col as usize]);
                    *sum += term;
                    *size += term.abs();
                }
            }
            for kernels in Kernels::all() {
                let mut out = vec![f32::NAN; rows];
                let shared = Out::new(&mut out, rows);
                kernels.sparse_down(&columns, 0..32, &inputs, &shared);
                kernels.sparse_down(&columns, 32..96, &inputs, &shared);
                for (got, (sum, size)) in out.iter().zip(&exact) {
                    let error = (f64::from(*got) - sum).abs();
                    assert!(error <= 3e-6 * size + 1e-7, "{} {kind:?} {got} {sum}", kernels.name());
                }
            }
        }
    }
    let bytes = random.weights(Kind::Q6_K, 32, 256);
    let w = Matrix::new(Kind::Q6_K, 32, 256, &bytes).unwrap();
    assert!(Columns::write(&w, &mut Vec::new()).is_err());
    assert!(Columns::size(Kind::Q4_0, 33, 32).is_none());
}

#[test]
fn products_with_listed_rows() {
    let mut random = Random(9);
    for kind in Kind::ALL {
        let (rows, cols, tokens) = (200, 512, 3);
        let bytes = random.weights(kind, rows, cols);
        let w = Matrix::new(kind, rows, cols, &bytes).unwrap();
        let values = random.values(tokens * cols, 1.0);
        let list: Vec<u32> = (0..rows as u32).filter(|row| row * 11 % 5 < 2).collect();
        for kernels in Kernels::all() {
            let mut x = Input::default();
            x.set(kernels, &values, tokens, cols);
            let all = product(kernels, &w, &x);
            let mut out = vec![f32::NAN; tokens * list.len()];
            let shared = Out::new(&mut out, list.len());
            kernels.product_of(&w, &list, 0..9, &x, &shared);
            kernels.product_of(&w, &list, 9..list.len(), &x, &shared);
            for (token, out) in out.chunks(list.len()).enumerate() {
                for (got, row) in out.iter().zip(&list) {
                    let want = all[token * rows + *row as usize];
                    assert!((got - want).abs() < 1e-4, "{} {kind:?} {got} {want}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn half_floats_are_rounded_to_the_nearest() {
    for len in [0, 1, 15, 16, 17, 200] {
        let values = Random(6).values(len, 2.0);
        let want: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
        for kernels in Kernels::all() {
            let mut halves = vec![f16::ZERO; len];
            kernels.to_f16(&values, &mut halves);
            assert_eq!(halves, want, "{}", kernels.name());
        }
    }
}

#[test]
fn gelu_is_near_its_formula() {
    let formula = |x: f64| {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        // 0.5 (1 + tanh u) without its cancellation.
        x / (1.0 + (-2.0 * u).exp())
    };
    let mut x: Vec<f32> = (-9000..=9000).map(|i| i as f32 / 1000.0).collect();
    x.extend([1e-30, -1e-30, 0.0, 50.0, -50.0, 1e20, -1e20, f32::MAX, f32::MIN]);
    x.extend([f32::INFINITY, f32::NAN]);
    for kernels in Kernels::all() {
        let mut gate = x.clone();
        kernels.gelu_times(&mut gate, &vec![2.0; x.len()]);
        for (x, got) in x.iter().zip(&gate) {
            let want = 2.0 * formula(f64::from(*x));
            let error = (f64::from(*got) - want).abs();
            // Below zero the result is a power of e, whose exponent is a float too.
            let exponent = -1.6 * f64::from(*x) + 0.0714 * f64::from(-*x).powi(3);
            let relative = 6e-7 + exponent.clamp(0.0, 90.0) * 1.8e-7;
            let fine = error <= relative * want.abs() + 1e-37
                || (want.is_nan() && got.is_nan())
                || f64::from(*got) == want
                || (want > f64::from(f32::MAX) && got.is_infinite());
            assert!(fine, "{} gelu({x}) 2 = {got} for {want}", kernels.name());
        }
    }
}

#[test]
fn softmax_terms() {
    for kernels in Kernels::all() {
        for len in [1, 7, 16, 100] {
            let values: Vec<f32> = (0..len).map(|i| 5.0 - 1.7 * i as f32).collect();
            let mut got = values.clone();
            let sum = kernels.exp_sub_sum(&mut got, 5.0);
            let mut total = 0.0;
            for (value, got) in values.iter().zip(&got) {
                let want = (f64::from(*value) - 5.0).exp();
                total += want;
                assert!((f64::from(*got) - want).abs() <= 3e-7 * want + 1e-37, "{value}: {got}");
            }
            assert!((f64::from(sum) - total).abs() <= 1e-6 * total, "{}", kernels.name());
        }
        let mut values = vec![f32::NEG_INFINITY; 20];
        values[3] = 0.0;
        values[4] = f32::NAN;
        let _ = kernels.exp_sub_sum(&mut values, 0.0);
        assert_eq!((values[0], values[3], values[19]), (0.0, 1.0, 0.0), "{}", kernels.name());
        assert!(values[4].is_nan(), "{}", kernels.name());
    }
}

#[test]
fn blocks_are_read_as_candle_reads_them() {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    let mut random = Random(7);
    let values = random.values(6 * 512, 0.5);
    let tensor = Tensor::from_vec(values.clone(), (6, 512), &Device::Cpu).unwrap();
    for (kind, theirs) in [
        (Kind::F32, GgmlDType::F32),
        (Kind::F16, GgmlDType::F16),
        (Kind::BF16, GgmlDType::BF16),
        (Kind::Q4_0, GgmlDType::Q4_0),
        (Kind::Q8_0, GgmlDType::Q8_0),
        (Kind::Q4_K, GgmlDType::Q4K),
        (Kind::Q5_K, GgmlDType::Q5K),
        (Kind::Q6_K, GgmlDType::Q6K),
    ] {
        let quantized = QTensor::quantize(&tensor, theirs).unwrap();
        let bytes = quantized.data().unwrap();
        let read = quantized.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
        let read = read.to_vec1::<f32>().unwrap();
        let mut got = vec![0.0; values.len()];
        dequantize(kind, &bytes, &mut got);
        for (got, want) in got.iter().zip(&read) {
            assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-7, "{kind:?} {got} for {want}");
        }
        let mut ours = Vec::new();
        if quantize(kind, &values, &mut ours) {
            let same = ours.iter().zip(bytes.iter()).filter(|(a, b)| a == b).count();
            assert!(same * 100 >= ours.len() * 99, "{kind:?}: {same} of {}", ours.len());
        }
    }
}
