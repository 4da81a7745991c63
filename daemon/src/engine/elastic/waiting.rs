//! A request that cannot begin yet: its JSON Schema is being read, or its caches are on their way back.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::task::Poll;

use nestd_elastic::kv::Sequence;
use nestd_elastic::text::constrain::Constraint;

use super::super::Job;
use crate::types::Error;

/// A request, and what it waits for.
pub struct Waiting {
    pub job: Job,
    /// The conversation as tokens.
    pub prompt: Vec<u32>,
    pub schema: Option<Receiver<Result<Constraint, Error>>>,
    /// The schema, once it was read.
    pub constraint: Option<Constraint>,
    pub caches: Option<Back>,
}

/// A session's caches on their way back, with the tokens that they are of.
pub struct Back {
    pub tokens: Vec<u32>,
    pub sequence: Receiver<Option<Sequence>>,
}

/// A session's tokens and their caches.
pub type Caches = (Vec<u32>, Sequence);

impl Waiting {
    /// Ready when everything is there, with the caches that came back, if any did.
    pub fn poll(&mut self) -> Poll<Result<Option<Caches>, Error>> {
        if let Some(schema) = &self.schema {
            match schema.try_recv() {
                Err(TryRecvError::Empty) => return Poll::Pending,
                Err(TryRecvError::Disconnected) => {
                    let problem = "reading the schema ended without a result";
                    return Poll::Ready(Err(Error::Internal(problem.into())));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Ok(Ok(constraint)) => self.constraint = Some(constraint),
            }
            self.schema = None;
        }
        let Some(Back { sequence, .. }) = &self.caches else { return Poll::Ready(Ok(None)) };
        let sequence = match sequence.try_recv() {
            Err(TryRecvError::Empty) => return Poll::Pending,
            Err(TryRecvError::Disconnected) => None,
            Ok(sequence) => sequence,
        };
        let tokens = self.caches.take().map(|caches| caches.tokens).unwrap_or_default();
        Poll::Ready(Ok(sequence.map(|sequence| (tokens, sequence))))
    }
}
