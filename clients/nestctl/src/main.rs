//! `nestctl`, the command-line client of nestd: reads the arguments, connects, runs one command, and
//! ends with the exit code that says how it went.

mod args;
mod ask;
mod bench;
mod chat;
mod conversation;
mod eval;
mod foreground;
mod generate;
mod governor;
mod input;
mod json;
mod logprobs;
mod machine;
mod model;
mod models;
mod problem;
mod render;
mod session;
mod status;
mod top;

use std::io::IsTerminal;
use std::process::ExitCode;

use args::{Cli, Command, Global, Transport};
use clap::Parser;
use nestd_client::{Certificates, Client, Dbus};
use problem::Problem;
use render::Screen;

fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let result = run(&global, command);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => problem.report(&global),
    }
}

fn run(global: &Global, command: Command) -> Result<(), Problem> {
    let mut screen = Screen::new(global.json);
    let command = match command {
        Command::Completions(args) => return generate::completions(&args, &mut screen),
        Command::Man(args) => return generate::man(&args, &mut screen),
        Command::Model(command) => return model::run(&command, &mut screen),
        Command::Bench(ref args) if bench::local(args, &mut screen)? => return Ok(()),
        Command::Governor(ref args) if governor::local(args.command.as_ref(), &mut screen)? => {
            return Ok(());
        }
        // Before anything is connected or awaited: reading a pipe blocks.
        command => input::read(command)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::Io(format!("no runtime: {error}")))?;
    let result = runtime.block_on(async {
        match &command {
            // These have something to do on Ctrl-C; the others are dropped, which cancels.
            Command::Chat(args) => chat::chat(&connect(global).await?, args, &mut screen).await,
            Command::Top(args) => top::top(global, args, &mut screen).await,
            Command::Eval(args) => eval::eval(&connect(global).await?, args, &mut screen).await,
            Command::Bench(args) => bench::daemon::bench(global, args, &mut screen).await,
            command => tokio::select! {
                result = perform(global, command, &mut screen) => result,
                _ = tokio::signal::ctrl_c() => Err(Problem::Interrupted),
            },
        }
    });
    screen.close();
    // A thread that still reads the terminal is not waited for.
    runtime.shutdown_background();
    result
}

async fn perform(global: &Global, command: &Command, screen: &mut Screen) -> Result<(), Problem> {
    let client = match (connect(global).await, command) {
        (Err(Problem::Client(error)), Command::Governor(args)) if args.simulates() => {
            let place = "without --model FILE.gguf the sizes are those of the daemon";
            return Err(Problem::At(place.into(), error));
        }
        (client, _) => client?,
    };
    match command {
        Command::Status => status::status(&client, screen).await,
        Command::Watch => status::watch(&client, screen).await,
        Command::CountTokens(args) => status::count_tokens(&client, args, screen).await,
        Command::Ask(args) => ask::ask(&client, args, screen).await,
        Command::Models => models::models(&client, screen).await,
        Command::Load(args) => models::load(&client, &args.model, &args.size, screen).await,
        Command::Size(args) if args.auto => governor::auto(&client, screen).await,
        Command::Size(args) => governor::pin(&client, &args.name, screen).await,
        Command::Governor(args) => governor::governor(&client, args.command.as_ref(), screen).await,
        Command::Foreground(args) => foreground::hold(&client, args, screen).await,
        Command::Session(command) => session::session(&client, command, screen).await,
        Command::Unload => models::unload(&client, screen).await,
        // Handled before.
        Command::Top(_)
        | Command::Chat(_)
        | Command::Eval(_)
        | Command::Model(_)
        | Command::Bench(_)
        | Command::Completions(_)
        | Command::Man(_) => Ok(()),
    }
}

async fn connect(global: &Global) -> Result<Client, Problem> {
    Ok(match global.transport() {
        Transport::Grpc(socket) => Client::grpc(socket).await?,
        Transport::Tcp(url, [Some(ca), Some(certificate), Some(key)]) => {
            Client::tcp(&url, &Certificates { ca, certificate, key }).await?
        }
        Transport::Tcp(url, files) => {
            let options = ["--ca", "--certificate", "--key"];
            let missing = options.iter().zip(files).filter(|(_, file)| file.is_none());
            let missing: Vec<_> = missing.map(|(option, _)| *option).collect();
            return Err(Problem::Usage(format!("{url} needs {} too", missing.join(", "))));
        }
        // With a person at the keyboard, polkit may ask for a password.
        Transport::Dbus(bus) => {
            Client::Dbus(Dbus::connect(&bus).await?.interactive(std::io::stdin().is_terminal()))
        }
    })
}
