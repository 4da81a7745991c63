//! What can be wrong with a model's file, a size or a request to the engine.

use std::path::PathBuf;

/// Why a model cannot be opened or run. The text is a sentence that names the part of the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The header contradicts the format, or itself.
    #[error("{part}: {problem}")]
    Format {
        /// The key or the tensor.
        part: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file is sound, but not what this crate runs.
    #[error("{part}: {problem}")]
    Unsupported {
        /// The key or the tensor.
        part: String,
        /// What would be.
        problem: String,
    },
    /// The file was changed or cut after it was opened; what was computed since is void.
    #[error("the model's file was changed while it was in use: load the model again")]
    FileChanged,
    /// A sequence has no room for what it was given.
    #[error("{tokens} tokens do not fit the {capacity} that the sequence was made for")]
    NoRoom {
        /// What would have been in the sequence.
        tokens: usize,
        /// What fits.
        capacity: usize,
    },
    /// A token that the model does not have.
    #[error("there is no token {token}: the vocabulary has {vocabulary}")]
    NoToken {
        /// The token.
        token: u32,
        /// How many there are.
        vocabulary: usize,
    },
}

impl Error {
    pub(crate) fn format(part: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Format { part: part.into(), problem: problem.into() }
    }

    pub(crate) fn unsupported(part: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unsupported { part: part.into(), problem: problem.into() }
    }
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
