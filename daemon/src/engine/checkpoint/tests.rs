//! Checkpoints made of headers and holes.

use std::fs::{self, File};
use std::io::Write as _;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

/// A folder with a language model of 35 narrow layers, without data.
pub struct Fixture {
    pub dir: TempDir,
}

pub fn config() -> Value {
    let sparsity = [[0.95; 10].as_slice(), &[0.0; 25]].concat();
    let types = ["sliding_attention"; 4].into_iter().chain(["full_attention"]);
    json!({
        "model_type": "gemma3n",
        "text_config": {
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 35,
            "num_kv_shared_layers": 15, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "vocab_size": 320, "vocab_size_per_layer_input": 300,
            "hidden_size_per_layer_input": 32, "altup_num_inputs": 4, "laurel_rank": 16,
            "max_position_embeddings": 4096,
            "activation_sparsity_pattern": sparsity,
            "layer_types": types.cycle().take(35).collect::<Vec<_>>(),
        },
        "vision_config": { "vocab_size": 128 },
        "audio_config": { "hidden_size": 64, "conf_num_hidden_layers": 2 },
    })
}

impl Fixture {
    pub fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap() };
        fixture.write("config.json", &config());
        fixture.write("tokenizer.json", &json!({}));
        fixture.write("tokenizer_config.json", &json!({}));
        fixture.write_weights("model.safetensors", |wanted| wanted.group.is_none());
        fixture
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, json: &Value) {
        fs::write(self.path().join(name), json.to_string()).unwrap();
    }

    /// Writes those of the wanted tensors.
    fn write_weights(&self, name: &str, choose: impl Fn(&Wanted) -> bool) {
        let config = Config::parse(&fs::read(self.path().join("config.json")).unwrap()).unwrap();
        let mut header = Map::new();
        let mut end = 0;
        for wanted in tensors::wanted(&config).into_iter().filter(choose) {
            let from = end;
            end += Tensor::new("BF16", wanted.shape.clone()).bytes().unwrap();
            let offsets = [from, end];
            header.insert(
                wanted.name,
                json!({ "dtype": "BF16", "shape": wanted.shape, "data_offsets": offsets }),
            );
        }
        let header = Value::Object(header).to_string();
        let mut file = File::create(self.path().join(name)).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(8 + header.len() as u64 + end).unwrap();
    }

    /// Changes the configuration.
    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let mut config = config();
        change(&mut config);
        self.write("config.json", &config);
    }

    pub fn open(&self) -> Result<Checkpoint, Error> {
        Checkpoint::open("demo", self.path())
    }

    fn problem(&self) -> String {
        match self.open() {
            Err(Error::ModelInvalid { model, problem }) if model == "demo" => problem,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_model_without_towers_or_table_has_one_size() {
    let checkpoint = Fixture::new().open().unwrap();
    let info = checkpoint.info(Isq::None);
    assert_eq!(info.context_tokens, 4096);
    assert_eq!(info.sizes.iter().map(|size| size.name.as_str()).collect::<Vec<_>>(), ["full"]);
    let groups: BTreeSet<_> = checkpoint.lacking.iter().filter_map(|wanted| wanted.group).collect();
    assert_eq!(groups.len(), 5);
    assert!(checkpoint.full_precision());
    assert!(!checkpoint.sliced);
}

#[test]
fn the_towers_have_the_published_number_of_parameters() {
    let mut json = config();
    json["audio_config"] = json!({ "input_feat_size": 128 });
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    let count = |prefix: &str| -> u64 {
        let wanted = towers::towers(&config).into_iter();
        let ours = wanted.filter(|wanted| wanted.name.starts_with(prefix));
        ours.map(|wanted| wanted.shape.iter().product::<u64>()).sum()
    };
    assert_eq!(count("model.vision_tower.") / 1_000_000, 294);
    assert_eq!(count("model.audio_tower.") / 1_000_000, 681);
}

#[test]
fn shards_are_read_and_all_that_is_missing_is_told_at_once() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.path().join("model.safetensors")).unwrap();
    fs::remove_file(fixture.path().join("tokenizer.json")).unwrap();
    let problem = fixture.problem();
    assert!(problem.contains("lacks tokenizer.json, model.safetensors"), "{problem}");

    fixture.write("tokenizer.json", &json!({}));
    let early = |wanted: &Wanted| wanted.name.contains(".layers.1");
    let ours = |wanted: &Wanted| wanted.group.is_none();
    fixture.write_weights("model-00001-of-00003.safetensors", |w| ours(w) && early(w));
    let problem = fixture.problem();
    assert!(
        problem.contains("model-00002-of-00003.safetensors, model-00003-of-00003.safetensors"),
        "{problem}"
    );
    fixture.write_weights("model-00002-of-00003.safetensors", |w| ours(w) && !early(w));
    fixture.write_weights("model-00003-of-00003.safetensors", |w| !ours(w));
    let checkpoint = fixture.open().unwrap();
    assert_eq!(checkpoint.weights.len(), 3);
    assert_eq!(checkpoint.lacking, []);
    fixture.write_weights("model-00003-of-00003.safetensors", |w| !ours(w) || early(w));
    assert!(fixture.problem().contains("is in another file too"));
}

#[test]
fn missing_and_misshapen_tensors_are_told_by_name() {
    let fixture = Fixture::new();
    let name = "model.language_model.layers.7.mlp.up_proj.weight";
    fixture.write_weights("model.safetensors", |w| w.group.is_none() && w.name != name);
    assert!(fixture.problem().contains(&format!("{name:?} is missing")));

    let tower = "model.vision_tower.timm_model.msfa.norm.weight";
    fixture.write_weights("model.safetensors", |w| w.name != tower);
    assert!(fixture.problem().contains(&format!("{tower:?} is missing")));

    let fixture = Fixture::new();
    fixture.configure(|config| config["text_config"]["hidden_size"] = json!(32));
    let problem = fixture.problem();
    assert!(problem.contains("model.safetensors") || problem.contains("has shape"), "{problem}");
    assert!(problem.contains("more"), "{problem}");
}

#[test]
fn a_file_that_is_cut_off_is_told_with_file_and_tensor() {
    let fixture = Fixture::new();
    let path = fixture.path().join("model.safetensors");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(fs::metadata(&path).unwrap().len() / 2).unwrap();
    let problem = fixture.problem();
    assert!(problem.starts_with("model.safetensors: tensor \"model."), "{problem}");
    assert!(problem.contains("cut off"), "{problem}");
}

#[test]
fn bad_configurations_are_told_by_key() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 13] = [
        (|c| c["model_type"] = json!("llama"), "model_type is \"llama\""),
        (|c| c["text_config"] = json!(1), "config.json"),
        (|c| c["text_config"]["hidden_size"] = json!(0), "text_config.hidden_size: 0"),
        (|c| c["text_config"]["vocab_size"] = json!(1u64 << 40), "text_config.vocab_size"),
        (|c| c["text_config"]["num_hidden_layers"] = json!(1_000_000), "1000000 layers"),
        (|c| c["text_config"]["num_kv_shared_layers"] = json!(34), "share a KV cache"),
        (|c| c["text_config"]["layer_types"] = json!([]), "layer_types has 0 entries"),
        (|c| c["audio_config"]["sscp_conv_stride_size"] = json!([[0, 0], [1, 1]]), "sscp_conv"),
        // Each of these makes a list or a product that is too large.
        (|c| c["text_config"]["altup_num_inputs"] = json!(1 << 20), "altup_num_inputs"),
        (|c| c["audio_config"]["conf_num_hidden_layers"] = json!(1 << 20), "conf_num_hidden"),
        (|c| c["audio_config"]["sscp_conv_channel_size"] = json!([1 << 20, 8]), "channel_size"),
        (
            |c| c["audio_config"]["sscp_conv_kernel_size"] = json!([[9, 1 << 20], [9, 9]]),
            "sscp_conv",
        ),
        (|c| c["quantization_config"] = json!({ "bits": 4 }), "quantized already"),
    ];
    for (change, why) in cases {
        let fixture = Fixture::new();
        fixture.configure(change);
        let problem = fixture.problem();
        assert!(problem.contains(why), "{why}: {problem}");
    }
    let fixture = Fixture::new();
    fs::write(fixture.path().join("config.json"), "{").unwrap();
    assert!(fixture.problem().starts_with("config.json: EOF"));
    fixture.write("config.json", &config());
    fixture.write("generation_config.json", &json!({ "temperature": "hot" }));
    assert!(fixture.problem().starts_with("generation_config.json: "));
}

#[test]
fn a_table_in_the_folder_is_read_and_its_errors_told() {
    let fixture = Fixture::new();
    let table = |widths: &str| {
        let head = "name,# Layers,# Effective Params (B),FFN Hidden Dims,Layers Skipped";
        fs::write(fixture.path().join(SIZES_FILE), format!("{head}\n{widths}\n")).unwrap();
    };
    table(&format!("half,30,1,\"{:?}\",\"[20, 21, 22, 23, 24]\"", [128; 30]));
    let checkpoint = fixture.open().unwrap();
    assert!(checkpoint.sliced);
    assert_eq!(checkpoint.sizes[0].name, "half");
    table("half,1,1,[128],");
    assert!(fixture.problem().starts_with("sizes.csv: line 2: "));
    // What mistral.rs would compute wrongly is refused.
    table(&format!("all,35,1,\"{:?}\",", [256; 35]));
    fixture
        .configure(|config| config["text_config"]["activation_sparsity_pattern"][3] = json!(0.5));
    assert!(fixture.problem().contains("activation_sparsity_pattern"));
}

#[test]
fn a_checkpoint_of_the_published_dimensions_takes_the_published_table() {
    let mut json = config();
    json["text_config"]["intermediate_size"] = json!(16384);
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    let (sizes, sliced) = read_sizes(Path::new("/nowhere"), &config).unwrap();
    assert!(sliced);
    assert_eq!(sizes.len(), 16);
}

#[test]
fn estimates_fall_with_the_size_and_with_the_bits() {
    // A real E4B: its per-layer embeddings alone take 4.7 GB.
    let mut json = config();
    for (key, value) in [
        ("hidden_size", 2048),
        ("intermediate_size", 16384),
        ("num_attention_heads", 8),
        ("head_dim", 256),
        ("vocab_size", 262_400),
        ("vocab_size_per_layer_input", 262_144),
        ("hidden_size_per_layer_input", 256),
        ("laurel_rank", 64),
    ] {
        json["text_config"][key] = json!(value);
    }
    json["audio_config"] = json!({ "input_feat_size": 128 });
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    let sizes = sizes::parse(sizes::PUBLISHED, &config.shape()).unwrap();
    let gib = |name: &str, isq| {
        let size = sizes.iter().find(|size| size.name == name).unwrap();
        let memory = memory::estimate(&config, size, true, isq, false);
        [memory.resident, memory.peak].map(|bytes| bytes as f64 / (1_u64 << 30) as f64)
    };
    let ([small, peak], [large, _]) = (gib("E2B", Isq::Q4k), gib("E4B", Isq::Q4k));
    // Measured: 9.9 GB resident.
    assert!((8.0..10.0).contains(&small), "{small}");
    assert!((10.0..14.0).contains(&peak), "{peak}");
    assert!(large > small + 1.0, "{large} {small}");
    assert!(gib("E2B", Isq::Q8_0) > gib("E2B", Isq::Q4k));
    assert!(gib("E2B", Isq::None) > gib("E2B", Isq::Q8_0));
}

#[test]
fn the_towers_are_those_of_the_reference_implementation() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let config = Config::parse(&fs::read(demo.join("hf/config.json")).unwrap()).unwrap();
    let listed: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(demo.join("towers.json")).unwrap()).unwrap();
    let listed: BTreeMap<String, Vec<u64>> = listed
        .into_iter()
        .map(|(name, tensor)| (name, serde_json::from_value(tensor["shape"].clone()).unwrap()))
        .collect();
    let ours: BTreeMap<String, Vec<u64>> =
        towers::towers(&config).into_iter().map(|wanted| (wanted.name, wanted.shape)).collect();
    assert_eq!(ours, listed);
}
