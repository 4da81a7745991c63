//! Brings sessions to disk: one after the other, each as it is by then, and once for all the changes that
//! came meanwhile. So at most one thread writes, and no more waits to be written than there are sessions.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

use crate::types::Error;

type Waiter = oneshot::Sender<Result<(), Error>>;

/// What is to be written. The sessions own it, and have a task that runs it.
pub(super) struct Keeper {
    pending: Mutex<Pending>,
    /// Changes when there is something to write, and when it is written.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Pending {
    /// Names of sessions, with those who wait for each.
    ids: HashMap<String, Vec<Waiter>>,
    writing: bool,
}

impl Keeper {
    pub(super) fn new() -> Self {
        Self { pending: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a session that changed written, or what was kept of it removed. From any thread.
    pub(super) fn keep(&self, id: &str) {
        self.lock().ids.entry(id.to_owned()).or_default();
        self.changed.send_replace(());
    }

    /// The same, and waits until it is done.
    pub(super) async fn kept(&self, id: &str) -> Result<(), Error> {
        let (waiter, written) = oneshot::channel();
        self.lock().ids.entry(id.to_owned()).or_default().push(waiter);
        self.changed.send_replace(());
        written.await.map_err(|_| Error::Internal("sessions are no longer written".into()))?
    }

    /// Completes when everything is written.
    pub(super) async fn done(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            {
                let pending = self.lock();
                if pending.ids.is_empty() && !pending.writing {
                    return;
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes what is to be written, for as long as it is polled.
    pub(super) async fn run(
        &self,
        write: impl Fn(&str) -> Result<(), Error> + Clone + Send + 'static,
    ) {
        let mut changed = self.changed.subscribe();
        loop {
            let Some((id, waiters)) = self.next() else {
                if changed.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let write = write.clone();
            let written = tokio::task::spawn_blocking(move || write(&id)).await;
            let written = written.map_err(|error| Error::Internal(error.to_string())).flatten();
            self.lock().writing = false;
            for waiter in waiters {
                // Who no longer waits has lost interest.
                let _ = waiter.send(written.clone());
            }
            self.changed.send_replace(());
        }
    }

    fn next(&self) -> Option<(String, Vec<Waiter>)> {
        let mut pending = self.lock();
        let id = pending.ids.keys().next().cloned()?;
        pending.writing = true;
        pending.ids.remove_entry(&id)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    #[tokio::test]
    async fn what_comes_while_it_writes_is_written_once() {
        let keeper = Arc::new(Keeper::new());
        let written = Arc::new(Mutex::new(Vec::new()));
        let (begin, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let seen = Arc::clone(&written);
        let write = move |id: &str| {
            gate.lock().unwrap().recv().unwrap();
            seen.lock().unwrap().push(id.to_owned());
            if id == "bad" { Err(Error::Internal("no".into())) } else { Ok(()) }
        };
        let runs = Arc::clone(&keeper);
        tokio::spawn(async move { runs.run(write).await });
        keeper.keep("a");
        // It waits in the first write.
        while !keeper.lock().writing {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            keeper.keep("a");
        }
        let first = tokio::spawn({
            let keeper = Arc::clone(&keeper);
            async move { keeper.kept("a").await }
        });
        let bad = tokio::spawn({
            let keeper = Arc::clone(&keeper);
            async move { keeper.kept("bad").await }
        });
        while keeper.lock().ids.len() < 2 {
            tokio::task::yield_now().await;
        }
        for _ in 0..3 {
            begin.send(()).unwrap();
        }
        keeper.done().await;
        assert_eq!(first.await.unwrap(), Ok(()));
        assert!(bad.await.unwrap().is_err());
        let mut all = written.lock().unwrap().clone();
        all.sort();
        assert_eq!(all, ["a", "a", "bad"]);
    }
}
