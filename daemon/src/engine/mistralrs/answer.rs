//! One request: its prompt, its tokens, its end.
//!
//! The library's channel is emptied into the request's sink at once, because a reader that lags there
//! stalls every other request. Tokens are counted and drawn in a logits processor: the library reports
//! no usage for a request of this kind, and draws for all requests from one generator.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::mistralrs::{
    Constraint, Device, NormalRequest, Request, RequestMessage, Response, Result as TensorResult,
    SamplingParams, Tensor,
};
use nestd_elastic::text::sample::Draw;
use nestd_elastic::text::stop::Stops;
use tokio::sync::mpsc;

use super::super::Job;
use super::{Shared, count};
use crate::stream::Sink;
use crate::types::{Error, FinishReason, GenerateRequest, Sampling, Usage};

/// Pieces of text that the library may be ahead of its reader.
const PIECES: usize = 64;
/// How long a request that ended early may keep the next one waiting: the library reads a prompt whole.
const LET_GO: Duration = Duration::from_secs(60);
/// A token of a prompt takes no longer than this: the library reads a prompt in one step, and gives no sign
/// of life meanwhile. Gemma 3n E2B takes a sixteenth of it on two cores of a server.
const TOKEN: Duration = Duration::from_secs(1);
/// What is known when the library's thread has ended.
const BROKEN: &str = "it broke down, the log says why; if it happens again, load the model again";

impl Shared {
    /// Hands a prompt to the library.
    pub(super) async fn ask(
        &self,
        prompt: Vec<u32>,
        max_tokens: u32,
        sampling: &Sampling,
        made: Made,
    ) -> Result<Answer, String> {
        let (response, responses) = mpsc::channel(PIECES);
        let drawn = self.draw(sampling);
        let (counted, prompt_tokens) = (Arc::clone(&made), prompt.len());
        let patience = TOKEN * count(prompt_tokens);
        let work = self.work.clone();
        let choose = move |logits: &Tensor, context: &[u32]| {
            work.sign();
            let chosen = choose(logits, context.len(), drawn.as_ref());
            counted.store(count(context.len() + 1 - prompt_tokens), Ordering::Relaxed);
            chosen
        };
        #[expect(clippy::cast_possible_truncation, reason = "a penalty needs no 53 bits")]
        let penalty = |value: Option<f64>| value.map(|value| value as f32);
        let repetition = sampling.repetition_penalty.or(self.generation.repetition_penalty);
        let request = NormalRequest {
            messages: RequestMessage::CompletionTokens(prompt),
            sampling_params: SamplingParams {
                temperature: Some(0.0),
                presence_penalty: penalty(sampling.presence_penalty),
                frequency_penalty: penalty(sampling.frequency_penalty),
                repetition_penalty: penalty(repetition),
                max_len: Some(usize::try_from(max_tokens).unwrap_or(usize::MAX)),
                ..SamplingParams::neutral()
            },
            response,
            return_logprobs: false,
            is_streaming: true,
            id: 0,
            constraint: Constraint::None,
            suffix: None,
            tools: None,
            tool_choice: None,
            logits_processors: Some(vec![Arc::new(choose)]),
            return_raw_logits: false,
            web_search_options: None,
            model_id: None,
            truncate_sequence: false,
        };
        let gone = |error: &dyn std::fmt::Display| format!("mistral.rs has ended: {error}");
        let library = self.model.inner().get_sender(None).map_err(|error| gone(&error))?;
        self.work.begin(patience);
        library.send(Request::Normal(Box::new(request))).await.map_err(|error| gone(&error))?;
        Ok(Answer { responses, library, made })
    }

    /// How to draw, the model's own defaults where the request does not say. None is greedy.
    fn draw(&self, sampling: &Sampling) -> Option<Draw> {
        let defaults = &self.generation;
        let temperature = sampling.temperature.unwrap_or_else(|| defaults.temperature());
        let top_k = sampling.top_k.or(defaults.top_k).unwrap_or(0);
        (temperature > 0.0).then(|| Draw {
            temperature,
            top_k: usize::try_from(top_k).unwrap_or(0),
            top_p: sampling.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: sampling.min_p.or(defaults.min_p).unwrap_or(0.0),
            // The standard library's hasher starts at random: the one source of chance needed here.
            seed: sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
        })
    }
}

/// An answer that the library makes. Dropping it ends the answer at its next token.
pub(super) struct Answer {
    responses: mpsc::Receiver<Response>,
    library: mpsc::Sender<Request>,
    made: Made,
}

/// Tokens made so far. The library's sequence holds a clone, so it also tells when that is gone.
type Made = Arc<AtomicU32>;

impl Answer {
    /// Tokens so far, those included that are not text or not yet.
    fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
    }

    /// Reads it to its end.
    pub(super) async fn finish(&mut self) -> Result<(), String> {
        while let Some(response) = self.responses.recv().await {
            if let Piece::Failed(why) = Piece::of(response) {
                return Err(why);
            }
        }
        if self.made() == 0 { Err(BROKEN.into()) } else { Ok(()) }
    }
}

/// One of the library's responses.
enum Piece {
    Text(String),
    Last(String, FinishReason),
    Failed(String),
}

impl Piece {
    fn of(response: Response) -> Self {
        match response {
            Response::CompletionChunk(mut chunk) => match chunk.choices.pop() {
                None => Self::Text(String::new()),
                Some(choice) => match choice.finish_reason.as_deref() {
                    None => Self::Text(choice.text),
                    Some("length") => Self::Last(choice.text, FinishReason::Length),
                    Some(_) => Self::Last(choice.text, FinishReason::Stop),
                },
            },
            Response::InternalError(error) | Response::ValidationError(error) => {
                Self::Failed(error.to_string())
            }
            Response::CompletionModelError(why, _) | Response::ModelError(why, _) => {
                Self::Failed(why)
            }
            _ => Self::Failed("it answered with something else than text".into()),
        }
    }
}

/// One request, from its conversation to its last event. The place goes when this ends.
pub(super) async fn run(shared: Arc<Shared>, job: Job) {
    let Job { request, sink, place, .. } = job;
    // Ended before the place is given to the next.
    let working = shared.work.guard();
    let made = Made::default();
    let being_read = AtomicU32::new(0);
    let result = {
        let cancelled = sink.cancelled();
        tokio::select! {
            result = answer(&shared, &request, &sink, &made, &being_read) => Some(result),
            // Dropping the answer tells the library.
            () = cancelled.cancelled() => None,
        }
    };
    let request = sink.id();
    match result {
        None => {
            // The library reads a prompt whole that it was given, whoever has gone.
            let prompt_tokens = being_read.load(Ordering::Relaxed);
            if prompt_tokens > 0 {
                sink.prefill(prompt_tokens, prompt_tokens, 0);
            }
            // Dropping the sink tells the reader why.
            drop(sink);
        }
        Some(Ok((reason, true))) => {
            drop(working);
            drop(place);
            return sink.finish(reason);
        }
        Some(Ok((reason, false))) => sink.finish(reason),
        Some(Err(error)) => sink.fail(error),
    }
    // The library notices at its next token, or at the end of a prefill; the next request waits.
    let gone = async {
        while Arc::strong_count(&made) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(LET_GO, gone).await.is_err() {
        tracing::warn!(request, "mistral.rs keeps a request that was ended");
    }
    drop(working);
    drop(place);
}

/// Reads an answer to its end, or to a stop string; true if the library ended it. `being_read` is told
/// the tokens of the prompt while the library has it and nothing is known of its answer.
async fn answer(
    shared: &Arc<Shared>,
    request: &GenerateRequest,
    sink: &Sink,
    made: &Made,
    being_read: &AtomicU32,
) -> Result<(FinishReason, bool), Error> {
    if request.json_schema.is_some() {
        let why = "the engine mistralrs draws freely; the engine elastic, on a GGUF file, can";
        return Err(Error::unsupported("json_schema", why));
    }
    if request.prewarm {
        let why =
            "the engine mistralrs keeps no KV cache; the engine elastic, on a GGUF file, does";
        return Err(Error::unsupported("prewarming", why));
    }
    if request.top_logprobs.is_some() {
        let why =
            "the engine mistralrs does not tell them; the engine elastic, on a GGUF file, does";
        return Err(Error::unsupported("top_logprobs", why));
    }
    let max_tokens = request.stopping.max_tokens;
    let prompt = {
        let (shared, messages) = (Arc::clone(shared), request.messages.clone());
        // As in counting: the library's thread does not survive an asker that goes away.
        tokio::spawn(async move { shared.prompt(&messages).await })
            .await
            .map_err(|error| Error::Internal(format!("the prompt: {error}")))??
    };
    let prompt_tokens = count(prompt.len());
    let context_tokens = shared.context_tokens.load(Ordering::Relaxed);
    if prompt_tokens.saturating_add(max_tokens) > context_tokens {
        return Err(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
    }
    sink.size(&shared.size);
    sink.prefill(0, prompt_tokens, 0);
    let internal = |why: String| Error::Internal(format!("mistral.rs: {why}"));
    let asked = shared.ask(prompt, max_tokens, &request.sampling, Arc::clone(made)).await;
    let mut answer = asked.map_err(internal)?;
    being_read.store(prompt_tokens, Ordering::Relaxed);
    let mut stops = Stops::new(request.stopping.stop.clone());
    let mut told = 0;
    let end = loop {
        let piece = answer.responses.recv().await.map(Piece::of);
        let made = answer.made();
        if told == 0 && made > 0 {
            being_read.store(0, Ordering::Relaxed);
            sink.prefill(prompt_tokens, prompt_tokens, 0);
        }
        let new = made.saturating_sub(told);
        told = made;
        let (text, last) = match piece {
            Some(Piece::Text(text)) => (text, None),
            Some(Piece::Last(text, reason)) => (text, Some(reason)),
            Some(Piece::Failed(why)) => return Err(internal(why)),
            None if answer.library.is_closed() => {
                return Err(internal(
                    "it broke down; the log says why. Load the model again".into(),
                ));
            }
            // It sends nothing at the end of an answer that ends inside a character.
            None if made >= max_tokens => (String::new(), Some(FinishReason::Length)),
            None => (String::new(), Some(FinishReason::Stop)),
        };
        let passed = stops.push(&text);
        sink.text(&passed.text, new);
        if passed.stopped {
            break (FinishReason::Stop, false);
        }
        if let Some(reason) = last {
            sink.text(&stops.finish(), 0);
            break (reason, true);
        }
    };
    sink.usage(Usage { prompt_tokens, cached_tokens: 0, completion_tokens: told });
    Ok(end)
}

/// The library's logits with one token chosen: all others are impossible. Greedy ones stay as they
/// are, since the library takes the highest.
fn choose(logits: &Tensor, position: usize, draw: Option<&Draw>) -> TensorResult<Tensor> {
    let broken = || std::io::Error::other("the model computed no number; its weights are broken");
    let values = logits.to_vec1::<f32>()?;
    let Some(draw) = draw else {
        if values.iter().any(|logit| logit.is_nan()) {
            return Err(broken().into());
        }
        return Ok(logits.clone());
    };
    let token = draw.token(&values, position).ok_or_else(broken)?;
    let only = |index| if index == token { 0.0 } else { f32::NEG_INFINITY };
    Tensor::from_vec((0..values.len()).map(only).collect(), values.len(), &Device::Cpu)
}
