//! A nested copy of the demo model beside the model itself.

use std::path::{Path, PathBuf};

use nestd_elastic::gguf::Header;
use nestd_elastic::kv::Store;
use nestd_elastic::ladder::sizes_of;
use nestd_elastic::model::Model;
use nestd_elastic::need::{Need, need};
use nestd_elastic::nest;
use nestd_elastic::sizes::{self, Size, Slice};
use nestd_elastic::synth::{self, Quant, Shape};
use nestd_elastic::tensor::Kind;

use crate::demo;

/// The demo model of a kind, its table of sizes beside it.
fn demo_file(folder: &Path, kind: Kind) -> PathBuf {
    let path = folder.join("demo.gguf");
    demo::write_gguf(&path, kind);
    std::fs::copy(demo::folder().join("hf/sizes.csv"), folder.join("demo.sizes.csv")).unwrap();
    path
}

/// Its nested copy, in a folder of its own.
pub fn nested(folder: &Path, kind: Kind) -> PathBuf {
    let other = folder.join("nested");
    std::fs::create_dir(&other).unwrap();
    let nested = other.join("copy.gguf");
    let mut last = (0, 1);
    nest::write(&demo_file(folder, kind), &nested, &mut |done, all| last = (done, all)).unwrap();
    assert_eq!(last.0, last.1, "progress gets to its end");
    nested
}

#[test]
fn a_nested_copy_has_everything_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let copy = nested(folder.path(), Kind::Q8_0);
    let original = folder.path().join("demo.gguf");
    let (a, b) = (std::fs::read(&original).unwrap(), std::fs::read(&copy).unwrap());
    let (a_header, b_header) = (Header::read(&a).unwrap(), Header::read(&b).unwrap());
    assert_eq!(a_header.pairs(), b_header.pairs());
    // Five layers have all their units at every size that keeps them.
    assert_eq!(b_header.tensors().len(), a_header.tensors().len() + 30);
    for (name, tensor) in a_header.tensors() {
        let cut = b_header.tensor(name).is_none();
        let Some(layer) = name.strip_suffix("ffn_down.weight").filter(|_| cut) else {
            let same = b_header.tensor(name).unwrap();
            assert_eq!(same.kind.untiled(), tensor.kind, "{name}");
            let (one, other) = (same.matrix(&b, 0).unwrap(), tensor.matrix(&a, 0).unwrap());
            assert!((0..one.rows()).all(|row| one.row(row) == other.row(row)), "{name}");
            assert_eq!(
                (same.count, same.rows, same.cols),
                (tensor.count, tensor.rows, tensor.cols)
            );
            continue;
        };
        let part = |name: &str| b_header.tensor(&format!("{layer}{name}")).unwrap();
        let whole = tensor.matrix(&a, 0).unwrap();
        let (first, rest) = (part(nest::FIRST), part(nest::REST));
        // The narrowest size of the demo model has an eighth of the units.
        assert_eq!((first.cols, rest.cols), (32, 224));
        let (first, rest) = (first.matrix(&b, 0).unwrap(), rest.matrix(&b, 0).unwrap());
        for row in 0..whole.rows() {
            assert_eq!([first.row(row), rest.row(row)].concat(), *whole.row(row), "{name} {row}");
        }
    }
    let model = Model::open(&copy).unwrap();
    assert_eq!(sizes_of(&copy, model.config()).unwrap(), demo::ladder());

    // There is nothing to do twice, nor for a model of one size; nor is another's table written over.
    let again = folder.path().join("again.gguf");
    let error = nest::write(&copy, &again, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("nested already"), "{error}");
    std::fs::write(folder.path().join("again.sizes.csv"), "mine").unwrap();
    let error = nest::write(&original, &again, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("again.sizes.csv"), "{error}");
    assert!(!again.exists() && !synth::partial(&again).exists());
    std::fs::remove_file(folder.path().join("demo.sizes.csv")).unwrap();
    demo::write_gguf(&original, Kind::F32);
    let error = nest::write(&original, &again, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("no size is narrower"), "{error}");
}

#[test]
fn a_nested_file_that_lies_is_refused_by_the_tensor_s_name() {
    let folder = tempfile::tempdir().unwrap();
    let copy = nested(folder.path(), Kind::Q8_0);
    let whole = std::fs::read(&copy).unwrap();
    let open = |at: usize, byte: u8| {
        let mut changed = whole.clone();
        changed[at] = byte;
        std::fs::write(&copy, changed).unwrap();
        Model::open(&copy).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let at = |name: &str| {
        let found = whole.windows(name.len()).position(|window| window == name.as_bytes());
        found.unwrap() + name.len()
    };
    let (first, rest) = (at("blk.7.ffn_down_first.weight"), at("blk.7.ffn_down_rest.weight"));
    assert_eq!(open(0, b'G'), "");
    let missing = "the tensor is missing";
    assert!(open(rest - 1, b'x').starts_with(&format!("blk.7.ffn_down_rest.weight: {missing}")));
    assert!(open(first - 1, b'x').starts_with(&format!("blk.7.ffn_down.weight: {missing}")));
    // Behind a name: the count of dimensions, the columns, the rows, the kind.
    for (name, at) in [("first", first), ("rest", rest)] {
        for (at, byte) in [(at + 4, 0), (at + 5, 1), (at + 12, 32), (at + 12, 96), (at + 13, 1)] {
            let error = open(at, byte);
            assert!(error.contains(&format!("blk.7.ffn_down_{name}")), "{name} {byte}: {error}");
        }
    }
    // F16 takes more bytes than the tensor has.
    assert!(open(rest + 20, 1).contains("blk."), "{}", open(rest + 20, 1));
}

/// Wide enough that parts of a row are pages.
const WIDE: Shape = Shape { layers: 8, shared_kv: 3, width: 32768, ..Shape::SMALL };

#[test]
fn a_narrow_size_of_a_nested_file_needs_no_more_than_it_reads() {
    // On the disk: a file system in memory gives nothing back.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("wide.gguf");
    synth::write(&path, &WIDE, Quant::Q4_0, 1, &mut |_, _| {}).unwrap();
    let size = |name: &str, b: f64, width| Size {
        name: name.into(),
        effective_params_b: b,
        widths: vec![width; 8],
        skipped: vec![],
    };
    let table = sizes::write(&[size("wide", 2.0, 32768), size("narrow", 1.0, 16384)]);
    std::fs::write(folder.path().join("wide.sizes.csv"), table).unwrap();
    let copy = folder.path().join("copy.gguf");
    nest::write(&path, &copy, &mut |_, _| {}).unwrap();

    let of = |path: &Path, width| -> Need {
        let model = Model::open(path).unwrap();
        let header = Header::read(model.map().bytes()).unwrap();
        need(&header, model.config(), &Slice::new(vec![Some(width); 8]), 64, Store::F16)
    };
    let (full, half) = (of(&path, 32768), of(&path, 16384));
    let (nested_full, nested_half) = (of(&copy, 32768), of(&copy, 16384));
    let nested_middle = of(&copy, 24576);
    let matrix = 256 * 32768 / 32 * 18;
    // Two pages at the ends of each tensor that is one more.
    assert!(full.layers.abs_diff(nested_full.layers) <= 8 * 2 * 4096);
    // Of a row's half nearly three quarters of the pages, and now a half.
    let saved = (half.layers - nested_half.layers) as f64 / f64::from(8 * matrix);
    assert!((0.15..0.35).contains(&saved), "{saved}");
    let saved = (nested_full.layers - nested_half.layers) as f64 / f64::from(8 * matrix);
    assert!((1.49..1.51).contains(&saved), "{saved}");

    // Of a band of tiles the last quarter is 18 pages.
    let saved = (nested_full.layers - nested_middle.layers) as f64 / f64::from(8 * matrix);
    assert!((0.72..0.751).contains(&saved), "{saved}");

    // What is needed is what is counted, and the rest is given back.
    let model = Model::open(&copy).unwrap();
    let narrow = Slice::new(vec![Some(16384); 8]);
    let read = |model: &Model| model.map().bytes().iter().map(|b| u64::from(*b)).sum::<u64>();
    assert!(read(&model) > 0);
    let before = model.resident().unwrap().layers;
    model.give_back(&[&narrow], &|| true);
    let after = model.resident().unwrap().layers;
    let gone = before.saturating_sub(after) as f64 / f64::from(8 * matrix);
    assert!((1.45..1.51).contains(&gone), "{gone}");
    assert!(read(&model) > 0);
    model.give_back(&[&Slice::new(vec![Some(24576); 8])], &|| true);
    let after = model.resident().unwrap().layers;
    let gone = before.saturating_sub(after) as f64 / f64::from(8 * matrix);
    assert!((0.7..0.751).contains(&gone), "{gone}");
}
