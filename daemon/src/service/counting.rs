//! Counting tokens, for requests before they wait and for clients that ask. It takes no time of the engine's
//! thread; a few texts are read at a time, first come, first served, and each user may have a few at it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::engine::Counter;
use crate::types::{Error, GenerateRequest, Message};

/// Texts that are read at once.
const AT_ONCE: usize = 2;
/// Questions of one user that are not answered yet.
const OF_ONE: usize = 4;
/// How long a question may take: an engine that is asked itself may be in a long step.
const ANSWER: Duration = Duration::from_secs(10);

/// One instance, which the service owns.
pub(super) struct Counting {
    turns: Arc<Semaphore>,
    /// How many questions each user has.
    asking: Arc<Mutex<HashMap<String, usize>>>,
}

impl Counting {
    pub(super) fn new() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE)), asking: Arc::default() }
    }

    /// Counts for a client.
    pub(super) async fn count(
        &self,
        account: String,
        counter: Counter,
        messages: Vec<Message>,
    ) -> Result<u32, Error> {
        let asking = Asking::new(&self.asking, account)?;
        let turns = Arc::clone(&self.turns);
        // A task of its own: who leaves has no more going on than who stays.
        let count = tokio::spawn(async move {
            let _asking = asking;
            // Who waits for somebody else reads nothing: requests need the turns meanwhile.
            let Some(exact) = counter.exact else {
                let _turn = turns.acquire_owned().await;
                return blocking(move || (counter.estimate)(&messages)).await?;
            };
            exact(messages).await
        });
        match tokio::time::timeout(ANSWER, count).await {
            Ok(ended) => ended.map_err(|error| Error::Internal(error.to_string()))?,
            Err(_) => Err(Error::Busy {
                why: "the model is in the middle of a long prompt".into(),
                retry_after_ms: 5000,
            }),
        }
    }

    /// The tokens of a request's prompt, or fewer where only a part is known. `place` is what the request
    /// has while that goes on; it comes back, or goes when the reading is over.
    pub(super) async fn estimate<P: Send + 'static>(
        &self,
        counter: Counter,
        request: GenerateRequest,
        place: P,
    ) -> Result<(GenerateRequest, P, u32), Error> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        blocking(move || {
            let _turn = turn;
            // What its template refuses, the engine tells.
            let tokens = (counter.estimate)(&request.messages).unwrap_or(0);
            (request, place, tokens)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    count: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(count).await.map_err(|error| Error::Internal(error.to_string()))
}

/// A question that is not answered yet.
struct Asking {
    all: Arc<Mutex<HashMap<String, usize>>>,
    account: String,
}

impl Asking {
    fn new(all: &Arc<Mutex<HashMap<String, usize>>>, account: String) -> Result<Self, Error> {
        let mut asking = all.lock().unwrap_or_else(PoisonError::into_inner);
        let own = asking.entry(account.clone()).or_default();
        if *own >= OF_ONE {
            let why = format!("{OF_ONE} texts of this user are being counted");
            return Err(Error::Busy { why, retry_after_ms: 100 });
        }
        *own += 1;
        Ok(Self { all: Arc::clone(all), account })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asking = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = asking.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                asking.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_user_has_a_few_at_it_whether_it_waits_for_them_or_not() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let estimate = move |_: &[Message]| {
            gate.lock().unwrap().recv().unwrap();
            Ok(7)
        };
        let counter = Counter { estimate: Arc::new(estimate), exact: None };
        let counting = Arc::new(Counting::new());
        let ask = |account: &str| {
            let (counting, counter) = (Arc::clone(&counting), counter.clone());
            let account = account.to_owned();
            tokio::spawn(async move { counting.count(account, counter, Vec::new()).await })
        };
        for _ in 0..OF_ONE {
            // It leaves, and its text is read all the same.
            let asked = ask("a");
            while asked.is_finished() || counting.asking.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            tokio::task::yield_now().await;
            asked.abort();
        }
        let refused = ask("a").await.unwrap();
        assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
        let other = ask("b");
        for _ in 0..=OF_ONE {
            open.send(()).unwrap();
        }
        assert_eq!(other.await.unwrap(), Ok(7));
        while !counting.asking.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_busy_model_holds_up_no_request() {
        let counting = Arc::new(Counting::new());
        let exact: crate::engine::Exact = Arc::new(|_| Box::pin(std::future::pending()));
        let counter = Counter { estimate: Arc::new(|_| Ok(7)), exact: Some(exact) };
        for account in ["a", "b", "c"] {
            let (counting, counter) = (Arc::clone(&counting), counter.clone());
            tokio::spawn(async move { counting.count(account.into(), counter, vec![]).await });
        }
        while counting.asking.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
        let request = GenerateRequest::default();
        let (_, (), tokens) = counting.estimate(counter, request, ()).await.unwrap();
        assert_eq!(tokens, 7);
    }
}
