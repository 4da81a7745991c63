//! The daemon's own vocabulary. Knows nothing of transports, engines or files; everybody knows it.

mod access;
mod client;
mod error;
mod event;
mod model;
mod quota;
mod request;
mod session;

pub use access::{Access, Class, Entry, Table};
pub use client::Client;
pub(crate) use error::bounded;
pub use error::{Detail, Error};
pub use event::{
    Event, FinishReason, Finished, Logprob, Stage, Text, Timings, TokenLogprobs, Usage,
};
pub use model::{EngineKind, Loaded, ModelInfo, SizeInfo, State, Status};
pub use quota::Quotas;
pub use request::{
    GenerateRequest, Limits, Message, Part, Priority, Role, Sampling, Stopping, check_messages,
    check_turns,
};
pub use session::{SessionInfo, SessionOptions, SessionSettings};
