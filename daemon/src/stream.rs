//! A request's stream of events: the engine's end ([`Sink`]) and the reader's ([`Events`]).
//!
//! The buffer between them is bounded and never blocks the engine: text that waits is joined, and
//! a newer position or progress replaces an older one. A reader that leaves more text, log-probabilities
//! included, than the buffer holds ends its request with [`Error::Lagged`]. Dropping the reader cancels the request;
//! dropping the sink without an end ends it as cancelled, or as failed if nobody asked for that.
//!
//! Who owns it: the service makes the pair, keeps the sink while the request waits, and gives it to
//! the engine thread; the transport holds the reader.

mod progress;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio_util::sync::CancellationToken;

use crate::metrics::Recorder;
use crate::types::{Error, Event, FinishReason, Finished, Stage, Text, TokenLogprobs, Usage};
use progress::Progress;

/// Makes the two ends of request `id`, with room for `buffer_bytes` of unread text.
#[must_use]
pub fn channel(id: u64, buffer_bytes: usize) -> (Sink, Events) {
    ends(id, buffer_bytes, None)
}

/// The same for a request that is counted.
#[must_use]
pub fn recorded(id: u64, buffer_bytes: usize, recorder: Recorder) -> (Sink, Events) {
    ends(id, buffer_bytes, Some(recorder))
}

fn ends(id: u64, buffer_bytes: usize, recorder: Option<Recorder>) -> (Sink, Events) {
    let shared = Arc::new(Shared {
        id,
        recorder,
        buffer_bytes,
        accepted: Instant::now(),
        cancelled: CancellationToken::new(),
        ended: CancellationToken::new(),
        inner: Mutex::default(),
    });
    (Sink { shared: Arc::clone(&shared) }, Events { shared })
}

/// Tokens of all requests since the start of the process.
static TOKENS: AtomicU64 = AtomicU64::new(0);

/// Tokens that were made since the start of the process, for all requests together.
#[must_use]
pub fn tokens_made() -> u64 {
    TOKENS.load(Ordering::Relaxed)
}

/// Why a request was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Client,
    Deadline,
    Shutdown,
    Lagged,
}

struct Shared {
    id: u64,
    recorder: Option<Recorder>,
    buffer_bytes: usize,
    accepted: Instant,
    /// Cancelled once, with the cause in `inner`; the engine watches it.
    cancelled: CancellationToken,
    /// Cancelled when the last event is in the queue.
    ended: CancellationToken,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Event>,
    /// Of unread text and log-probabilities.
    text_bytes: usize,
    /// The last event was read.
    drained: bool,
    cause: Option<Cause>,
    reader: Option<Waker>,
    progress: Progress,
    record: Option<Record>,
    charge: Option<Charge>,
}

/// The answer so far, for who wants it whole at the end.
struct Record {
    answer: String,
    then: Then,
}

/// What is called with a request's last event and its answer, before its reader sees the end.
pub type Then = Box<dyn FnOnce(&Event, String) + Send>;

/// What is called at a request's end with the tokens of its prompt that were computed, and those of its
/// answer, before its reader sees the end.
pub type Charge = Box<dyn FnOnce(u32, u32) + Send>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The data is plain values: a panic while it was locked left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lagged(&self) -> Error {
        Error::Lagged { buffer_bytes: self.buffer_bytes as u64 }
    }

    fn cancel(&self, cause: Cause) {
        self.lock().cause.get_or_insert(cause);
        self.cancelled.cancel();
    }

    fn push(&self, event: Event) {
        let mut inner = self.lock();
        if self.ended.is_cancelled() {
            return;
        }
        let ends = matches!(event, Event::Finished(_) | Event::Failed(_));
        if let (Event::Text(delta), Some(record)) = (&event, &mut inner.record) {
            record.answer.push_str(&delta.delta);
        }
        // There is one sink, so nobody else ends the request meanwhile.
        if ends && let Some(charge) = inner.charge.take() {
            let (prompt, completion) = inner.progress.computed();
            drop(inner);
            charge(prompt, completion);
            inner = self.lock();
        }
        if ends && let Some(Record { answer, then }) = inner.record.take() {
            drop(inner);
            then(&event, answer);
            inner = self.lock();
        }
        log_end(self.id, &event);
        if let Some(recorder) = &self.recorder {
            recorder.ended(&event);
        }
        let waiting = inner.events.back_mut();
        match (waiting, event) {
            (Some(Event::Text(text)), Event::Text(next)) => {
                let bytes = next.bytes();
                text.append(next);
                inner.text_bytes += bytes;
            }
            (Some(waiting @ Event::Queued { .. }), event @ Event::Queued { .. })
            | (Some(waiting @ Event::Loading { .. }), event @ Event::Loading { .. })
            | (
                Some(waiting @ Event::Prefill { done_tokens: 1.., .. }),
                event @ Event::Prefill { .. },
            ) => {
                *waiting = event;
            }
            (_, event) => {
                if let Event::Text(text) = &event {
                    inner.text_bytes += text.bytes();
                }
                inner.events.push_back(event);
            }
        }
        if ends {
            self.ended.cancel();
        }
        let lagged = inner.text_bytes > self.buffer_bytes;
        if let Some(reader) = inner.reader.take() {
            reader.wake();
        }
        drop(inner);
        if lagged {
            self.cancel(Cause::Lagged);
        }
    }
}

/// The engine's end of a request.
pub struct Sink {
    shared: Arc<Shared>,
}

impl Sink {
    /// The request's number, unique for the daemon's life.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// Cancelled when the request shall stop, whoever wants it; then drop the sink.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.shared.cancelled.clone()
    }

    /// A handle that can end the request from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::clone(&self.shared) }
    }

    /// Has the answer collected, and `then` called at the end.
    pub fn record(&self, then: Then) {
        self.shared.lock().record = Some(Record { answer: String::new(), then });
    }

    /// Has the request charged to whoever asked for it.
    pub fn charge(&self, charge: Charge) {
        self.shared.lock().charge = Some(charge);
    }

    /// The request waits for `position` others.
    pub fn queued(&self, position: u32) {
        self.shared.push(Event::Queued { position });
    }

    /// The request waits for the model.
    pub fn loading(&self, fraction: f64) {
        self.shared.push(Event::Loading { fraction });
    }

    /// The model of this size makes what follows.
    pub fn size(&self, size: &str) {
        let sizes = &mut self.shared.lock().progress.sizes;
        if !sizes.iter().any(|known| known == size) {
            sizes.push(size.into());
        }
    }

    /// The answer goes on at the size `to`.
    pub fn size_changed(&self, from: &str, to: &str, reason: &str) {
        self.size(to);
        let (from, to, reason) = (from.into(), to.into(), reason.into());
        self.shared.push(Event::SizeChanged { from, to, reason });
    }

    /// The engine has read `done` of the prompt's `total` tokens, `cached` of them from a KV cache.
    pub fn prefill(&self, done: u32, total: u32, cached: u32) {
        {
            let progress = &mut self.shared.lock().progress;
            if progress.prefill_began.is_none() {
                let queued = self.shared.accepted.elapsed();
                progress.prefill_began = Some(Instant::now());
                let queue_ms = u64::try_from(queued.as_millis()).unwrap_or(u64::MAX);
                tracing::debug!(request = self.id(), queue_ms, prompt_tokens = total, "began");
                if let Some(recorder) = &self.shared.recorder {
                    recorder.began(queued, total, cached);
                }
            }
            progress.read_tokens = done;
            progress.usage.prompt_tokens = total;
            progress.usage.cached_tokens = cached;
        }
        self.shared.push(Event::Prefill { done_tokens: done, total_tokens: total });
    }

    /// The engine made `tokens` more tokens, which read `delta`; either may be empty.
    pub fn text(&self, delta: &str, tokens: u32) {
        self.text_with(delta, tokens, Vec::new());
    }

    /// The same, and tells how likely the tokens were.
    pub fn text_with(&self, delta: &str, tokens: u32, logprobs: Vec<TokenLogprobs>) {
        if tokens > 0 {
            TOKENS.fetch_add(tokens.into(), Ordering::Relaxed);
            let progress = &mut self.shared.lock().progress;
            let now = Instant::now();
            progress.usage.completion_tokens += tokens;
            progress.first_token.get_or_insert(now);
            let last = progress.last_token.replace(now);
            if let Some(recorder) = &self.shared.recorder {
                match last {
                    None => recorder.first(now - self.shared.accepted, tokens),
                    Some(last) => recorder.more(now - last, tokens),
                }
            }
        }
        if !delta.is_empty() || !logprobs.is_empty() {
            self.shared.push(Event::Text(Text { delta: delta.into(), logprobs }));
        }
    }

    /// The engine counts the tokens itself: replaces what [`Sink::prefill`] and [`Sink::text`] saw.
    pub fn usage(&self, usage: Usage) {
        self.shared.lock().progress.usage = usage;
    }

    /// The answer is whole.
    pub fn finish(self, reason: FinishReason) {
        let finished = self.shared.lock().progress.finished(reason, self.shared.accepted);
        self.shared.push(Event::Finished(finished));
    }

    /// The request failed.
    pub fn fail(self, error: Error) {
        self.shared.push(Event::Failed(error));
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let last = {
            let inner = self.shared.lock();
            let finished =
                |reason| Event::Finished(inner.progress.finished(reason, self.shared.accepted));
            match inner.cause {
                Some(Cause::Client) => finished(FinishReason::Cancelled),
                Some(Cause::Deadline) => finished(FinishReason::Deadline),
                Some(Cause::Shutdown) => Event::Failed(Error::ShuttingDown),
                Some(Cause::Lagged) => Event::Failed(self.shared.lagged()),
                None => Event::Failed(Error::Internal("the engine gave the request up".into())),
            }
        };
        self.shared.push(last);
    }
}

/// The one line about a request's end. Numbers only: prompts and answers are never logged.
fn log_end(request: u64, event: &Event) {
    match event {
        Event::Finished(Finished { reason, usage, timings, sizes }) => tracing::info!(
            request,
            ?reason,
            prompt_tokens = usage.prompt_tokens,
            completion_tokens = usage.completion_tokens,
            ttft_ms = timings.ttft_us / 1000,
            sizes = sizes.join(","),
            "finished"
        ),
        Event::Failed(error) => tracing::warn!(request, error = error.logged(), "failed"),
        _ => {}
    }
}

/// How far a request is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// What it does.
    pub stage: Stage,
    /// Its tokens so far.
    pub usage: Usage,
    /// Since it was accepted.
    pub age: Duration,
    /// From then to its first token; None until that is there.
    pub ttft: Option<Duration>,
}

/// Sees a request, and ends it, from outside its engine and its reader.
#[derive(Clone)]
pub struct Stopper {
    shared: Arc<Shared>,
}

impl Stopper {
    /// How far the request is.
    #[must_use]
    pub fn glance(&self) -> Glance {
        let accepted = self.shared.accepted;
        let progress = &self.shared.lock().progress;
        Glance {
            stage: match (progress.prefill_began, progress.first_token) {
                (_, Some(_)) => Stage::Decode,
                (Some(_), None) => Stage::Prefill,
                (None, None) => Stage::Queued,
            },
            usage: progress.usage,
            age: accepted.elapsed(),
            ttft: progress.first_token.map(|first| first - accepted),
        }
    }

    /// The client asked for the end.
    pub fn cancel(&self) {
        self.shared.cancel(Cause::Client);
    }

    /// Completes when the request was told to stop, whoever wanted it.
    pub fn stopped(&self) -> impl Future<Output = ()> + use<> {
        self.shared.cancelled.clone().cancelled_owned()
    }

    /// The request's deadline passed.
    pub fn deadline(&self) {
        self.shared.cancel(Cause::Deadline);
    }

    /// The daemon stops.
    pub fn shut_down(&self) {
        self.shared.cancel(Cause::Shutdown);
    }
}

/// The reader's end of a request. Dropping it cancels the request.
pub struct Events {
    shared: Arc<Shared>,
}

impl Events {
    /// The request's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// A handle that can cancel the request while someone else reads.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { shared: Arc::clone(&self.shared) }
    }

    /// Cancelled when the last event is there, read or not.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.shared.ended.clone()
    }

    /// What a reader is told that does not read.
    #[must_use]
    pub fn lagged(&self) -> Error {
        self.shared.lagged()
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut inner = self.shared.lock();
        match inner.events.pop_front() {
            Some(event) => {
                match &event {
                    Event::Text(text) => inner.text_bytes -= text.bytes(),
                    Event::Finished(_) | Event::Failed(_) => inner.drained = true,
                    _ => {}
                }
                Poll::Ready(Some(event))
            }
            None if inner.drained => Poll::Ready(None),
            None => {
                inner.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.cancel(Cause::Client);
    }
}

#[cfg(test)]
mod tests;
