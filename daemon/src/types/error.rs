//! Everything that can go wrong for a client, as one enum. Each transport maps it in one place;
//! `docs/errors.md` is the table.

/// Text that a client is told of one value or sentence, in bytes: what it sent itself may be in it, and a
/// bus or a peer cuts off who sends too much.
const TEXT: usize = 1024;

/// Why a call or a request failed. The display text is a sentence for a person that says what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A value is out of its range or malformed.
    #[error("{field}: {problem}")]
    InvalidArgument {
        /// The path of the value, such as `sampling.top_p` or `messages[0].role`.
        field: String,
        /// What is wrong with it and what it may be.
        problem: String,
    },
    /// The value is fine, but this version, engine or model cannot do it.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// The feature, by the name that the client used.
        what: String,
        /// By whom, or since when.
        why: String,
    },
    /// The prompt and the answer asked for do not fit the context.
    #[error(
        "the prompt takes {prompt_tokens} tokens and the answer up to {max_tokens}, but the context \
         holds {context_tokens}: shorten the conversation or ask for fewer tokens"
    )]
    ContextTooLong {
        /// Tokens of the conversation, template included.
        prompt_tokens: u32,
        /// Tokens asked for.
        max_tokens: u32,
        /// Tokens that fit.
        context_tokens: u32,
    },
    /// Every place in the queue is taken.
    #[error("all {limit} places in the queue are taken: try again in {retry_after_ms} ms")]
    QueueFull {
        /// Places in the queue.
        limit: u32,
        /// When a place is likely to be free.
        retry_after_ms: u64,
    },
    /// The caller has, or all callers have, as much of something as they may.
    #[error("{what}")]
    OverQuota {
        /// Of what, how much, and what to do.
        what: String,
        /// How much of it there may be.
        limit: u64,
        /// When there is room again; 0 if that is not known.
        retry_after_ms: u64,
    },
    /// The daemon is occupied with something that excludes this call.
    #[error("{why}: try again in {retry_after_ms} ms")]
    Busy {
        /// With what.
        why: String,
        /// When it is likely to be over.
        retry_after_ms: u64,
    },
    /// No model is loaded.
    #[error("no model is loaded: {problem}")]
    ModelNotLoaded {
        /// Why not, and what to do.
        problem: String,
    },
    /// No model of that name.
    #[error("there is no model {model:?}: the models are the folders in the configured model.dir")]
    ModelNotFound {
        /// The name.
        model: String,
    },
    /// The caller has no session of that name.
    #[error("there is no session {session:?} of this caller: it ended, or is another's")]
    SessionNotFound {
        /// The name.
        session: String,
    },
    /// The model's files are missing, malformed, or not of a supported kind.
    #[error("the model {model:?} cannot be used: {problem}")]
    ModelInvalid {
        /// The model's name.
        model: String,
        /// Which file, what is wrong with it, and what to do.
        problem: String,
    },
    /// The model needs more memory than there is.
    #[error(
        "the model {model:?} at size {size} needs about {need_mib} MiB, and {available_mib} MiB are \
         available: choose a smaller size or a stronger quantization, or free memory"
    )]
    InsufficientMemory {
        /// The model's name.
        model: String,
        /// The MatFormer size.
        size: String,
        /// Estimated from the files' headers.
        need_mib: u64,
        /// The smaller of the machine's, the control group's and the configured limit's.
        available_mib: u64,
    },
    /// The caller may not do this.
    #[error("not allowed: {what}")]
    NotAllowed {
        /// What was asked for, and who may.
        what: String,
    },
    /// The reader fell behind by more than the buffer holds.
    #[error(
        "the reader fell behind by more than {buffer_bytes} bytes of text, and the request was ended"
    )]
    Lagged {
        /// What the buffer holds.
        buffer_bytes: u64,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    ShuttingDown,
    /// A fault of the daemon or its engine.
    #[error("internal error: {0}")]
    Internal(String),
}

/// A value in the machine-readable details of an [`Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A count, or a number with its unit in the key.
    Number(u64),
    /// A name.
    Text(String),
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::InvalidArgument { field: field.into(), problem: problem.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into(), why: why.into() }
    }

    /// The error's name in the metrics: that of the contracts, in small letters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "invalid_argument",
            Self::Unsupported { .. } => "unsupported",
            Self::ContextTooLong { .. } => "context_too_long",
            Self::QueueFull { .. } => "queue_full",
            Self::Busy { .. } => "busy",
            Self::OverQuota { .. } => "over_quota",
            Self::SessionNotFound { .. } => "session_not_found",
            Self::ModelNotLoaded { .. } => "model_not_loaded",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::ModelInvalid { .. } => "model_invalid",
            Self::InsufficientMemory { .. } => "insufficient_memory",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Lagged { .. } => "lagged",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal",
        }
    }

    /// The sentence for the client, as long as transports carry it.
    #[must_use]
    pub fn told(&self) -> String {
        bounded(&self.to_string())
    }

    /// The sentence for the log: without what is wrong with a value, which may quote a prompt.
    #[must_use]
    pub fn logged(&self) -> String {
        match self {
            Self::InvalidArgument { field, .. } => format!("{}: is not valid", bounded(field)),
            other => other.told(),
        }
    }

    /// The numbers and names of the error, the same on every transport, and as long as transports carry
    /// them.
    #[must_use]
    pub fn details(&self) -> Vec<(&'static str, Detail)> {
        use Detail::Number;
        let text = |text: &str| Detail::Text(bounded(text));
        match self {
            Self::InvalidArgument { field, .. } => vec![("field", text(field))],
            Self::Unsupported { what, .. } => vec![("what", text(what))],
            Self::ContextTooLong { prompt_tokens, max_tokens, context_tokens } => vec![
                ("prompt_tokens", Number((*prompt_tokens).into())),
                ("max_tokens", Number((*max_tokens).into())),
                ("context_tokens", Number((*context_tokens).into())),
            ],
            Self::QueueFull { limit, retry_after_ms } => vec![
                ("limit", Number((*limit).into())),
                ("retry_after_ms", Number(*retry_after_ms)),
            ],
            Self::OverQuota { limit, retry_after_ms, .. } => {
                vec![("limit", Number(*limit)), ("retry_after_ms", Number(*retry_after_ms))]
            }
            Self::SessionNotFound { session } => vec![("session", text(session))],
            Self::Busy { retry_after_ms, .. } => {
                vec![("retry_after_ms", Number(*retry_after_ms))]
            }
            Self::ModelNotFound { model } | Self::ModelInvalid { model, .. } => {
                vec![("model", text(model))]
            }
            Self::InsufficientMemory { model, size, need_mib, available_mib } => vec![
                ("model", text(model)),
                ("size", text(size)),
                ("need_mib", Number(*need_mib)),
                ("available_mib", Number(*available_mib)),
            ],
            Self::Lagged { buffer_bytes } => vec![("buffer_bytes", Number(*buffer_bytes))],
            Self::ModelNotLoaded { .. }
            | Self::NotAllowed { .. }
            | Self::ShuttingDown
            | Self::Internal(_) => vec![],
        }
    }

    /// When it makes sense to try again, for errors that pass by themselves.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::QueueFull { retry_after_ms, .. } | Self::Busy { retry_after_ms, .. } => {
                Some(*retry_after_ms)
            }
            Self::OverQuota { retry_after_ms, .. } if *retry_after_ms > 0 => Some(*retry_after_ms),
            _ => None,
        }
    }
}

/// The text, cut off behind the last whole character that is carried.
pub(crate) fn bounded(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).find(|at| *at > TEXT) {
        Some(end) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_is_told_is_bounded() {
        let long = || "\u{7}ä".repeat(1 << 20);
        let errors = [
            Error::invalid(long(), format!("{:?}", long())),
            Error::unsupported(long(), long()),
            Error::OverQuota { what: long(), limit: 1, retry_after_ms: 0 },
            Error::SessionNotFound { session: long() },
            Error::Busy { why: long(), retry_after_ms: 1 },
            Error::ModelNotLoaded { problem: long() },
            Error::ModelNotFound { model: long() },
            Error::ModelInvalid { model: long(), problem: long() },
            Error::InsufficientMemory {
                model: long(),
                size: long(),
                need_mib: 1,
                available_mib: 1,
            },
            Error::NotAllowed { what: long() },
            Error::Internal(long()),
        ];
        for error in errors {
            let mut texts = vec![error.told(), error.logged()];
            texts.extend(error.details().into_iter().filter_map(|(_, detail)| match detail {
                Detail::Text(text) => Some(text),
                Detail::Number(_) => None,
            }));
            for text in texts {
                assert!(text.len() <= TEXT + 32, "{} bytes: {}", text.len(), error.name());
            }
        }
        assert_eq!(Error::invalid("a", "ä").told(), "a: ä");
    }
}
