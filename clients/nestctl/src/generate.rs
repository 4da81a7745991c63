//! `nestctl completions` and `nestctl man`: what a package ships beside the program.

use std::{fs, io};

use clap::CommandFactory;

use crate::{
    args::{Cli, CompletionsArgs, ManArgs},
    problem::Problem,
    render::Screen,
};

/// Prints a completion script.
pub fn completions(args: &CompletionsArgs, screen: &mut Screen) -> Result<(), Problem> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nestctl", &mut script);
    Ok(screen.text(&String::from_utf8_lossy(&script))?)
}

/// Prints the page of nestctl, or writes a page for each command.
pub fn man(args: &ManArgs, screen: &mut Screen) -> Result<(), Problem> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return Ok(screen.text(&String::from_utf8_lossy(&page))?);
    };
    let failed =
        |error: io::Error| Problem::Io(format!("{} cannot be written: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    // Else a page for `help` would describe each command a second time.
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, dir).map_err(failed)
}
