//! The engine `mistralrs`: a Hugging Face folder, run by the library mistral.rs on the CPU. Only this
//! folder names the library.
//!
//! The library keeps the model on a thread of its own and answers through channels. A request is one
//! task here (`answer`). The prompt goes over as tokens, so that it is the one that was counted, with
//! one BOS.
//!
//! One request at a time: when the library has several sequences of Gemma 3n, their KV caches get mixed
//! up and answers go wrong. With four at once the demo model had 70 % of its questions right, with four
//! of which it ran one 98 %, and 100 % one by one. So the place of a request that ends early is kept
//! until the library has let go of its sequence.
//!
//! Nothing goes over the network: the library reads a path that exists from the disk alone, and the
//! folder that it is given was just made.

mod answer;
mod load;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::mistralrs::{
    IsqType, Model, ModelDType, MultimodalLoaderType, MultimodalModelBuilder, Request,
    TextMessageRole, TextMessages, TokenSource, core, error, model_builder_trait,
};
use either::Either;
use futures::future::BoxFuture;
use tokio::runtime::Runtime;

use super::checkpoint::Checkpoint;
use super::checkpoint::config::Generation;
use super::pulse::Work;
use super::thread::not_loaded;
use super::{Constraints, Counter, Engine, Isq, Job, Plan, Pulse, Step};
use crate::types::{Error, Loaded, Message, Part, Role, Sampling};

/// How long the end of an engine waits for its memory to be given back.
const UNLOAD: Duration = Duration::from_secs(60);

/// A loaded model.
pub struct Mistralrs {
    loaded: Loaded,
    runtime: Runtime,
    shared: Arc<Shared>,
    /// The model itself. The last to go, so that its memory is back when this is dropped.
    pipeline: Pipeline,
}

type Pipeline = Arc<tokio::sync::Mutex<dyn core::Pipeline>>;

/// What the tasks of the requests need.
struct Shared {
    model: Model,
    generation: Generation,
    /// What a request may have right now.
    context_tokens: AtomicU32,
    size: String,
    /// The token that a prompt begins with, if the tokenizer has one.
    bos: Option<u32>,
    /// The library's signs of life.
    work: Work,
}

impl Mistralrs {
    /// Loads one size of a checkpoint, with progress, and tries it on one token.
    pub fn load(plan: &Plan, progress: &dyn Fn(f64), pulse: &Pulse) -> Result<Self, Error> {
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
        let (shared, pipeline) = load::with_progress(progress, prepared.memory, || {
            let (model, pipeline) = build(&prepared, &checkpoint, plan)?;
            let mut shared = Shared {
                model,
                generation: checkpoint.generation,
                context_tokens: AtomicU32::new(prepared.context_tokens),
                size: plan.size.clone(),
                bos: None,
                work: pulse.library.clone(),
            };
            runtime.block_on(async {
                shared.bos = shared.find_bos(&prepared.bos).await?;
                shared.try_out().await?;
                Ok((shared, pipeline))
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
            parallel_requests: 1,
        };
        Ok(Self { loaded, runtime, shared: Arc::new(shared), pipeline })
    }
}

impl Engine for Mistralrs {
    fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn start(&mut self, job: Job) {
        self.runtime.spawn(answer::run(Arc::clone(&self.shared), job));
    }

    fn step(&mut self) -> Step {
        Step::Idle
    }

    /// Only the context: the library keeps no caches that no request uses.
    fn constrain(&mut self, constraints: Constraints) {
        let context_tokens = self.loaded.context_tokens.min(constraints.context_tokens);
        self.shared.context_tokens.store(context_tokens, Ordering::Relaxed);
    }

    /// The library tells what the template makes of a text, but only between two steps. What is said is
    /// no more than that.
    fn counter(&self) -> Counter {
        let tokenizer = self.runtime.block_on(self.pipeline.lock()).tokenizer();
        let tokenizer = tokenizer.as_ref().map(Arc::downgrade);
        let estimate = move |messages: &[Message]| {
            let Some(tokenizer) = tokenizer.as_ref().and_then(Weak::upgrade) else { return Ok(0) };
            let tokens = |message: &Message| {
                let encoded = tokenizer.encode_fast(message.text().trim(), false);
                encoded.map_or(0, |encoded| encoded.len())
            };
            Ok(count(messages.iter().map(tokens).sum()))
        };
        let (shared, runtime) = (Arc::downgrade(&self.shared), self.runtime.handle().clone());
        let exact = move |messages: Vec<Message>| -> BoxFuture<'static, Result<u32, Error>> {
            let shared = shared.clone();
            // A task of its own, because the library's thread does not survive an asker that goes away.
            let counted = runtime.spawn(async move {
                let shared = shared.upgrade().ok_or_else(not_loaded)?;
                shared.prompt(&messages).await.map(|prompt| count(prompt.len()))
            });
            Box::pin(async { counted.await.map_err(|_| not_loaded())? })
        };
        Counter { estimate: Arc::new(estimate), exact: Some(Arc::new(exact)) }
    }
}

impl Drop for Mistralrs {
    fn drop(&mut self) {
        let Ok(library) = self.shared.model.inner().get_sender(None) else { return };
        let end = async {
            let _ = library.send(Request::Terminate).await;
            // The library's thread lets go of the model when it ends; its handle and this one stay.
            while Arc::strong_count(&self.pipeline) > 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = self.runtime.block_on(async { tokio::time::timeout(UNLOAD, end).await });
        if ended.is_err() {
            tracing::warn!("mistral.rs is still busy; its memory comes back later");
        }
    }
}

/// Has the library load the model. Runs on a thread made for it: the library keeps the quantization
/// in a thread-local variable, where the next load would find it.
fn build(
    prepared: &load::Prepared,
    checkpoint: &Checkpoint,
    plan: &Plan,
) -> Result<(Model, Pipeline), String> {
    let folder = prepared.folder.to_str().ok_or("its path is not UTF-8")?;
    let mut builder = MultimodalModelBuilder::new(folder)
        .with_loader_type(MultimodalLoaderType::Gemma3n)
        .with_force_cpu()
        .with_device_mapping(core::DeviceMapSetting::dummy())
        .with_token_source(TokenSource::None)
        // Else it looks for one in the home directory, and a service may have none.
        .from_hf_cache_path(plan.settings.cache_dir.clone())
        .with_max_num_seqs(1)
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
        .block_on(async {
            let (pipeline, scheduler, settings) =
                model_builder_trait::build_multimodal_pipeline(builder)
                    .await
                    .map_err(|error| format!("mistral.rs: {error:#}"))?;
            let kept = Arc::clone(&pipeline);
            let model =
                model_builder_trait::build_model_from_pipeline(pipeline, scheduler, settings).await;
            Ok((model, kept))
        })
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
        match self.tokenize(Either::Left(text)).await {
            Ok(prompt) => Ok(with_one_bos(prompt, self.bos)),
            Err(error::Error::Inference(why)) => Err(Error::invalid(
                "messages",
                format!("the model's chat template refuses them: {why}"),
            )),
            Err(why) => Err(Error::Internal(format!("mistral.rs: {why}"))),
        }
    }

    async fn tokenize(&self, text: Either<TextMessages, String>) -> error::Result<Vec<u32>> {
        self.model.tokenize(text, None, false, true, None).await
    }

    /// The token of the tokenizer's BOS string, if it has one.
    async fn find_bos(&self, bos: &str) -> Result<Option<u32>, String> {
        if bos.is_empty() {
            return Ok(None);
        }
        let tokens = self.tokenize(Either::Right(bos.to_owned())).await;
        match tokens.map_err(|error| error.to_string())?.as_slice() {
            [bos] => Ok(Some(*bos)),
            _ => Err(format!("tokenizer_config.json: bos_token {bos:?} is not a token")),
        }
    }

    /// Makes one token. What is wrong with the weights shows here, and not in the first request.
    async fn try_out(&self) -> Result<(), String> {
        let hello = Message { role: Role::User, parts: vec![Part::Text("hello".into())] };
        let prompt = self.prompt(&[hello]).await.map_err(|error| error.to_string())?;
        let _working = self.work.guard();
        let mut answer = self.ask(prompt, 1, &Sampling::default(), Arc::default()).await?;
        answer.finish().await.map_err(|why| format!("a first answer failed: {why}"))
    }
}

/// A template may write the BOS or leave it to the tokenizer; the model shall see one.
fn with_one_bos(prompt: Vec<u32>, bos: Option<u32>) -> Vec<u32> {
    let rest = prompt.into_iter().skip_while(|token| Some(*token) == bos);
    bos.into_iter().chain(rest).collect()
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::with_one_bos;

    #[test]
    fn a_prompt_has_one_bos() {
        for prompt in [vec![5, 2, 6], vec![2, 5, 2, 6], vec![2, 2, 5, 2, 6]] {
            assert_eq!(with_one_bos(prompt, Some(2)), [2, 5, 2, 6]);
        }
        assert_eq!(with_one_bos(vec![5], None), [5]);
    }
}
