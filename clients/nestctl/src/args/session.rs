//! The command line of `nestctl session`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub enum SessionCommand {
    /// List this user's sessions
    List,
    /// Make a session, and print its id
    #[command(
        after_help = "Examples:\n  id=$(nestctl session new --system \"Be brief.\" --prewarm)\n  \
        nestctl ask --session $id \"What can you do?\"\n  \
        nestctl session new --import talk.json"
    )]
    New(NewSessionArgs),
    /// Print what was said in a session so far; with --json in the form that --import takes
    #[command(after_help = "Example:\n  nestctl --json session show 0123456789abcdef > talk.json")]
    Show(SessionArgs),
    /// Make another session that goes on from where one is, and print its id
    Fork(SessionArgs),
    /// Have the model read a session now, so that its next answer comes sooner
    Prewarm(SessionArgs),
    /// End a session, and remove what is kept of it
    Delete(SessionArgs),
}

#[derive(Args)]
pub struct NewSessionArgs {
    /// Standing instructions to begin with
    #[arg(long, value_name = "TEXT", conflicts_with = "import")]
    pub system: Option<String>,
    /// Begin with the conversation in this file, as `--json session show` prints it
    #[arg(long, value_name = "FILE")]
    pub import: Option<PathBuf>,
    /// End it when it was not used for so many seconds [default: the configured time]
    #[arg(long, value_name = "S")]
    pub ttl_s: Option<u64>,
    /// Have the model read it at once
    #[arg(long)]
    pub prewarm: bool,
}

#[derive(Args)]
pub struct SessionArgs {
    /// Its id, from `nestctl session list`
    pub session: String,
}
