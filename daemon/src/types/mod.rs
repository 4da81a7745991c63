//! The daemon's own vocabulary. Knows nothing of transports, engines or files; everybody knows it.

mod error;
mod event;
mod model;
mod request;

pub use error::{Detail, Error};
pub use event::{Event, FinishReason, Finished, Timings, Usage};
pub use model::{EngineKind, Loaded, ModelInfo, SizeInfo, State, Status};
pub use request::{check_messages, GenerateRequest, Limits, Message, Part, Role, Sampling, Stopping};
