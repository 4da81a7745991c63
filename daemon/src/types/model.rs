//! Models, their MatFormer sizes, and the daemon's state.

use super::Error;

/// Which engine runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// A Hugging Face folder, by mistral.rs.
    Mistralrs,
    /// A GGUF file, mapped; any size at any token.
    Elastic,
    /// Deterministic text at a set speed, for tests.
    Sim,
}

impl EngineKind {
    /// The name in the configuration and in both APIs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mistralrs => "mistralrs",
            Self::Elastic => "elastic",
            Self::Sim => "sim",
        }
    }
}

/// A model that could be loaded, as its files' headers describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The engine that loads it.
    pub engine: EngineKind,
    /// At least one, largest first.
    pub sizes: Vec<SizeInfo>,
    /// The longest context that the model was made for.
    pub context_tokens: u32,
}

impl ModelInfo {
    /// The refusal of a size that the model does not have; `field` named it.
    #[must_use]
    pub fn no_size(&self, model: &str, field: &str, size: &str) -> Error {
        let names: Vec<_> = self.sizes.iter().map(|size| size.name.as_str()).collect();
        let names = names.join(", ");
        Error::invalid(field, format!("the model {model:?} has no size {size:?}; it has {names}"))
    }
}

/// One MatFormer size of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeInfo {
    /// As in the sizes table.
    pub name: String,
    /// Parameters that are computed with, in thousands of millions, as in the sizes table.
    pub effective_params_b: f64,
    /// What loading and running it needs, estimated from the files' headers.
    pub memory_mib: u64,
}

/// A model in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The model's name.
    pub model: String,
    /// What it runs on.
    pub engine: EngineKind,
    /// The size in use.
    pub size: String,
    /// Every size that the model has, largest first.
    pub sizes: Vec<String>,
    /// Prompt and answer together.
    pub context_tokens: u32,
    /// Requests that the engine answers at once; the configured number, or less.
    pub parallel_requests: u32,
}

/// What the daemon can do right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No model is loaded: everything but generating works.
    NoModel,
    /// A model, or another size of it, is being loaded; requests wait.
    Loading,
    /// Requests are answered.
    Ready,
    /// The model left memory and comes back with the next request.
    Parked,
    /// The daemon is stopping; new requests are refused.
    Draining,
}

/// The daemon's state with what belongs to it. Its one writer is the service.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What can be done.
    pub state: State,
    /// The model in memory. None while the first one loads.
    pub loaded: Option<Loaded>,
    /// The name of the model that is being loaded; empty if none.
    pub loading: String,
    /// 0 to 1 while state is `Loading`.
    pub loading_fraction: f64,
    /// Why there is no model, or why the last load failed; empty if all is well.
    pub problem: String,
}

impl Status {
    /// The model that is loaded or being loaded; empty if none.
    #[must_use]
    pub fn model(&self) -> &str {
        match &self.loaded {
            Some(loaded) if self.loading.is_empty() => &loaded.model,
            _ => &self.loading,
        }
    }
}
