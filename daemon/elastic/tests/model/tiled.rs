//! A nested copy whose matrices are tiled beside the model itself: the same weights, the same logits.

use std::path::{Path, PathBuf};

use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::gguf::{Header, Tensor};
use nestd_elastic::kernels::Kernels;
use nestd_elastic::kv::{self, Sequence, Store};
use nestd_elastic::model::Model;
use nestd_elastic::nest;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::sidefile::SideFile;
use nestd_elastic::sizes::{self, Size, Slice};
use nestd_elastic::synth::{self, Quant, Shape};

/// Sparse and dense layers, skipped ones, and matrices of whole tiles.
const SHAPE: Shape = Shape { layers: 8, sparse: 3, shared_kv: 3, width: 1024, ..Shape::SMALL };

fn size(name: &str, b: f64, widths: Vec<u64>, skipped: Vec<usize>) -> Size {
    Size { name: name.into(), effective_params_b: b, widths, skipped }
}

fn model(folder: &Path, quant: Quant) -> PathBuf {
    let path = folder.join(format!("{quant:?}.gguf"));
    synth::write(&path, &SHAPE, quant, 1, &mut |_, _| {}).unwrap();
    path
}

fn nested(path: &Path) -> PathBuf {
    let copy = path.with_extension("nested.gguf");
    nest::write(path, &copy, &mut |_, _| {}).unwrap();
    copy
}

/// Logits of a prompt, of the tokens after it one by one, and of two sequences together.
fn logits(model: &Model, kernels: &'static Kernels, slices: &[&Slice]) -> Vec<f32> {
    let pool = Pool::new(&Settings { threads: 2, ..Settings::default() }).unwrap();
    let mut runner = Runner::new(pool, Some(kernels));
    let shape = kv::Shape::new(model.config(), 128, Store::F32);
    let (mut first, mut second) = (Sequence::new(&shape), Sequence::new(&shape));
    let ids: Vec<u32> = (0..90_u32).map(|at| at * 37 % 1000 + 5).collect();
    let mut all: Vec<f32> = Vec::new();
    for (at, tokens) in
        [&ids[..70], &ids[70..80], &ids[80..81], &ids[81..82], &ids[82..83]].into_iter().enumerate()
    {
        let part = Part { sequence: &mut first, tokens, logits: Logits::All };
        let slice = slices[at % slices.len()];
        all.extend(&*runner.step(model, slice, &mut [part]).unwrap());
    }
    for tokens in [&ids[..5], &ids[7..8]] {
        let one = Part { sequence: &mut first, tokens: &ids[9..10], logits: Logits::All };
        let other = Part { sequence: &mut second, tokens, logits: Logits::All };
        all.extend(&*runner.step(model, slices[0], &mut [one, other]).unwrap());
    }
    assert!(all.iter().all(|value| value.is_finite()));
    all
}

#[test]
fn a_tiled_copy_has_the_same_logits_to_the_last_bit() {
    let folder = tempfile::tempdir().unwrap();
    for quant in [Quant::Q4_0, Quant::Q4_K, Quant::Q8_0] {
        let path = model(folder.path(), quant);
        let (whole, mut tiled) =
            (Model::open(&path).unwrap(), Model::open(&nested(&path)).unwrap());
        let full = whole.full();
        let narrow = size("narrow", 1.0, vec![512, 1024, 256, 512, 512, 1024, 256], vec![6]);
        let narrow = whole.slice(&narrow).unwrap();
        let both = [&full, &narrow];
        for kernels in Kernels::all() {
            let wanted = logits(&whole, kernels, &both);
            assert!(wanted == logits(&tiled, kernels, &both), "{quant:?} {}", kernels.name());
        }
        // The side file of a tiled copy holds what that of the model holds.
        let with_side = |model: Model, name: &str| {
            let path = folder.path().join(name);
            let side = SideFile::open_or_write(&path, &model).unwrap().unwrap();
            (model.with_side(side), std::fs::read(path).unwrap())
        };
        let (whole, side) = with_side(whole, "whole.columns");
        let (with, tiled_side) = with_side(tiled, "tiled.columns");
        tiled = with;
        assert!(side[4096..] == tiled_side[4096..], "{quant:?}");
        let kernels = Kernels::best();
        assert!(logits(&whole, kernels, &both) == logits(&tiled, kernels, &both), "{quant:?}");
    }
}

#[test]
fn a_tiled_copy_with_narrow_columns_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), Quant::Q4_0);
    let narrow = size("narrow", 1.0, vec![512; 8], vec![]);
    let middle = size("middle", 2.0, vec![768; 8], vec![]);
    let table = [size("whole", 3.0, vec![1024; 8], vec![]), middle.clone(), narrow.clone()];
    std::fs::write(path.with_extension("sizes.csv"), sizes::write(&table)).unwrap();
    let copy = nested(&path);
    let (whole, tiled) = (Model::open(&path).unwrap(), Model::open(&copy).unwrap());

    // Every row of every matrix is there, tiled but where rows are read one by one.
    let (a, b) = (whole.map().bytes(), tiled.map().bytes());
    let (a_header, b_header) = (Header::read(a).unwrap(), Header::read(b).unwrap());
    let (mut as_they_were, mut count) = (Vec::new(), 0);
    for (name, tensor) in a_header.tensors() {
        let rows = |tensor: Tensor, file| -> Vec<Vec<u8>> {
            let matrix = tensor.matrix(file, 0).unwrap();
            (0..matrix.rows()).map(|row| matrix.row(row).into_owned()).collect()
        };
        let parts: Vec<Tensor> = b_header.tensor(name).map_or_else(
            || {
                let layer = name.strip_suffix("ffn_down.weight").unwrap();
                let part = |part: &str| b_header.tensor(&format!("{layer}{part}")).unwrap();
                vec![part(nest::FIRST), part(nest::REST)]
            },
            |tensor| vec![tensor],
        );
        let mut joined = vec![Vec::new(); tensor.rows];
        for part in &parts {
            assert_eq!(part.kind.untiled(), tensor.kind, "{name}");
            let rows = rows(*part, b);
            joined.iter_mut().zip(rows).for_each(|(joined, row)| joined.extend(row));
        }
        assert!(joined == rows(tensor, a), "{name}");
        count += parts.iter().filter(|part| part.kind.is_tiled()).count();
        if tensor.kind.tiled().is_some() && !parts[0].kind.is_tiled() {
            as_they_were.push(name);
        }
    }
    as_they_were.sort_unstable();
    let up = [0, 1, 2].map(|layer| format!("blk.{layer}.ffn_up.weight"));
    let by_rows = [&up[0], &up[1], &up[2], "per_layer_token_embd.weight"];
    assert_eq!(as_they_were, by_rows);
    // Of eight layers: q, o, gate, two of down and two of the PLE; k and v; five of up; the embeddings.
    assert_eq!(count, 8 * 7 + 2 * 8 + 5 + 1);

    // Sums of two parts are rounded elsewhere, and an activation may be so too.
    for (name, size) in [("narrow", &narrow), ("middle", &middle), ("whole", &table[0])] {
        let (slice, other) = (whole.slice(size).unwrap(), tiled.slice(size).unwrap());
        let wanted = logits(&whole, Kernels::best(), &[&slice]);
        let got = logits(&tiled, Kernels::best(), &[&other]);
        let spread = wanted.iter().map(|value| value * value).sum::<f32>() / wanted.len() as f32;
        let most = wanted.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {most:.1e} of {:.1e}", spread.sqrt());
        assert!(most < 0.1 * spread.sqrt(), "{name}: {most} of {}", spread.sqrt());
    }

    // Widths that end in the middle of a tile are no sizes of it.
    for width in [544, 800, 528] {
        let error = tiled.slice(&size("x", 1.0, vec![width; 8], vec![])).unwrap_err().to_string();
        assert!(error.contains("no multiple of 256"), "{error}");
    }
    assert!(whole.slice(&size("x", 1.0, vec![544; 8], vec![])).is_ok());
    let again = folder.path().join("again.gguf");
    let error = nest::write(&copy, &again, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("nested already"), "{error}");
}

#[test]
fn tiles_where_rows_are_read_are_refused_by_the_tensor_s_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), Quant::Q4_0);
    let copy = nested(&path);
    let open = |path: &Path, name: &str, change: &dyn Fn(&mut [u8])| {
        let mut file = std::fs::read(path).unwrap();
        let found = file.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        // The length before the name, and behind it the count of dimensions, columns, rows, the kind.
        change(&mut file[found + name.len()..]);
        let changed = folder.path().join("changed.gguf");
        std::fs::write(&changed, file).unwrap();
        Model::open(&changed).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let tiled = |entry: &mut [u8]| entry[4 + 16 + 2] = 1;
    for name in ["per_layer_token_embd.weight", "blk.1.ffn_up.weight"] {
        let error = open(&path, name, &tiled);
        assert!(error.starts_with(name) && error.contains("one by one"), "{error}");
    }
    // Where a layer's rows begin within a tile, some layers cannot be left out.
    let odd = folder.path().join("odd.gguf");
    let shape = Shape { ple: 24, ..SHAPE };
    synth::write(&odd, &shape, Quant::F16, 1, &mut |_, _| {}).unwrap();
    let name = "per_layer_model_proj.weight";
    let q8_0x16 = |entry: &mut [u8]| entry[4 + 16..4 + 20].copy_from_slice(&[8, 0, 1, 0]);
    let error = open(&odd, name, &q8_0x16);
    assert!(error.starts_with(name) && error.contains("one by one"), "{error}");
    // Floats have no tiles, so that this is a kind nobody knows.
    let error = open(&path, "blk.1.laurel_l.weight", &tiled);
    assert!(error.contains("of a kind that is not known here"), "{error}");
    // Any other matrix may be tiled, and this one then has other weights.
    assert_eq!(open(&path, "blk.4.ffn_up.weight", &tiled), "");
    let name = "blk.4.attn_q.weight";
    let error = open(&copy, name, &|entry| entry[4 + 8] -= 1);
    assert!(error.starts_with(name) && error.contains("no whole tiles"), "{error}");
    let error = open(&copy, name, &|entry| entry[4] = 32);
    assert!(error.starts_with(name) && error.contains("no whole blocks of Q4_0x16"), "{error}");
}
