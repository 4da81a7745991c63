//! One of the clients: asks, reads the answer as it comes, and asks again.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::time::Duration;

use futures::StreamExt;
use nestd_client::v1::{
    ErrorReason, Finished, GenerateRequest, Priority, Sampling, Stopping, generate_event::Event,
};
use nestd_client::{Client, Dbus, Error, Events, ask};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::super::random::Random;
use super::prompts::Prompts;
use super::tally::Tally;
use crate::problem::Problem;

/// How long to wait where the daemon names no time.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What all clients ask, and how much is left of it.
pub struct Plan {
    pub prompts: Prompts,
    pub prompt_tokens: RangeInclusive<u32>,
    pub max_tokens: RangeInclusive<u32>,
    pub pause_ms: RangeInclusive<u32>,
    /// Requests that nobody has made yet; None without an end.
    pub left: Cell<Option<u64>>,
}

impl Plan {
    /// Takes one of the requests that are left.
    fn take(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.map(|left| left.saturating_sub(1)));
        left != Some(0)
    }

    fn request(&self, priority: Priority, random: &mut Random) -> GenerateRequest {
        let tokens = random.within(&self.prompt_tokens);
        let max_tokens = random.within(&self.max_tokens);
        GenerateRequest {
            sampling: Some(Sampling { temperature: Some(0.0), ..Sampling::default() }),
            stopping: Some(Stopping { max_tokens, ..Stopping::default() }),
            priority: priority.into(),
            ..ask(self.prompts.of(tokens, random))
        }
    }
}

/// How the text comes.
pub enum Way {
    Events(Client),
    Pipe(Dbus),
}

/// What the reader of one answer saw.
pub struct Seen {
    called: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Times between two pieces of text.
    pub between: Vec<Duration>,
    pub end: Finished,
}

impl Seen {
    fn new() -> Self {
        let end = Finished::default();
        Self { called: Instant::now(), first: None, last: None, between: Vec::new(), end }
    }

    fn piece(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        if let Some(last) = self.last.replace(now) {
            self.between.push(now - last);
        }
    }

    /// From the call to the first text.
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.first? - self.called)
    }

    /// From the first text to the last.
    pub fn answering(&self) -> Option<Duration> {
        Some(self.last? - self.first?)
    }
}

/// Asks until nothing is left to ask. Ends with the first error that trying again does not mend.
pub async fn run(
    way: &Way,
    priority: Priority,
    plan: &Plan,
    tally: &RefCell<Tally>,
    mut random: Random,
) -> Result<(), Problem> {
    while plan.take() {
        let request = plan.request(priority, &mut random);
        loop {
            tally.borrow_mut().begun();
            match answer(way, request.clone()).await {
                Ok(seen) => {
                    tally.borrow_mut().ended(&seen);
                    break;
                }
                Err(Problem::Client(error)) => {
                    tally.borrow_mut().failed(&error);
                    let pause = pause_after(&error);
                    tokio::time::sleep(pause.ok_or(Problem::Client(error))?).await;
                }
                Err(problem) => return Err(problem),
            }
        }
        let pause = random.within(&plan.pause_ms);
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause.into())).await;
        }
    }
    Ok(())
}

/// How long to wait before it is tried again. None where that helps nobody.
pub fn pause_after(error: &Error) -> Option<Duration> {
    let passes = matches!(error.reason(), Some(ErrorReason::Lagged | ErrorReason::Internal));
    let named = error.retry_after().filter(|pause| !pause.is_zero());
    named.or(passes.then_some(RETRY_AFTER))
}

async fn answer(way: &Way, request: GenerateRequest) -> Result<Seen, Problem> {
    let mut seen = Seen::new();
    match way {
        Way::Events(client) => {
            let events = client.generate(request).await?;
            follow(events, &mut seen).await?;
        }
        Way::Pipe(dbus) => {
            let (reader, writer) = io::pipe().map_err(|error| wrong(&error))?;
            let events = dbus.generate_to_fd(writer.as_fd(), request).await?;
            drop(writer);
            let reader = pipe::Receiver::from_owned_fd(reader.into());
            read(reader.map_err(|error| wrong(&error))?, &mut seen).await?;
            follow(events, &mut seen).await?;
        }
    }
    Ok(seen)
}

async fn follow(mut events: Events, seen: &mut Seen) -> Result<(), Error> {
    while let Some(event) = events.next().await {
        match event?.event {
            Some(Event::Text(_)) => seen.piece(),
            Some(Event::Finished(end)) => seen.end = end,
            _ => {}
        }
    }
    Ok(())
}

/// The daemon closes its end after the last byte, however the request ends.
async fn read(mut reader: pipe::Receiver, seen: &mut Seen) -> Result<(), Problem> {
    let mut buffer = [0; 4096];
    while reader.read(&mut buffer).await.map_err(|error| wrong(&error))? > 0 {
        seen.piece();
    }
    Ok(())
}

fn wrong(error: &io::Error) -> Problem {
    Problem::Io(format!("a pipe for the text: {error}"))
}
