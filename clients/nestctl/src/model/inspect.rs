//! `nestctl model inspect`: reads a file, and what each size of it needs here.

use nestd_elastic::config::Config;
use nestd_elastic::gguf::{Header, Tensor, Value};
use nestd_elastic::ladder::sizes_of;
use nestd_elastic::model::Model;
use nestd_elastic::need::{Need, need, read_per_token};
use nestd_elastic::tensor::Kind;

use super::{problem, report};
use crate::args::InspectArgs;
use crate::machine;
use crate::problem::Problem;
use crate::render::Screen;

/// What is in a file.
pub struct Inspected {
    /// As it was given.
    pub file: String,
    pub bytes: u64,
    pub name: Option<String>,
    pub config: Config,
    /// Tokens, and rows of the table of per-layer embeddings.
    pub vocabulary: usize,
    pub ple_rows: usize,
    /// By part, then by kind.
    pub kinds: Vec<Kinds>,
    pub context: u32,
    /// Largest first.
    pub sizes: Vec<Rung>,
    /// Bytes that could be taken right now.
    pub available: Option<u64>,
    /// In the order of the file.
    pub tensors: Vec<(String, Tensor)>,
}

/// The tensors of one kind in one part.
pub struct Kinds {
    pub part: &'static str,
    pub kind: Kind,
    pub tensors: usize,
    pub bytes: u64,
}

/// One size.
pub struct Rung {
    pub name: String,
    pub effective_params_b: f64,
    pub layers: usize,
    pub need: Need,
    pub read_per_token: u64,
}

impl Inspected {
    /// Whether a size fits what is available; None where that is not known.
    pub fn fits(&self, rung: &Rung) -> Option<bool> {
        self.available.map(|available| rung.need.total() <= available)
    }
}

/// Shows a file.
pub fn inspect(args: &InspectArgs, screen: &mut Screen) -> Result<(), Problem> {
    let inspected = read(args)?;
    if screen.json {
        screen.value(&report::json(&inspected, args.tensors))?;
    } else {
        screen.text(&report::text(&inspected, args.tensors))?;
    }
    Ok(())
}

fn read(args: &InspectArgs) -> Result<Inspected, Problem> {
    let wrong = |error| problem(&args.file, &error);
    // Opening checks everything that running relies on.
    let model = Model::open(&args.file).map_err(wrong)?;
    let header = Header::read(model.map().bytes()).map_err(wrong)?;
    let config = model.config();
    let context = usize::try_from(args.context).unwrap_or(usize::MAX);
    let mut sizes = Vec::new();
    for size in sizes_of(&args.file, config).map_err(wrong)? {
        let slice = model.slice(&size).map_err(wrong)?;
        sizes.push(Rung {
            need: need(&header, config, &slice, context, args.kv.into()),
            read_per_token: read_per_token(&header, config, &slice),
            layers: size.widths.len(),
            effective_params_b: size.effective_params_b,
            name: size.name,
        });
    }
    let tensors = header.tensors();
    let ple = header.tensor("per_layer_token_embd.weight");
    Ok(Inspected {
        file: args.file.display().to_string(),
        bytes: model.map().bytes().len() as u64,
        name: header.value("general.name").and_then(Value::as_str).map(str::to_owned),
        config: config.clone(),
        vocabulary: model.vocabulary(),
        ple_rows: ple.map_or(0, |table| table.rows),
        kinds: kinds(&tensors),
        context: args.context,
        sizes,
        available: machine::available_memory(),
        tensors: tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect(),
    })
}

fn kinds(tensors: &[(&str, Tensor)]) -> Vec<Kinds> {
    let mut all: Vec<Kinds> = Vec::new();
    for (name, tensor) in tensors {
        let (part, bytes) = (part(name), tensor.len as u64);
        match all.iter_mut().find(|kinds| kinds.part == part && kinds.kind == tensor.kind) {
            Some(kinds) => {
                kinds.tensors += 1;
                kinds.bytes += bytes;
            }
            None => all.push(Kinds { part, kind: tensor.kind, tensors: 1, bytes }),
        }
    }
    all.sort_by(|a, b| a.part.cmp(b.part).then(b.bytes.cmp(&a.bytes)));
    all
}

/// The part of the model that a tensor belongs to.
fn part(name: &str) -> &'static str {
    match name {
        "token_embd.weight" | "output.weight" => "embedding",
        "per_layer_token_embd.weight" => "ple",
        name if name.starts_with("blk.") => "layers",
        _ => "shared",
    }
}
