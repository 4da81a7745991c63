//! What the end-to-end tests stand on: the real daemon, a private message bus, a temporary folder.
//!
//! A [`Daemon`] is started with its settings in a file, and counts as started when it has told READY
//! to a notification socket, as it would to systemd. Dropping it stops it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod bus;
mod daemon;
mod device;
mod mock;
mod pki;
mod squeeze;
mod user;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{FutureExt, Stream, StreamExt};
use nestd_client::v1::generate_event::Event;
use nestd_client::{Client, Error, v1};

pub use bus::Bus;
pub use daemon::{Builder, Daemon};
pub use device::Device;
pub use mock::Mock;
pub use pki::Authority;
pub use squeeze::{Balloon, Group, Reader};
pub use user::User;

/// A program that the workspace builds.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let folder = test.ancestors().nth(2).expect("tests run from target/PROFILE/deps");
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing: run ./test.sh, or `cargo build --release --workspace` first",
        program.display()
    );
    program
}

/// The project's folder.
#[must_use]
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The whole of a stream of events; its error is the stream's.
pub async fn collect(
    mut events: impl Stream<Item = Result<v1::GenerateEvent, Error>> + Unpin,
) -> Result<Vec<Event>, Error> {
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        all.push(event?.event.expect("an event has a kind"));
    }
    Ok(all)
}

/// The text of the events that have come already.
pub fn so_far(
    events: &mut (impl Stream<Item = Result<v1::GenerateEvent, Error>> + Unpin),
) -> String {
    let ready = std::iter::from_fn(|| events.next().now_or_never().flatten());
    text(&ready.map(|event| event.unwrap().event.unwrap()).collect::<Vec<_>>())
}

/// The text in a list of events.
#[must_use]
pub fn text(events: &[Event]) -> String {
    let text = events.iter().filter_map(|event| match event {
        Event::Text(text) => Some(text.delta.as_str()),
        _ => None,
    });
    text.collect()
}

/// The last event, which says how the request finished.
#[must_use]
pub fn finished(events: &[Event]) -> &v1::Finished {
    match events.last() {
        Some(Event::Finished(finished)) => finished,
        other => panic!("the last event is {other:?}"),
    }
}

/// Waits until the daemon's status is as wanted; fails after ten seconds.
pub async fn until(
    client: &Client,
    wanted: impl Fn(&v1::StatusReport) -> bool,
) -> v1::StatusReport {
    let began = Instant::now();
    loop {
        let status = client.status().await.expect("the daemon answers");
        if wanted(&status) {
            return status;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "the status stays {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
