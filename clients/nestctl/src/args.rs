//! The command line: what `--help`, the man pages and the completions are made of. `main` reads it.

// The doc comments are what a person reads on the terminal, where backticks have no meaning.
#![allow(clippy::doc_markdown)]

mod bench;
mod foreground;
mod global;
mod governor;
mod local;
mod session;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nestd_client::v1::Priority;

pub use bench::{BenchArgs, EngineArgs};
pub use foreground::ForegroundArgs;
pub use global::{Global, Transport};
pub use governor::{
    GovernorArgs, GovernorCommand, HoldArgs, ProfileArgs, RecordArgs, SimulateArgs,
};
pub use local::{InspectArgs, ModelCommand, NestArgs, SynthArgs, SynthQuant, SynthSize};
pub use session::{NewSessionArgs, SessionCommand};

const AFTER_HELP: &str = "\
Examples:
  nestctl status
  nestctl ask \"What can you do?\"
  git diff | nestctl ask --system \"Sum up the change in one line.\" -
  nestctl --dbus chat
  nestctl load demo --size small && nestctl size large
  nestctl --json watch | jq .state
  nestctl model inspect model.gguf

Exit codes:
  0    it worked
  1    the request failed (any other error), or a model's file is damaged
  2    the command line is wrong, or a file that it names
  3    the daemon cannot be reached, went away, or is stopping
  4    an argument is invalid or not supported, the prompt is too long, or there is no such model
  5    busy, or the queue is full: try again
  6    no model is loaded, or it cannot be: its files are bad, or there is too little memory
  7    not allowed
  130  interrupted

With --json, an error is an object on standard error:
  {\"error\":{\"reason\":\"QUEUE_FULL\",\"message\":\"…\",\"details\":{\"limit\":\"8\"}}}

Environment:
  NESTCTL_SOCKET   the daemon's socket, where --socket is not given
  NESTCTL_BUS      the message bus for --dbus, where --bus is not given
  NESTCTL_SERVER   the daemon's address on TCP, where neither --server nor --socket is given
  NESTCTL_CA, NESTCTL_CERTIFICATE, NESTCTL_KEY
                   the files for TCP, where --ca, --certificate and --key are not given";

/// Talks to nestd, the daemon that serves Gemma 3n on this device.
///
/// Asks the model questions, shows what the daemon does, and loads models at a MatFormer size. Every
/// command works over gRPC (the daemon's socket) and over D-Bus, but for `model` and `bench --model`,
/// which work without the daemon.
#[derive(Parser)]
#[command(name = "nestctl", version, after_long_help = AFTER_HELP, propagate_version = true)]
#[command(after_help = "`nestctl --help` has examples and the exit codes.")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show what the daemon is and does
    Status,
    /// Ask one question; the answer is printed as it comes
    ///
    /// The answer goes to standard output; progress and, at the end, times go to standard error.
    /// Ctrl-C cancels.
    #[command(after_help = "Examples:\n  nestctl ask \"What is the capital of France?\"\n  \
        nestctl ask --temperature 0 --max-tokens 50 \"Tell me a joke.\"\n  \
        nestctl ask --logprobs 3 \"What is 7 plus 8?\"\n  \
        cat letter.txt | nestctl ask --system \"Translate to German.\"")]
    Ask(AskArgs),
    /// Hold a conversation, a line a turn
    ///
    /// On a terminal: Ctrl-C stops the answer under way, Ctrl-D or /quit ends, /reset starts over.
    /// Lines can be piped in too.
    Chat(ChatArgs),
    /// Keep conversations in the daemon, so that a turn sends and computes only what is new
    ///
    /// These are persistent: they are this user's, over any connection, and outlive the daemon.
    #[command(subcommand)]
    Session(SessionCommand),
    /// List the models in the daemon's folder
    Models,
    /// Load a model, or the loaded one at another size
    Load(LoadArgs),
    /// Give the model's memory back
    Unload,
    /// Fix the MatFormer size, across restarts, or let go of it
    ///
    /// While the governor is off, this loads the model at the size.
    #[command(after_help = "`nestctl status` lists the sizes of the loaded model.")]
    Size(SizeArgs),
    /// Show what the device can afford, the size that follows from it, and what would change it
    Governor(GovernorArgs),
    /// Say which app is in the foreground, for as long as this runs
    ///
    /// Only that app's interactive requests are then served as interactive ones; others' are served as
    /// normal ones. All that is given must be so of the app. The newest of several leases is in force.
    #[command(
        after_help = "Example:\n  nestctl foreground --unit captions.service --reason \"its \
        window has the focus\""
    )]
    Foreground(ForegroundArgs),
    /// Print the status, and again at each change, until Ctrl-C
    Watch,
    /// Show a live view: the daemon, the governor, rates, and the requests of all clients
    ///
    /// It is renewed each second; q, Esc or Ctrl-C quits. Without a terminal, with --once or with --json
    /// it is printed once. What requests ask and what is answered is never shown.
    #[command(
        after_help = "Columns: TOKENS made so far, TOK/S of the last second, TTFT time to first \
        token, AGE since the call.\nTTFT p50 is the median of the requests that this view has seen."
    )]
    Top(TopArgs),
    /// Count the tokens that a text takes as a question, template included
    CountTokens(CountTokensArgs),
    /// Measure how often the answers to a file of questions are right
    ///
    /// Asks every question greedily at each size and compares the answer with the expected one,
    /// leading and trailing white space aside. The size from before is loaded again at the end.
    #[command(after_help = "Each line of the file is an object; skill may be left out:\n  \
        {\"messages\": [{\"role\": \"user\", \"content\": \"What is 2 + 2?\"}], \"answer\": \"4\", \
        \"skill\": \"sums\"}")]
    Eval(EvalArgs),
    /// Look into models' files, or write one for measurements; needs no daemon
    #[command(subcommand)]
    Model(ModelCommand),
    /// Put the daemon under load, or measure how fast a model runs in this process
    ///
    /// Without --model: many clients ask the daemon, and what they saw is told for each priority: how
    /// requests ended, how long the first token took (TTFT), what passed between tokens, how long they
    /// waited in the queue. What is refused is asked again when the daemon says so.
    ///
    /// With --model: loads the model into this process, reads a random prompt in steps of 128 tokens, and
    /// makes tokens greedily. The memory's bandwidth is measured in the same run, as decode can be no
    /// faster than the weights are read.
    #[command(after_help = "Examples:\n  \
        nestctl bench --clients 8 --priority interactive=1,background=3 --duration 60\n  \
        nestctl --dbus bench --fd --prompt-tokens 16..512 --max-tokens 32..256 --requests 100\n  \
        nestctl bench --model model.gguf --size E2B --prompt-tokens 512 --threads 4\n  \
        nestctl --json bench --model model.gguf --switch-every 8 | jq .switches")]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  nestctl completions bash > \
        ~/.local/share/bash-completion/completions/nestctl")]
    Completions(CompletionsArgs),
    /// Print the man page, or write the pages of all commands into a folder
    Man(ManArgs),
}

/// How an answer is drawn and where it ends; what is not given is left to the model and the daemon.
#[derive(Args, Clone, Default)]
pub struct Options {
    /// Standing instructions, put before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Randomness, 0 (none) to 2
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f64>,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Draw from the smallest set of tokens with this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Drop tokens below this share of the likeliest one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Make the answer repeatable
    #[arg(long)]
    pub seed: Option<u64>,
    /// Lower tokens that occurred, -2 to 2
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,
    /// Lower tokens as often as they occurred, -2 to 2
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,
    /// Divide tokens that occurred; 1 is off
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
    /// Make at most this many tokens
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Make the answer JSON that follows the JSON Schema in this file
    #[arg(long, value_name = "FILE", value_parser = text_of)]
    pub json_schema: Option<String>,
    /// How urgent it is
    #[arg(long, value_enum, default_value_t)]
    pub priority: Urgency,
    /// End the request after this many milliseconds, waiting included
    #[arg(long, value_name = "MS")]
    pub deadline_ms: Option<u64>,
    /// Print no times at the end
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Urgency {
    /// Somebody waits for it: it goes first
    #[default]
    Interactive,
    Normal,
    /// Nobody waits for it: it stands still while others are answered
    Background,
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Interactive => Self::Interactive,
            Urgency::Normal => Self::Normal,
            Urgency::Background => Self::Background,
        }
    }
}

/// What is in a file.
fn text_of(file: &str) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("it cannot be read: {error}"))
}

#[derive(Args)]
pub struct AskArgs {
    /// The question; - or nothing reads it from standard input
    pub question: Vec<String>,
    /// Ask in this session (nestctl session new), which keeps question and answer
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Print after the answer how likely each of its tokens was, and the N likeliest (0 to 20) in its place
    #[arg(long, value_name = "N")]
    pub logprobs: Option<u32>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct LoadArgs {
    /// A name from `nestctl models` [default: the loaded model, or the configured one]
    #[arg(default_value = "", hide_default_value = true)]
    pub model: String,
    /// The MatFormer size [default: the configured one, or the largest]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub size: String,
}

#[derive(Args)]
pub struct SizeArgs {
    /// The size's name
    #[arg(required_unless_present = "auto", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Let go: the size follows battery, memory and temperature again
    #[arg(long, conflicts_with = "name")]
    pub auto: bool,
}

#[derive(Args)]
pub struct TopArgs {
    /// Print it once, as text
    #[arg(long)]
    pub once: bool,
}

#[derive(Args)]
pub struct CountTokensArgs {
    /// The text; - or nothing reads it from standard input
    pub text: Vec<String>,
}

#[derive(Args)]
pub struct EvalArgs {
    /// The questions
    #[arg(value_name = "FILE.jsonl")]
    pub file: PathBuf,
    /// The sizes to ask at, as names with commas, or all [default: the one in use]
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    pub sizes: Vec<String>,
    /// Make at most this many tokens an answer
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Ask this many at a time [default: as many as the daemon answers at once]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub parallel: Option<u32>,
    /// Write each answer into this file, an object a line
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
}

#[derive(Args)]
pub struct CompletionsArgs {
    pub shell: clap_complete::Shell,
}

#[derive(Args)]
pub struct ManArgs {
    /// The folder for the pages
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use nestd_client::Bus;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(words: &[&str]) -> Cli {
        Cli::try_parse_from(["nestctl"].iter().chain(words)).unwrap()
    }

    #[test]
    fn options_work_before_and_after_the_command() {
        assert!(parse(&["--json", "status"]).global.json);
        let after = parse(&["status", "--json", "--bus", "session"]).global;
        assert!(after.json);
        assert!(matches!(after.transport(), Transport::Dbus(Bus::Session)));
        let socket = parse(&["--socket", "/s", "status"]).global;
        assert!(matches!(socket.transport(), Transport::Grpc(path) if path == *"/s"));
        assert!(Cli::try_parse_from(["nestctl", "--grpc", "--dbus", "status"]).is_err());
        let tcp =
            parse(&["--server", "https://tablet:1", "--ca", "/ca", "status", "--key", "/key"]);
        assert!(matches!(tcp.global.transport(), Transport::Tcp(url, [Some(_), None, Some(_)])
            if url == "https://tablet:1"));
        let both = ["nestctl", "--server", "https://tablet:1", "--socket", "/s", "status"];
        assert!(Cli::try_parse_from(both).is_err());
    }

    #[test]
    fn commands_without_a_daemon_have_their_defaults() {
        let Command::Model(ModelCommand::Inspect(args)) =
            parse(&["model", "inspect", "m.gguf", "--json"]).command
        else {
            panic!("not inspect")
        };
        assert_eq!((args.context, args.tensors), (4096, false));
        let Command::Model(ModelCommand::Synth(args)) =
            parse(&["model", "synth", "--size", "e2b", "--quant", "Q4_K", "--out", "m"]).command
        else {
            panic!("not synth")
        };
        assert_eq!((args.size, args.quant), (SynthSize::E2B, SynthQuant::Q4_K));
        assert!(!args.force);
        let Command::Bench(args) = parse(&["bench", "--model", "m"]).command else {
            panic!("not bench")
        };
        assert_eq!(
            (args.prompt_tokens, args.max_tokens, args.engine.repeat),
            (128..=128, 64..=64, 3)
        );
        for wrong in [
            &["model"][..],
            &["model", "inspect"],
            &["model", "inspect", "m", "--context", "0"],
            &["model", "synth", "--size", "E3B", "--out", "m"],
            &["bench", "--model", "m", "--switch-to", "E2B"],
            &["bench", "--model", "m", "--switch-every", "0"],
            &["bench", "--model", "m", "--clients", "2"],
            &["bench", "--threads", "2"],
        ] {
            assert!(Cli::try_parse_from(["nestctl"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_question_may_be_several_words_and_a_penalty_negative() {
        let Command::Ask(args) =
            parse(&["ask", "--presence-penalty", "-1", "why", "not", "--stop", "a", "--stop", "b"])
                .command
        else {
            panic!("not ask")
        };
        assert_eq!(args.question, ["why", "not"]);
        assert_eq!(args.options.presence_penalty, Some(-1.0));
        assert_eq!(args.options.stop, ["a", "b"]);
    }
}
