//! Logits of the demo model against those of the reference implementation in `transformers`, in F32: at
//! every position, every size, and across switches of the size.

use std::time::Duration;

use crate::demo::{self, Tensors};
use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kernels::Kernels;
use nestd_elastic::kv::{Sequence, Shape, Store};
use nestd_elastic::model::Model;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::sidefile::SideFile;
use nestd_elastic::sizes::Slice;
use nestd_elastic::tensor::Kind;

struct Bench {
    model: Model,
    runner: Runner,
    references: Tensors,
    about: serde_json::Value,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(kind: Kind, kernels: &'static Kernels) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo.gguf");
        demo::write_gguf(&path, kind);
        let pool = Pool::new(&Settings { threads: 2, ..Settings::default() }).unwrap();
        let about = std::fs::read(demo::folder().join("references/references.json")).unwrap();
        Self {
            model: Model::open(&path).unwrap(),
            runner: Runner::new(pool, Some(kernels)),
            references: Tensors::read(&demo::folder().join("references/references.safetensors")),
            about: serde_json::from_slice(&about).unwrap(),
            folder,
        }
    }

    /// From the nested copy of the file.
    fn nested(kind: Kind, kernels: &'static Kernels) -> Self {
        let bench = Self::new(kind, kernels);
        let model = Model::open(&crate::nest::nested(bench.folder.path(), kind)).unwrap();
        Self { model, ..bench }
    }

    /// With `ffn_down` of the sparse layers by columns.
    fn with_side(mut self) -> Self {
        let path = self.folder.path().join("cache/demo.columns");
        assert!(SideFile::open(&path, &self.model).unwrap().is_none());
        assert!(SideFile::write(&path, &self.model).unwrap());
        let side = SideFile::open(&path, &self.model).unwrap().unwrap();
        self.model = self.model.with_side(side);
        self
    }

    fn slice(&self, name: &str) -> Slice {
        let ladder = demo::ladder();
        let size = ladder.iter().find(|size| size.name == name).unwrap();
        self.model.slice(size).unwrap()
    }

    fn sequence(&self, store: Store) -> Sequence {
        Sequence::new(&Shape::new(self.model.config(), 1024, store))
    }

    /// Logits of every position, the tokens given in steps of `chunk`.
    fn logits(
        &mut self,
        sequence: &mut Sequence,
        ids: &[u32],
        slice: &Slice,
        chunk: usize,
    ) -> Vec<f32> {
        let mut all = Vec::new();
        for tokens in ids.chunks(chunk) {
            let part = Part { sequence, tokens, logits: Logits::All };
            all.extend(&*self.runner.step(&self.model, slice, &mut [part]).unwrap());
        }
        all
    }

    /// The largest difference from what is stored under `key`.
    fn difference(&self, key: &str, logits: &[f32]) -> f32 {
        let vocabulary = self.model.vocabulary();
        let ids = self.references.integers(&format!("{key}.top_ids"));
        let top = self.references.floats(&format!("{key}.top"));
        let sums = self.references.floats(&format!("{key}.logsumexp"));
        let each = ids.len() / sums.len();
        let skipped = logits.len() / vocabulary - sums.len();
        let rows = logits.chunks(vocabulary).skip(skipped);
        let mut worst = 0.0_f32;
        for (row, ((ids, top), sum)) in rows.zip(ids.chunks(each).zip(top.chunks(each)).zip(&sums))
        {
            for (id, top) in ids.iter().zip(top) {
                worst = worst.max((row[*id as usize] - top).abs());
            }
            let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let here = highest + row.iter().map(|v| (v - highest).exp()).sum::<f32>().ln();
            worst = worst.max((here - sum).abs());
        }
        worst
    }

    fn ids(&self, chat: usize) -> Vec<u32> {
        self.references.integers(&format!("chat.{chat}.ids"))
    }

    fn names(&self) -> Vec<String> {
        let names = self.about["sizes"].as_array().unwrap();
        names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    fn chats(&self) -> usize {
        self.about["chats"].as_array().unwrap().len()
    }

    /// The largest difference over all chats and sizes, and over all switches.
    fn everything(&mut self, store: Store, chats: usize) -> (f32, f32) {
        let (mut sizes, mut switches) = (0.0_f32, 0.0_f32);
        for name in self.names() {
            let slice = self.slice(&name);
            for chat in 0..chats.min(self.chats()) {
                let (ids, mut sequence) = (self.ids(chat), self.sequence(store));
                let chunk = [1, 7, 64, 128][chat % 4];
                let logits = self.logits(&mut sequence, &ids, &slice, chunk);
                sizes = sizes.max(self.difference(&format!("chat.{chat}.{name}"), &logits));
            }
        }
        let about = self.about["switches"].as_array().unwrap().clone();
        for (index, switch) in about.iter().enumerate() {
            let ids = self.ids(switch["chat"].as_u64().unwrap() as usize);
            let (before, after) = ids.split_at(switch["position"].as_u64().unwrap() as usize);
            let mut sequence = self.sequence(store);
            let from = self.slice(switch["from"].as_str().unwrap());
            let to = self.slice(switch["to"].as_str().unwrap());
            let mut logits = self.logits(&mut sequence, before, &from, 64);
            logits.extend(self.logits(&mut sequence, after, &to, 1));
            switches = switches.max(self.difference(&format!("switch.{index}"), &logits));
        }
        (sizes, switches)
    }
}

#[test]
fn logits_equal_the_reference_at_every_size_and_across_switches() {
    for kernels in Kernels::all() {
        let mut bench = Bench::new(Kind::F32, kernels);
        // The slow ones are compared with the scalar ones elsewhere.
        let chats = if kernels.name() == Kernels::best().name() { usize::MAX } else { 2 };
        let (sizes, switches) = bench.everything(Store::F32, chats);
        println!("{}: sizes {sizes:.1e}, switches {switches:.1e}", kernels.name());
        assert!(sizes < 1e-3 && switches < 1e-3, "{}: {sizes} {switches}", kernels.name());
    }
}

#[test]
fn a_nested_file_has_the_same_logits() {
    for kernels in Kernels::all() {
        let mut bench = Bench::nested(Kind::F32, kernels);
        let (sizes, switches) = bench.everything(Store::F32, 3);
        println!("{}: sizes {sizes:.1e}, switches {switches:.1e}", kernels.name());
        assert!(sizes < 1e-3 && switches < 1e-3, "{}: {sizes} {switches}", kernels.name());
    }
}

/// What quantization costs, in logits between -30 and 30. Where a bound is passed, something else is
/// wrong: they are twice what was measured.
#[test]
fn quantized_logits_stay_within_a_bound() {
    for (kind, store, how, bound) in [
        (Kind::F32, Store::F16, "", 0.02),
        (Kind::F16, Store::F16, "", 0.02),
        (Kind::F32, Store::Q8_0, "", 0.8),
        (Kind::Q8_0, Store::F16, "", 1.1),
        (Kind::Q8_0, Store::F16, "side file", 1.1),
        (Kind::Q8_0, Store::F16, "nested, side file", 1.1),
        (Kind::Q8_0, Store::Q8_0, "", 1.4),
        (Kind::Q4_0, Store::F16, "", 9.5),
        (Kind::Q4_0, Store::F16, "nested, side file", 9.5),
    ] {
        let best = Kernels::best();
        let mut bench =
            if how.contains("nested") { Bench::nested(kind, best) } else { Bench::new(kind, best) };
        if how.contains("side file") {
            bench = bench.with_side();
        }
        let (sizes, switches) = bench.everything(store, 6);
        let name = kind.name();
        println!("{name} {store:?} {how}: sizes {sizes:.1e}, switches {switches:.1e}");
        assert!(sizes < bound && switches < bound, "{name} {store:?} {how}: {sizes} {switches}");
    }
}

#[test]
fn a_side_file_that_is_not_the_model_s_is_not_used() {
    let bench = Bench::new(Kind::Q8_0, Kernels::best());
    let path = bench.folder.path().join("demo.columns");
    assert!(SideFile::write(&path, &bench.model).unwrap());
    let open = || SideFile::open(&path, &bench.model).unwrap();
    assert!(open().is_some());
    let whole = std::fs::read(&path).unwrap();
    for at in [0, 9, 17, 33, 41, 5000, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, changed).unwrap();
        assert!(open().is_none(), "byte {at} of {} was changed", whole.len());
    }
    std::fs::write(&path, &whole[..whole.len() - 4096]).unwrap();
    assert!(open().is_none());
    std::fs::write(&path, &whole).unwrap();
    assert!(open().is_some());
    let other = Bench::new(Kind::Q8_0, Kernels::best());
    assert!(SideFile::open(&path, &other.model).unwrap().is_none(), "another file's time");
    // Another model of the same length gets this one's name, as a model is replaced, while this one writes.
    let model = bench.model.map().path();
    let new = model.with_extension("new");
    std::fs::copy(model, &new).unwrap();
    let later = std::fs::metadata(model).unwrap().modified().unwrap() + Duration::from_secs(1);
    std::fs::File::options().write(true).open(&new).unwrap().set_modified(later).unwrap();
    std::fs::rename(&new, model).unwrap();
    assert!(SideFile::write(&path, &bench.model).unwrap());
    assert!(open().is_some(), "it is of the model that is open");
    let replaced = Model::open(model).unwrap();
    assert!(SideFile::open(&path, &replaced).unwrap().is_none(), "the old weights");
    // In F32 there is nothing to gain.
    let exact = Bench::new(Kind::F32, Kernels::best());
    assert!(!SideFile::write(&path, &exact.model).unwrap());
}
