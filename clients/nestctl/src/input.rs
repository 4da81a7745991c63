//! What a command reads before it starts: a prompt from standard input. `main` calls it.

use std::io::{self, IsTerminal, Read};

use crate::{args::Command, problem::Problem};

/// Puts the standard input where a command wants its text from there.
pub fn read(mut command: Command) -> Result<Command, Problem> {
    let words = match &mut command {
        Command::Ask(args) => &mut args.question,
        Command::CountTokens(args) => &mut args.text,
        _ => return Ok(command),
    };
    let from_input = words.is_empty() || words.iter().eq(["-"]);
    if from_input {
        if words.is_empty() && io::stdin().is_terminal() {
            return Err(Problem::Usage(
                "give a text, or pipe one in (`-` reads what you type until Ctrl-D)".into(),
            ));
        }
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Problem::Io(format!("standard input cannot be read: {error}")))?;
        *words = vec![text.trim_end_matches(['\r', '\n']).to_owned()];
    }
    Ok(command)
}
