//! The command line of `nestctl governor`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args)]
pub struct GovernorArgs {
    #[command(subcommand)]
    pub command: Option<GovernorCommand>,
}

impl GovernorArgs {
    /// Whether a trace is replayed.
    pub fn simulates(&self) -> bool {
        matches!(self.command, Some(GovernorCommand::Simulate(_)))
    }
}

#[derive(Subcommand)]
pub enum GovernorCommand {
    /// Print a line at each change of the size or of the reason, until Ctrl-C
    Watch,
    /// Ask for limits of the size, for as long as this runs
    ///
    /// Where wishes conflict, the strongest of these wins: memory and danger to the device, a pin
    /// (nestctl size), the smallest maximum, the largest minimum, battery and temperature.
    #[command(
        after_help = "Example:\n  nestctl governor hold --max E2B --no-background --reason \"a game runs\""
    )]
    Hold(HoldArgs),
    /// Write the readings as a trace, a line at each change and every so many seconds, until Ctrl-C
    Record(RecordArgs),
    /// Replay a recorded trace, and print every decision; needs no daemon if a model's file is named
    ///
    /// A trace is CSV with the header t_s, battery_percent, on_ac, mem_available_mib, mem_total_mib,
    /// psi_some_avg10, psi_full_avg10, temp_c, power_profile; an empty cell means that there is no
    /// such sensor.
    #[command(after_help = "Examples:\n  nestctl governor simulate day.csv --model model.gguf\n  \
        nestctl governor simulate day.csv --profile glasses --plot day.svg\n  \
        nestctl --json governor simulate day.csv --config mine.toml | jq .to")]
    Simulate(SimulateArgs),
    /// Print a shipped profile of thresholds, to start a configuration of your own from
    Profile(ProfileArgs),
}

#[derive(Args)]
pub struct HoldArgs {
    /// No smaller than this size
    #[arg(long, value_name = "SIZE", default_value = "", hide_default_value = true)]
    pub min: String,
    /// No larger than this size
    #[arg(long, value_name = "SIZE", default_value = "", hide_default_value = true)]
    pub max: String,
    /// Have no new background requests taken
    #[arg(long)]
    pub no_background: bool,
    /// Why, for whoever looks
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

#[derive(Args)]
pub struct RecordArgs {
    /// The file to write; - is standard output
    #[arg(value_name = "TRACE.csv", default_value = "-", hide_default_value = true)]
    pub file: PathBuf,
    /// Write a line at least this often, in seconds
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub every: u32,
}

#[derive(Args)]
pub struct SimulateArgs {
    /// The trace; - reads standard input
    #[arg(value_name = "TRACE.csv")]
    pub trace: PathBuf,
    /// The thresholds: glasses, headset, handheld or plugged
    #[arg(long, default_value = "headset")]
    pub profile: String,
    /// A TOML file whose table [governor] changes some of them
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// The model whose sizes are chosen from, a GGUF file [default: the daemon's]
    #[arg(long, value_name = "FILE.gguf")]
    pub model: Option<PathBuf>,
    /// Tokens of context that each size shall have room for
    #[arg(long, value_name = "TOKENS", default_value_t = 4096)]
    pub context: u32,
    /// A size that a person has pinned
    #[arg(long, value_name = "SIZE")]
    pub pin: Option<String>,
    /// Draw readings and size over time into this SVG
    #[arg(long, value_name = "OUT.svg")]
    pub plot: Option<PathBuf>,
}

#[derive(Args)]
pub struct ProfileArgs {
    /// glasses, headset, handheld or plugged
    pub name: String,
}
