//! A model's folder in Hugging Face's format, understood through its headers alone: whether
//! mistral.rs can load it, which MatFormer sizes it has, and what memory they take.
//!
//! Tensor data is never read. Needs no mistral.rs: models are listed without it too. Called by
//! `catalog` for the list, and by `mistralrs` before a load.

pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
pub mod safetensors;
mod tensors;
mod towers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nestd_elastic::sizes::{self, Size};

use self::config::{Config, Generation};
use self::safetensors::Tensor;
use super::Isq;
use crate::types::{EngineKind, Error, ModelInfo, SizeInfo};

pub use self::tensors::Wanted;

/// The sizes table in a model's folder.
pub const SIZES_FILE: &str = "sizes.csv";
/// The only size of a model without a table.
const FULL: &str = "full";
/// The dimensions that the published table is for.
const PUBLISHED_LAYERS: usize = 35;
const PUBLISHED_WIDTH: u64 = 16384;

/// Files that mistral.rs must find, besides the weights.
const NEEDED: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];
/// Files that it reads where they are.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// A text file in the folder has this many bytes at most; Gemma's tokenizer has 33 MB.
const MAX_TEXT_BYTES: u64 = 8 << 20;
/// Up to this many parameters, the language model is computed in 32 bits: 512 MiB.
const FULL_PRECISION_PARAMETERS: u64 = 128 << 20;
/// Problems that are told at once.
const MAX_PROBLEMS: usize = 5;

/// What a folder holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// `config.json`.
    pub config: Config,
    /// `generation_config.json`.
    pub generation: Generation,
    /// At least one, largest first.
    pub sizes: Vec<Size>,
    /// Whether the sizes come from a table. Without one the only size is the whole model.
    pub sliced: bool,
    /// The files with the weights.
    pub weights: Vec<PathBuf>,
    /// The other files that mistral.rs reads.
    pub files: Vec<PathBuf>,
    /// Tensors that mistral.rs asks for and the folder lacks, but which text does not need.
    pub lacking: Vec<Wanted>,
    parameters: u64,
}

/// Reads the headers of one model's files.
pub fn inspect(model: &str, path: &Path, isq: Isq) -> Result<ModelInfo, Error> {
    Ok(Checkpoint::open(model, path)?.info(isq))
}

impl Checkpoint {
    /// Reads the headers in a folder and checks all that can be checked without the data.
    pub fn open(model: &str, path: &Path) -> Result<Self, Error> {
        let invalid = |problem: String| Error::ModelInvalid { model: model.into(), problem };
        Self::read(path).map_err(invalid)
    }

    fn read(path: &Path) -> Result<Self, String> {
        let (weights, files) = find_files(path)?;
        let config = Config::parse(&text(path, "config.json")?)
            .map_err(|why| format!("config.json: {why}"))?;
        let generation = match text(path, "generation_config.json") {
            Ok(json) => {
                Generation::parse(&json).map_err(|why| format!("generation_config.json: {why}"))?
            }
            Err(_) => Generation::default(),
        };

        let mut tensors = BTreeMap::new();
        for file in &weights {
            let read = safetensors::read(file).map_err(|why| format!("{}: {why}", name(file)))?;
            for (tensor, header) in read {
                if tensors.insert(tensor.clone(), header).is_some() {
                    return Err(format!(
                        "{}: tensor {tensor:?} is in another file too",
                        name(file)
                    ));
                }
            }
        }
        let lacking = compare(&config, &tensors)?;
        let (sizes, sliced) = read_sizes(path, &config)?;
        let parameters = tensors
            .iter()
            .filter(|(name, _)| name.starts_with("model.language_model"))
            .map(|(_, tensor)| tensor.shape.iter().product::<u64>())
            .sum();
        Ok(Self { config, generation, sizes, sliced, weights, files, lacking, parameters })
    }

    /// What the catalogue says of it.
    #[must_use]
    pub fn info(&self, isq: Isq) -> ModelInfo {
        let size = |size: &Size| {
            let effective = size.effective_params_b;
            SizeInfo {
                name: size.name.clone(),
                effective_params_b: effective,
                memory_mib: self.memory(size, isq).peak.div_ceil(1 << 20),
            }
        };
        ModelInfo {
            engine: EngineKind::Mistralrs,
            sizes: self.sizes.iter().map(size).collect(),
            context_tokens: self.config.text.context_tokens,
        }
    }

    /// What a size takes, resident and at its peak.
    #[must_use]
    pub fn memory(&self, size: &Size, isq: Isq) -> memory::Memory {
        memory::estimate(&self.config, size, self.sliced, isq, self.full_precision())
    }

    /// Whether to compute in 32 bits: exact, and affordable for a small model.
    #[must_use]
    pub fn full_precision(&self) -> bool {
        self.parameters <= FULL_PRECISION_PARAMETERS
    }
}

/// The weights and the other files. All that is missing is told at once.
fn find_files(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), String> {
    let is_there = |name: &&&str| path.join(name).is_file();
    let mut missing: Vec<String> =
        NEEDED.iter().filter(|name| !is_there(name)).map(|name| (*name).to_owned()).collect();
    let single = path.join("model.safetensors");
    let weights = if single.is_file() {
        vec![single]
    } else {
        let mut shards = Shards::default();
        let folder = fs::read_dir(path).map_err(|error| error.to_string())?;
        for entry in folder.flatten() {
            shards.add(entry.file_name().to_str().unwrap_or_default());
        }
        missing.extend(shards.missing());
        shards.names().map(|name| path.join(name)).collect()
    };
    if !missing.is_empty() {
        return Err(format!(
            "its folder lacks {}: copy the whole folder of the original checkpoint",
            missing.join(", ")
        ));
    }
    let files =
        NEEDED.iter().chain(&OPTIONAL).filter(is_there).map(|name| path.join(name)).collect();
    Ok((weights, files))
}

/// Files named `model-00002-of-00003.safetensors`.
#[derive(Default)]
struct Shards {
    found: BTreeSet<u32>,
    total: u32,
}

impl Shards {
    const MAX: u32 = 1000;

    fn add(&mut self, name: &str) {
        let numbers = name
            .strip_prefix("model-")
            .and_then(|name| name.strip_suffix(".safetensors"))
            .and_then(|name| name.split_once("-of-"));
        let Some((index, total)) = numbers else { return };
        let (Ok(index), Ok(total)) = (index.parse(), total.parse()) else { return };
        if Self::name(index, total) == name && (1..=Self::MAX).contains(&total) {
            self.found.insert(index);
            self.total = self.total.max(total);
        }
    }

    fn name(index: u32, total: u32) -> String {
        format!("model-{index:05}-of-{total:05}.safetensors")
    }

    fn names(&self) -> impl Iterator<Item = String> {
        (1..=self.total).map(|index| Self::name(index, self.total))
    }

    fn missing(&self) -> Vec<String> {
        if self.total == 0 {
            return vec!["model.safetensors".into()];
        }
        let there = |index: &u32| !self.found.contains(index);
        (1..=self.total).filter(there).map(|index| Self::name(index, self.total)).collect()
    }
}

/// Compares what mistral.rs asks for with what is there; tells what is lacking but not needed.
fn compare(config: &Config, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<Wanted>, String> {
    let wanted = tensors::wanted(config);
    let parts: BTreeSet<&str> = wanted
        .iter()
        .filter(|wanted| tensors.contains_key(&wanted.name))
        .filter_map(|wanted| wanted.group)
        .collect();
    let mut lacking = Vec::new();
    let mut problems = Vec::new();
    for wanted in wanted {
        let Wanted { name, shape, group } = &wanted;
        match (tensors.get(name), group) {
            (None, Some(part)) if !parts.contains(part) => lacking.push(wanted),
            (None, _) if name == towers::OPTIONAL => {}
            (None, _) => problems.push(format!("tensor {name:?} is missing")),
            (Some(found), _) if found.shape != *shape => problems.push(format!(
                "tensor {name:?} has shape {:?}, and config.json asks for {shape:?}",
                found.shape
            )),
            (Some(found), _) if !["F32", "F16", "BF16"].contains(&found.dtype.as_str()) => {
                problems.push(format!(
                    "tensor {name:?} is {}, and only F32, F16 and BF16 can be loaded",
                    found.dtype
                ));
            }
            (Some(_), _) => {}
        }
    }
    if problems.is_empty() {
        return Ok(lacking);
    }
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    Err(problems.join("; "))
}

/// The sizes, and whether they come from a table.
fn read_sizes(path: &Path, config: &Config) -> Result<(Vec<Size>, bool), String> {
    let shape = config.shape();
    let own = if path.join(SIZES_FILE).is_file() { Some(text(path, SIZES_FILE)?) } else { None };
    let published = shape.widths.len() == PUBLISHED_LAYERS
        && shape.widths.iter().all(|width| *width == PUBLISHED_WIDTH);
    let table = match &own {
        Some(bytes) => {
            std::str::from_utf8(bytes).map_err(|error| format!("{SIZES_FILE}: {error}"))?
        }
        None if published => sizes::PUBLISHED,
        None => {
            let whole = Size {
                name: FULL.into(),
                effective_params_b: effective_params_b(config),
                widths: shape.widths,
                skipped: Vec::new(),
            };
            return Ok((vec![whole], false));
        }
    };
    config.check_sliceable().map_err(|why| format!("{SIZES_FILE}: {why}"))?;
    let sizes = sizes::parse(table, &shape).map_err(|why| format!("{SIZES_FILE}: {why}"))?;
    Ok((sizes, true))
}

/// As the published table counts: without the per-layer embeddings and the towers.
fn effective_params_b(config: &Config) -> f64 {
    let count: u64 = tensors::wanted(config)
        .iter()
        .filter(|wanted| {
            wanted.name.starts_with("model.language_model") && !wanted.name.contains("_per_layer.")
        })
        .map(|wanted| wanted.shape.iter().product::<u64>())
        .sum();
    count as f64 / 1e9
}

fn text(path: &Path, name: &str) -> Result<Vec<u8>, String> {
    let file = path.join(name);
    let told = |error: std::io::Error| format!("{name}: {error}");
    let bytes = fs::metadata(&file).map_err(told)?.len();
    if bytes > MAX_TEXT_BYTES {
        return Err(format!("{name}: {bytes} bytes, and at most {MAX_TEXT_BYTES} are read"));
    }
    fs::read(&file).map_err(told)
}

fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
pub(super) mod tests;
