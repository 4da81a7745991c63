//! The engine `mistralrs`: a Hugging Face folder, run by the library mistral.rs on the CPU. This is
//! the only file that names the library.
//!
//! The library keeps the model on a thread of its own and answers through channels. A request is one
//! task here: it makes the prompt, hands it over as tokens, and empties the library's channel into the
//! request's sink at once, because a reader that lags there stalls every other request. The prompt
//! goes over as tokens so that it is the one that was counted, with one BOS; tokens are counted and
//! drawn in a logits processor, because the library reports no usage for such a request and draws for
//! all requests from one generator.
//!
//! Nothing goes over the network: the library reads a path that exists from the disk alone, and the
//! folder that it is given was just made.

mod load;
mod sample;
mod stop;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::mistralrs::{
    Constraint, Device, IsqType, Model, ModelDType, MultimodalLoaderType, MultimodalModelBuilder,
    NormalRequest, Request, RequestMessage, Response, Result as TensorResult, SamplingParams,
    Tensor, TextMessageRole, TextMessages, TokenSource, core,
};
use either::Either;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use self::sample::Draw;
use self::stop::Stops;
use super::checkpoint::Checkpoint;
use super::checkpoint::config::Generation;
use super::{Engine, Isq, Job, Plan, Step};
use crate::stream::Sink;
use crate::types::{
    Error, FinishReason, GenerateRequest, Loaded, Message, Part, Role, Sampling, Usage,
};

/// Pieces of text that the library may be ahead of its reader.
const PIECES: usize = 64;
/// How long counting waits for the library to end the step it is in.
const COUNT: Duration = Duration::from_secs(9);
/// How long the end of an engine waits for its memory to be given back.
const UNLOAD: Duration = Duration::from_secs(60);

/// A loaded model.
pub struct Mistralrs {
    loaded: Loaded,
    runtime: Runtime,
    shared: Arc<Shared>,
}

/// What the tasks of the requests need.
struct Shared {
    model: Model,
    generation: Generation,
    context_tokens: u32,
    size: String,
    /// The token that a prompt begins with, if the tokenizer has one.
    bos: Option<u32>,
}

impl Mistralrs {
    /// Loads one size of a checkpoint, with progress, and tries it on one token.
    pub fn load(plan: &Plan, progress: &dyn Fn(f64)) -> Result<Self, Error> {
        let invalid = |problem| Error::ModelInvalid { model: plan.model.clone(), problem };
        let checkpoint = Checkpoint::open(&plan.model, &plan.path)?;
        let prepared = load::prepare(plan, &checkpoint)?;
        let threads = || tokio::runtime::Builder::new_multi_thread();
        let runtime = threads()
            .worker_threads(1)
            .thread_name("nestd-mistralrs")
            .enable_time()
            .build()
            .map_err(|error| Error::Internal(format!("mistral.rs's runtime: {error}")))?;
        let shared = load::with_progress(progress, prepared.memory, || {
            let model = build(&prepared, &checkpoint, plan)?;
            let mut shared = Shared {
                model,
                generation: checkpoint.generation,
                context_tokens: prepared.context_tokens,
                size: plan.size.clone(),
                bos: None,
            };
            runtime.block_on(async {
                shared.bos = shared.find_bos(&prepared.bos).await?;
                shared.try_out().await?;
                Ok(shared)
            })
        })
        .map_err(invalid)?;
        progress(1.0);
        let loaded = Loaded {
            model: plan.model.clone(),
            engine: plan.info.engine,
            size: plan.size.clone(),
            sizes: checkpoint.sizes.iter().map(|size| size.name.clone()).collect(),
            context_tokens: prepared.context_tokens,
        };
        Ok(Self { loaded, runtime, shared: Arc::new(shared) })
    }
}

impl Engine for Mistralrs {
    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn start(&mut self, job: Job) {
        self.runtime.spawn(run(Arc::clone(&self.shared), job));
    }

    fn step(&mut self) -> Step {
        Step::Idle
    }

    fn count_tokens(&mut self, messages: &[Message]) -> Result<u32, Error> {
        let shared = Arc::clone(&self.shared);
        let messages = messages.to_vec();
        let (reply, answer) = oneshot::channel();
        // A task of its own, because the library's thread does not survive an asker that goes away.
        self.runtime.spawn(async move {
            let _ = reply.send(shared.prompt(&messages).await.map(|prompt| count(prompt.len())));
        });
        let waited = self.runtime.block_on(async { tokio::time::timeout(COUNT, answer).await });
        match waited {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Internal("the count of tokens was given up".into())),
            Err(_) => Err(Error::Busy {
                why: "the model is in the middle of a long prompt".into(),
                retry_after_ms: 5000,
            }),
        }
    }
}

impl Drop for Mistralrs {
    fn drop(&mut self) {
        let Ok(library) = self.shared.model.inner().get_sender(None) else { return };
        let ended = self.runtime.block_on(async {
            // The last request here tells the library's thread to end; the model goes with it.
            let _ = library.send(Request::Terminate).await;
            tokio::time::timeout(UNLOAD, library.closed()).await
        });
        if ended.is_err() {
            tracing::warn!("mistral.rs is still busy; its memory comes back later");
        }
    }
}

/// Has the library load the model. Runs on a thread made for it: the library keeps the quantization
/// in a thread-local variable, where the next load would find it.
fn build(prepared: &load::Prepared, checkpoint: &Checkpoint, plan: &Plan) -> Result<Model, String> {
    let folder = prepared.folder.to_str().ok_or("its path is not UTF-8")?;
    let parallel = usize::try_from(plan.settings.parallel_requests).unwrap_or(1).max(1);
    let mut builder = MultimodalModelBuilder::new(folder)
        .with_loader_type(MultimodalLoaderType::Gemma3n)
        .with_force_cpu()
        .with_device_mapping(core::DeviceMapSetting::dummy())
        .with_token_source(TokenSource::None)
        .with_max_num_seqs(parallel)
        .with_dtype(if checkpoint.full_precision() { ModelDType::F32 } else { ModelDType::F16 });
    if let Some(table) = &prepared.sizes_table {
        builder = builder
            .with_matformer_config_path(table.clone())
            .with_matformer_slice_name(plan.size.clone());
    }
    builder = match plan.settings.isq {
        Isq::None => builder,
        Isq::Q4k => builder.with_isq(IsqType::Q4K),
        Isq::Q5k => builder.with_isq(IsqType::Q5K),
        Isq::Q6k => builder.with_isq(IsqType::Q6K),
        Isq::Q8_0 => builder.with_isq(IsqType::Q8_0),
    };
    // On one thread the library leaves out a trial run whose errors it would swallow.
    tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(builder.build())
        .map_err(|error| format!("mistral.rs: {error:#}"))
}

impl Shared {
    /// The conversation as tokens, with the start of an answer and exactly one BOS.
    async fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        let mut text = TextMessages::new();
        for message in messages {
            let role = match message.role {
                Role::System => TextMessageRole::System,
                Role::User => TextMessageRole::User,
                Role::Assistant => TextMessageRole::Assistant,
            };
            text = text.add_message(role, message.text());
        }
        let prompt = self.tokenize(Either::Left(text)).await;
        let prompt = prompt.map_err(|why| {
            Error::invalid("messages", format!("the model's chat template refuses them: {why}"))
        })?;
        Ok(match self.bos {
            None => prompt,
            Some(bos) => {
                let rest = prompt.into_iter().skip_while(|token| *token == bos);
                std::iter::once(bos).chain(rest).collect()
            }
        })
    }

    async fn tokenize(&self, text: Either<TextMessages, String>) -> Result<Vec<u32>, String> {
        let tokens = self.model.tokenize(text, None, false, true, None).await;
        tokens.map_err(|error| error.to_string())
    }

    /// The token of the tokenizer's BOS string, if it has one.
    async fn find_bos(&self, bos: &str) -> Result<Option<u32>, String> {
        if bos.is_empty() {
            return Ok(None);
        }
        match *self.tokenize(Either::Right(bos.to_owned())).await? {
            [bos] => Ok(Some(bos)),
            _ => Err(format!("tokenizer_config.json: bos_token {bos:?} is not a token")),
        }
    }

    /// Makes one token. What is wrong with the weights shows here, and not in the first request.
    async fn try_out(&self) -> Result<(), String> {
        let hello = Message { role: Role::User, parts: vec![Part::Text("hello".into())] };
        let prompt = self.prompt(&[hello]).await.map_err(|error| error.to_string())?;
        let mut answer = self.ask(prompt, 1, &Sampling::default()).await?;
        while let Some(response) = answer.responses.recv().await {
            if let Piece::Failed(why) = Piece::of(response) {
                return Err(format!("a first answer failed: {why}"));
            }
        }
        if answer.made() == 0 {
            return Err("mistral.rs gave up on a first answer: the log says why".into());
        }
        Ok(())
    }

    /// Hands a prompt to the library.
    async fn ask(
        &self,
        prompt: Vec<u32>,
        max_tokens: u32,
        sampling: &Sampling,
    ) -> Result<Answer, String> {
        let (response, responses) = mpsc::channel(PIECES);
        let made = Arc::new(AtomicU32::new(0));
        let drawn = self.draw(sampling);
        let (counted, prompt_tokens) = (Arc::clone(&made), prompt.len());
        let choose = move |logits: &Tensor, context: &[u32]| {
            let chosen = choose(logits, context.len(), drawn.as_ref());
            counted.store(count(context.len() + 1 - prompt_tokens), Ordering::Relaxed);
            chosen
        };
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
struct Answer {
    responses: mpsc::Receiver<Response>,
    library: mpsc::Sender<Request>,
    made: Arc<AtomicU32>,
}

impl Answer {
    /// Tokens so far, those included that are not text or not yet.
    fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
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
async fn run(shared: Arc<Shared>, job: Job) {
    let Job { request, sink, place } = job;
    let result = {
        let cancelled = sink.cancelled();
        tokio::select! {
            result = answer(&shared, &request, &sink) => result,
            // Dropping the sink tells the reader why, dropping the answer tells the library.
            () = cancelled.cancelled() => return,
        }
    };
    drop(place);
    match result {
        Ok(reason) => sink.finish(reason),
        Err(error) => sink.fail(error),
    }
}

async fn answer(
    shared: &Arc<Shared>,
    request: &GenerateRequest,
    sink: &Sink,
) -> Result<FinishReason, Error> {
    let max_tokens = request.stopping.max_tokens;
    let prompt = {
        let (shared, messages) = (Arc::clone(shared), request.messages.clone());
        // As in counting: the library's thread does not survive an asker that goes away.
        tokio::spawn(async move { shared.prompt(&messages).await })
            .await
            .map_err(|error| Error::Internal(format!("the prompt: {error}")))??
    };
    let prompt_tokens = count(prompt.len());
    let context_tokens = shared.context_tokens;
    if prompt_tokens.saturating_add(max_tokens) > context_tokens {
        return Err(Error::ContextTooLong { prompt_tokens, max_tokens, context_tokens });
    }
    sink.size(&shared.size);
    sink.prefill(0, prompt_tokens, 0);
    let internal = |why: String| Error::Internal(format!("mistral.rs: {why}"));
    let mut answer = shared.ask(prompt, max_tokens, &request.sampling).await.map_err(internal)?;
    let mut stops = Stops::new(request.stopping.stop.clone());
    let mut told = 0;
    let end = loop {
        let piece = answer.responses.recv().await.map(Piece::of);
        let made = answer.made();
        if told == 0 && made > 0 {
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
            break FinishReason::Stop;
        }
        if let Some(reason) = last {
            sink.text(&stops.finish(), 0);
            break reason;
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

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
