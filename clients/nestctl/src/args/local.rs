//! The commands that need no daemon: models' files.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use nestd_elastic::kv::Store;

#[derive(Subcommand)]
pub enum ModelCommand {
    /// Show what is in a model's file, and what each size of it needs
    ///
    /// Reads a GGUF file of the elastic engine and checks it as the engine does. For each MatFormer
    /// size: the memory that it needs, by part, in MiB; what decode reads of the weights for a token,
    /// which decides its speed; and whether it fits the memory that this machine has left now. Sizes
    /// come from NAME.sizes.csv or sizes.csv beside the file, else from the published table.
    #[command(after_help = "Examples:\n  nestctl model inspect gemma-3n-E4B-Q4_0.gguf\n  \
        nestctl model inspect --context 32768 gemma-3n-E4B-Q4_0.gguf\n  \
        nestctl --json model inspect model.gguf | jq '.sizes[] | select(.fits) | .name'")]
    Inspect(InspectArgs),
    /// Write a copy of a model that decodes faster, and whose smaller sizes take less memory
    ///
    /// In the copy the matrices lie in the order in which decode reads them, in tiles of 16 rows: real
    /// models make 1.06 to 1.2 times as many tokens a second. In a GGUF file a small size reads a part of
    /// each row of `ffn_down`, too, and the pages of memory that hold it hold the rest; in the copy that
    /// part lies apart, so that E4B's file at size E2B takes 0.3 GB less. Weights and length stay the
    /// same. Only nestd reads it: keep the original for other programs. A table of sizes beside the file
    /// is copied too.
    #[command(after_help = "Example:\n  \
        nestctl model nest gemma-3n-E4B-Q4_0.gguf --out /var/lib/nestd/models/E4B.gguf")]
    Nest(NestArgs),
    /// Write a model of real dimensions with random weights
    ///
    /// For measuring a device, or trying a program, before the real model is there: speed and memory
    /// are those of the real one, and the answers are noise. llama.cpp loads the file too.
    #[command(after_help = "Examples:\n  \
        nestctl model synth --size E2B --quant q4_0 --out /tmp/e2b.gguf\n  \
        nestctl bench --model /tmp/e2b.gguf")]
    Synth(SynthArgs),
}

#[derive(Args)]
pub struct InspectArgs {
    /// The model's file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The tokens of a conversation to count memory for
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = tokens())]
    pub context: u32,
    /// What keys and values are stored as
    #[arg(long, value_enum, default_value_t)]
    pub kv: Kv,
    /// List every tensor too
    #[arg(long)]
    pub tensors: bool,
}

#[derive(Args)]
pub struct NestArgs {
    /// The model's file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct SynthArgs {
    /// Whose dimensions
    #[arg(long, value_enum, ignore_case = true)]
    pub size: SynthSize,
    /// How the large matrices are stored
    #[arg(long, value_enum, ignore_case = true, default_value_t = SynthQuant::Q4_0)]
    pub quant: SynthQuant,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Other numbers make other weights
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SynthSize {
    /// 30 layers: 3.2 GB in 4 bits
    #[value(name = "E2B")]
    E2B,
    /// 35 layers: 4.7 GB in 4 bits
    #[value(name = "E4B")]
    E4B,
    /// For tests of programs: 22 MB in 4 bits
    #[value(name = "small")]
    Small,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types, reason = "the field's names")]
pub enum SynthQuant {
    /// 4 bits, embeddings in 6
    #[value(name = "q4_0")]
    Q4_0,
    /// 4 bits with finer scales, embeddings in 6
    #[value(name = "q4_k")]
    Q4_K,
    /// 8 bits
    #[value(name = "q8_0")]
    Q8_0,
    /// 16 bits
    #[value(name = "f16")]
    F16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// 16 bits
    #[default]
    F16,
    /// 8 bits with scales: half the memory
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<Kv> for Store {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::F16,
            Kv::Q8_0 => Self::Q8_0,
        }
    }
}

/// A number of tokens.
fn tokens() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 20)
}
