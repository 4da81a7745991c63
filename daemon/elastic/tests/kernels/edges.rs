//! Parts of activations, sums at their largest, blocks of garbage.

use super::*;

/// A product with some columns of the activations is that with a copy of these columns.
#[test]
fn some_columns_of_the_activations() {
    let mut random = Random(7);
    for kind in Kind::ALL {
        let unit = kind.block_len().max(32);
        let (rows, cols) = (37, 2 * unit);
        let bytes = random.weights(kind, rows, cols);
        let w = Matrix::new(kind, rows, cols, &bytes).unwrap();
        for (tokens, first, more) in [(1, unit, 0), (1, 32, 96), (5, 64, unit), (130, unit, 32)] {
            let all = first + cols + more;
            let values = random.values(tokens * all, 1.0);
            let copied: Vec<f32> =
                values.chunks(all).flat_map(|row| &row[first..first + cols]).copied().collect();
            for kernels in Kernels::all() {
                let (mut x, mut copy) = (Input::default(), Input::default());
                x.set(kernels, &values, tokens, all);
                copy.set(kernels, &copied, tokens, cols);
                let window = x.columns(first..first + cols).unwrap();
                let out = product_of(kernels, &w, window, tokens);
                assert_eq!(out, product(kernels, &w, &copy), "{} {kind:?}", kernels.name());
            }
        }
    }
    let mut x = Input::default();
    x.set(Kernels::best(), &[1.0; 128], 2, 64);
    assert!(x.columns(0..65).is_none() && x.columns(64..64).is_some());
}

/// The largest sums that there can be: every weight at the end of its range, and every activation.
#[test]
fn the_largest_sums_do_not_overflow() {
    for kind in Kind::ALL.into_iter().filter(|kind| kind.block_len() > 1) {
        let (rows, cols) = (33, 512);
        for filler in [0xff, 0x00, 0x80, 0x7f] {
            let mut bytes = vec![filler; kind.row_bytes(cols).unwrap() * rows];
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                // Scales that are finite, and everything else at its end.
                let (halves, scales) = match kind {
                    Kind::Q4_K | Kind::Q5_K => (vec![0, 2], 4..16),
                    Kind::Q6_K => (vec![208], 192..208),
                    _ => (vec![0], 0..0),
                };
                block[scales].fill(0x11);
                for at in halves {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
                }
            }
            let w = Matrix::new(kind, rows, cols, &bytes).unwrap();
            for tokens in [1, 5] {
                for sign in [1.0, -1.0] {
                    let mut x = Input::default();
                    x.set(Kernels::best(), &vec![sign; tokens * cols], tokens, cols);
                    assert!(x.q().iter().all(|q| q.unsigned_abs() == 127));
                    let exact = exact(&w, &x);
                    for kernels in Kernels::all() {
                        for (got, (sum, size)) in product(kernels, &w, &x).iter().zip(&exact) {
                            let wrong = (f64::from(*got) - sum).abs();
                            let name = kernels.name();
                            assert!(
                                wrong <= 1e-5 * size,
                                "{name} {kind:?} {filler:x}: {got} {sum}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn hostile_blocks_do_no_harm() {
    let mut random = Random(3);
    for kind in Kind::ALL {
        let (rows, cols) = (19, 512);
        for filler in [0x00, 0x7c, 0xff, 0x80] {
            let mut bytes = vec![filler; kind.row_bytes(cols).unwrap() * rows];
            for byte in bytes.iter_mut().step_by(7) {
                *byte = random.bits() as u8;
            }
            let w = Matrix::new(kind, rows, cols, &bytes).unwrap();
            let mut values = random.values(3 * cols, 1.0);
            values[5] = f32::NAN;
            values[600] = f32::INFINITY;
            values[1100] = f32::MAX;
            for kernels in Kernels::all() {
                let mut x = Input::default();
                x.set(kernels, &values, 3, cols);
                let _ = product(kernels, &w, &x);
            }
            let mut out = vec![0.0; cols];
            dequantize(kind, &w.row(0), &mut out);
        }
    }
}
