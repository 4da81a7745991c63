//! `nestctl bench` without a model: clients that ask the daemon, each one request after the other, and
//! what they saw. `client` is one of them, `prompts` what they ask, `tally` what is counted, `report` what
//! is printed.

mod client;
mod prompts;
mod report;
mod tally;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt, stream};
use nestd_client::Client;
use nestd_client::v1::{Priority, StatusReport};
use tokio::time::Instant;

use super::random::Random;
use crate::args::{BenchArgs, Global, Transport};
use crate::connect;
use crate::problem::Problem;
use crate::render::{Screen, bar};
use client::{Plan, Way};
use prompts::Prompts;
use tally::Tally;

/// How long it takes where nobody says.
const DURATION_S: f64 = 10.0;
/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(200);
/// Connections that are made at a time.
const CONNECTING: usize = 16;

/// What was measured.
pub struct Measured {
    /// "grpc", "tcp", "dbus", or "fd" for D-Bus with the text in pipes.
    pub over: &'static str,
    /// Before it began.
    pub status: StatusReport,
    pub clients: u32,
    pub seed: u64,
    pub time: Duration,
    /// Each priority with the number of its clients, the most urgent first.
    pub priorities: Vec<(Priority, usize, Tally)>,
}

/// Asks, and shows what came of it.
pub async fn bench(global: &Global, args: &BenchArgs, screen: &mut Screen) -> Result<(), Problem> {
    let options = &args.daemon;
    let over = match (global.transport(), options.fd) {
        (Transport::Dbus(_), true) => "fd",
        (Transport::Dbus(_), false) => "dbus",
        (Transport::Grpc(_), false) => "grpc",
        (Transport::Tcp(..), false) => "tcp",
        (_, true) => return Err(Problem::Usage("--fd needs D-Bus: add --dbus or --bus".into())),
    };
    let Some(shared) = options.priority.share(options.clients) else {
        let problem = "--clients are too few: a priority in --priority has none";
        return Err(Problem::Usage(problem.into()));
    };
    let measuring = measure(global, args, &shared, over, screen);
    let (measured, problem) = measuring.await?;
    screen.clear();
    if problem.is_none() || measured.priorities.iter().any(|(.., tally)| tally.answered > 0) {
        if screen.json {
            screen.value(&report::json(&measured))?;
        } else {
            screen.text(&report::text(&measured))?;
            if let Some(note) = report::refusals(&measured) {
                screen.note(&note);
            }
        }
    }
    problem.map_or(Ok(()), Err)
}

/// Measures until the end, or until something is wrong.
async fn measure(
    global: &Global,
    args: &BenchArgs,
    shared: &[Priority],
    over: &'static str,
    screen: &mut Screen,
) -> Result<(Measured, Option<Problem>), Problem> {
    let options = &args.daemon;
    let mut random = Random::new(options.seed);
    screen.progress("connecting");
    let first = connect(global).await?;
    let prompts = Prompts::learn(&first, &mut random).await?;
    let status = first.status().await?;
    let ways: Vec<Way> = stream::iter(shared)
        .map(|_| way(global, options.fd))
        .buffered(CONNECTING)
        .try_collect()
        .await?;
    let plan = Plan {
        prompts,
        prompt_tokens: args.prompt_tokens.clone(),
        max_tokens: args.max_tokens.clone(),
        pause_ms: options.pause_ms.clone(),
        left: Cell::new(options.requests),
    };
    let limit = options.duration.or(options.requests.is_none().then_some(DURATION_S));
    let limit = limit.map(Duration::from_secs_f64);

    let tallies: Vec<(Priority, RefCell<Tally>)> =
        options.priority.priorities().map(|priority| (priority, RefCell::default())).collect();
    let began = Instant::now();
    let mut clients = FuturesUnordered::new();
    for (priority, way) in shared.iter().zip(&ways) {
        if let Some((_, tally)) = tallies.iter().find(|(known, _)| known == priority) {
            let random = Random::new(random.next());
            clients.push(client::run(way, *priority, &plan, tally, random));
        }
    }
    let over_at = async {
        match limit {
            Some(limit) => tokio::time::sleep_until(began + limit).await,
            None => std::future::pending().await,
        }
    };
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(over_at, interrupt);
    let mut ticks = tokio::time::interval(PROGRESS);
    let problem = loop {
        tokio::select! {
            () = &mut over_at => break None,
            _ = &mut interrupt => break Some(Problem::Interrupted),
            _ = ticks.tick() => {
                let tallies = tallies.iter().map(|(_, tally)| tally.borrow());
                let (asked, answered) = tallies
                    .fold((0, 0), |sum, tally| (sum.0 + tally.requests, sum.1 + tally.answered));
                let done = limit.map(|limit| began.elapsed().as_secs_f64() / limit.as_secs_f64());
                let requests = options.requests.map(|requests| answered as f64 / requests as f64);
                let done = done.into_iter().chain(requests).fold(0.0, f64::max).min(1.0);
                screen.progress(&format!("{} {asked} asked, {answered} answered", bar(done)));
            }
            ended = clients.next() => match ended {
                Some(Ok(())) => {}
                Some(Err(problem)) => break Some(problem),
                None => break None,
            },
        }
    };
    let time = began.elapsed();
    // What is under way is cancelled.
    drop(clients);
    let priorities = tallies.into_iter().map(|(priority, tally)| {
        let clients = shared.iter().filter(|shared| **shared == priority).count();
        (priority, clients, tally.into_inner())
    });
    let measured = Measured {
        over,
        status,
        clients: options.clients,
        seed: options.seed,
        time,
        priorities: priorities.collect(),
    };
    Ok((measured, problem))
}

/// A connection of its own.
async fn way(global: &Global, fd: bool) -> Result<Way, Problem> {
    Ok(match connect(global).await? {
        Client::Dbus(dbus) if fd => Way::Pipe(dbus),
        client => Way::Events(client),
    })
}
