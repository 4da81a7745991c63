//! `nestctl model`: models' files, without a daemon.

mod inspect;
mod nest;
mod report;
mod synth;
mod write;

use std::path::Path;

use nestd_elastic::error::Error;

use crate::args::ModelCommand;
use crate::problem::Problem;
use crate::render::Screen;

/// Runs one of the commands.
pub fn run(command: &ModelCommand, screen: &mut Screen) -> Result<(), Problem> {
    match command {
        ModelCommand::Inspect(args) => inspect::inspect(args, screen),
        ModelCommand::Nest(args) => nest::nest(args, screen),
        ModelCommand::Synth(args) => synth::synth(args, screen),
    }
}

/// What is wrong with a file, as a sentence that names it.
pub fn problem(file: &Path, error: &Error) -> Problem {
    let name = file.display().to_string();
    let text = error.to_string();
    Problem::ModelFile(if text.starts_with(&name) { text } else { format!("{name}: {text}") })
}
