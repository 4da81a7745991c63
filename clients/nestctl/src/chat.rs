//! `nestctl chat`: a conversation, a line a turn. Keeps the transcript and sends it whole each time.

use std::io::{self, BufRead, IsTerminal};

use nestd_client::{
    Client, Error, message,
    v1::{Message, Role},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    args::ChatArgs,
    ask::{Said, answer, request, summary},
    problem::Problem,
    render::Screen,
};

const HELP: &str = "Type a line and press Enter. /reset starts over, /quit or Ctrl-D ends, Ctrl-C \
                    stops the answer.";

/// Talks until the input ends.
pub async fn chat(client: &Client, args: &ChatArgs, screen: &mut Screen) -> Result<(), Problem> {
    let person = io::stdin().is_terminal();
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Problem::Io(format!("signals cannot be caught: {error}")))?;
    let mut lines = lines();
    let mut turns: Vec<Message> = Vec::new();
    if person && !args.options.quiet {
        screen.note(HELP);
    }
    loop {
        if person && !screen.json {
            screen.text("> ")?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = interrupts.recv() => {
                if !person {
                    return Err(Problem::Interrupted);
                }
                screen.end_line()?;
                screen.note("Ctrl-D or /quit ends.");
                continue;
            }
        };
        let Some(line) = line else { return Ok(()) };
        // The terminal has echoed the line's end.
        screen.at_line_start();
        let line =
            line.map_err(|error| Problem::Io(format!("standard input cannot be read: {error}")))?;
        match line.trim() {
            "" => continue,
            "/quit" => return Ok(()),
            "/reset" => {
                turns.clear();
                if person {
                    screen.note("A new conversation.");
                }
                continue;
            }
            "/help" => {
                screen.note(HELP);
                continue;
            }
            _ => turns.push(message(Role::User, line)),
        }
        let mut said = Said::default();
        let end = tokio::select! {
            end = answer(client, request(&args.options, &turns), screen, &mut said) => end,
            _ = interrupts.recv() => Err(Problem::Interrupted),
        };
        match end {
            Ok(end) => {
                if person && !args.options.quiet && !screen.json {
                    screen.note(&summary(&end));
                }
            }
            Err(Problem::Interrupted) if person => {
                screen.clear();
                screen.end_line()?;
            }
            Err(Problem::Client(error)) if person && goes_on(&error) => {
                screen.end_line()?;
                screen.note(&format!("nestctl: {error}"));
            }
            Err(problem) => return Err(problem),
        }
        // What was said so far belongs to the conversation; a turn that got no answer does not.
        if said.text.is_empty() {
            turns.pop();
        } else {
            turns.push(message(Role::Assistant, said.text));
        }
    }
}

/// Whether the next line may fare better.
fn goes_on(error: &Error) -> bool {
    !matches!(error, Error::Unreachable(_) | Error::Disconnected(_))
}

/// The lines of standard input, read by a thread of its own, which ends with the process.
fn lines() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
