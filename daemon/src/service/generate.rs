//! The way of a request from its acceptance to the engine: what it may ask for, its place, whether it fits, and
//! its turn. What can be refused is refused by the call; then the request has a task of its own until the
//! engine thread takes it over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::queue::{Running, Ticket};
use super::quotas::Taken;
use super::requests::{Active, Entry};
use super::{Service, loading, no_background};
use crate::engine::Job;
use crate::stream::{self, Events, Sink};
use crate::types::{Client, Error, GenerateRequest, Message, Priority, State, check_messages};

impl Service {
    /// Accepts a request, or refuses it at once. Dropping the events cancels it.
    pub async fn generate(
        self: &Arc<Self>,
        client: &Client,
        request: GenerateRequest,
    ) -> Result<Events, Error> {
        let priority = request.priority;
        self.accept(client, request)
            .await
            .inspect_err(|error| self.metrics.refused(Some(priority), error))
    }

    async fn accept(
        self: &Arc<Self>,
        client: &Client,
        mut request: GenerateRequest,
    ) -> Result<Events, Error> {
        let settings = self.settings();
        if request.priority == Priority::Background
            && let Some(why) = self.allowance().no_background
        {
            return Err(no_background(&why));
        }
        let account = client.account();
        self.quotas.check(&account, Instant::now())?;
        let (turn, before) = if request.session.is_empty() {
            (None, Vec::new())
        } else {
            let question = request.messages.clone();
            let (turn, before) = self.sessions.turn(client, &request.session, question)?;
            (Some(turn), before)
        };
        request.check(&before, &settings.limits)?;
        request.messages.splice(0..0, before);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let ticket = self.queue.enter(id, client.clone(), request.priority)?;
        let (request, ticket) = self.admit(request, ticket).await?;
        let recorder = self.metrics.recorder(request.priority);
        let (sink, events) = stream::recorded(id, settings.buffer_bytes, recorder);
        let entry = Entry::new(sink.stopper(), client.clone(), request.priority);
        let active = Active::enter(self, id, entry);
        let session = turn.as_ref().map(|turn| turn.key);
        tracing::info!(request = id, %client, messages = request.messages.len(), "accepted");
        if let Some(turn) = turn {
            let answers = !request.prewarm;
            sink.record(Box::new(move |end, answer| {
                if answers {
                    turn.end(end, answer);
                }
            }));
        }
        if self.status.borrow().state == State::Parked {
            // It waits for the model, however soon that is there.
            sink.loading(0.0);
        }
        let (quotas, charged) = (Arc::clone(&self.quotas), account.clone());
        sink.charge(Box::new(move |prompt_tokens, completion_tokens| {
            let taken = Taken { prompt_tokens, completion_tokens };
            quotas.charge(&charged, taken, Instant::now());
        }));
        tokio::spawn(Arc::clone(self).run(request, account, session, sink, ticket, active));
        self.wake();
        Ok(events)
    }

    /// Refuses a prompt that does not fit the context, before it waits. It has its place in the queue by
    /// then, so no more are read than may wait. Memory needs no look: that of a whole context's KV cache
    /// for each place is part of what the size needs. While no model answers, or where the engine cannot
    /// tell all of the prompt, the engine refuses when it starts the request.
    async fn admit(
        &self,
        request: GenerateRequest,
        ticket: Ticket,
    ) -> Result<(GenerateRequest, Ticket), Error> {
        let ready = {
            let status = self.status.borrow();
            status.loaded.clone().filter(|_| status.state == State::Ready)
        };
        let Some((loaded, counter)) = ready.zip(self.engine.counter()) else {
            return Ok((request, ticket));
        };
        // It is read up to where an answer would begin, and the answer counts then.
        if request.prewarm {
            return Ok((request, ticket));
        }
        let (request, ticket, prompt_tokens) =
            self.counting.estimate(counter, request, ticket).await?;
        let max_tokens = request.stopping.max_tokens;
        let context_tokens = loaded.context_tokens.min(self.allowance().max_context);
        if prompt_tokens.saturating_add(max_tokens) > context_tokens {
            return Err(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
        }
        Ok((request, ticket))
    }

    /// Waits for the request's turn, and hands it to the engine.
    async fn run(
        self: Arc<Self>,
        mut request: GenerateRequest,
        account: String,
        session: Option<u64>,
        sink: Sink,
        ticket: Ticket,
        active: Active,
    ) {
        let cancelled = sink.cancelled();
        if request.stopping.deadline_ms > 0 {
            let stopper = sink.stopper();
            let ended = active.ended();
            let deadline = Duration::from_millis(request.stopping.deadline_ms);
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(deadline) => stopper.deadline(),
                    () = ended => {}
                }
            });
        }
        let running = tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            running = self.turn(ticket, &sink) => running,
        };
        match running {
            Ok(running) => {
                request.priority = running.priority();
                self.serve_as(active.id, request.priority);
                let place: (Running, Active) = (running, active);
                let place = Box::new(place);
                self.engine.generate(Job { request, account, session, sink, place });
            }
            Err(error) => sink.fail(error),
        }
    }

    /// Waits for the ticket's turn; meanwhile tells the position, and how a load goes.
    async fn turn(&self, ticket: Ticket, sink: &Sink) -> Result<Running, Error> {
        let mut status = self.status.subscribe();
        status.mark_changed();
        let turn = ticket.turn(|position| sink.queued(position));
        tokio::pin!(turn);
        loop {
            tokio::select! {
                biased;
                running = &mut turn => return running,
                Ok(()) = status.changed() => {
                    let status = status.borrow_and_update();
                    if status.state == State::Loading {
                        sink.loading(status.loading_fraction);
                    }
                }
            }
        }
    }

    /// Reads what a session holds, so that its next answer comes sooner.
    pub async fn prewarm_session(
        self: &Arc<Self>,
        client: &Client,
        id: &str,
        priority: Priority,
    ) -> Result<Events, Error> {
        let session = id.to_owned();
        let request =
            GenerateRequest { session, priority, prewarm: true, ..GenerateRequest::default() };
        self.generate(client, request).await
    }

    /// Counts the tokens of a conversation, template included.
    pub async fn count_tokens(
        self: &Arc<Self>,
        client: &Client,
        messages: Vec<Message>,
    ) -> Result<u32, Error> {
        check_messages(&messages, &self.settings().limits)?;
        {
            let status = self.status.borrow();
            match status.state {
                State::Ready => {}
                State::Parked => {
                    drop(status);
                    self.wake();
                    return Err(loading(""));
                }
                State::NoModel => {
                    return Err(Error::ModelNotLoaded { problem: status.problem.clone() });
                }
                State::Loading => return Err(loading(&status.loading)),
                State::Draining => return Err(Error::ShuttingDown),
            }
        }
        let problem = "it was unloaded just now".to_owned();
        let counter = self.engine.counter().ok_or(Error::ModelNotLoaded { problem })?;
        self.counting.count(client.account(), counter, messages).await
    }
}
