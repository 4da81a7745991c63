//! What a load needs besides the library: the folder it is given, and how far it is.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::checkpoint::{Checkpoint, SIZES_FILE};
use super::super::{Plan, towers};
use crate::types::Error;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(100);
/// The most that is told before the end: the estimate may be too low.
const NEARLY: f64 = 0.99;

/// All that is known before the library is called.
pub struct Prepared {
    /// Where the library finds everything.
    pub folder: PathBuf,
    /// The table of sizes, unless the model is loaded whole.
    pub sizes_table: Option<PathBuf>,
    /// What the process will grow by, in bytes.
    pub memory: u64,
    /// Prompt and answer together.
    pub context_tokens: u32,
    /// The text of the token that a prompt begins with; empty if there is none.
    pub bos: String,
}

/// Checks the size and makes the folder.
pub fn prepare(plan: &Plan, checkpoint: &Checkpoint) -> Result<Prepared, Error> {
    let size = checkpoint.sizes.iter().find(|size| size.name == plan.size).ok_or_else(|| {
        let names: Vec<_> = checkpoint.sizes.iter().map(|size| size.name.as_str()).collect();
        Error::invalid("size", format!("{:?} is not one of {}", plan.size, names.join(", ")))
    })?;
    let invalid = |problem| Error::ModelInvalid { model: plan.model.clone(), problem };
    let folder = towers::folder(&plan.model, checkpoint, &plan.settings.cache_dir)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let bos = read_tokenizer(&folder).map_err(invalid)?;
    let context_tokens = match plan.settings.context_tokens {
        0 => checkpoint.config.text.context_tokens,
        limit => limit.min(checkpoint.config.text.context_tokens),
    };
    Ok(Prepared {
        sizes_table: checkpoint.sliced.then(|| folder.join(SIZES_FILE)),
        folder,
        memory: checkpoint.memory(size, plan.settings.isq).resident,
        context_tokens,
        bos,
    })
}

/// The text of the BOS token. Without a chat template the library breaks down at the first request,
/// so there must be one.
fn read_tokenizer(folder: &Path) -> Result<String, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Tokenizer {
        bos_token: Option<Token>,
        chat_template: Option<IgnoredAny>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Text(String),
        Added { content: String },
    }
    let read = |name: &str| -> Result<Tokenizer, String> {
        let json = fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
        serde_json::from_slice(&json).map_err(|error| format!("{name}: {error}"))
    };
    let tokenizer = read("tokenizer_config.json")?;
    let template = tokenizer.chat_template.is_some()
        || ["chat_template.jinja", "chat_template.json"]
            .iter()
            .any(|name| folder.join(name).is_file())
        || read("processor_config.json").is_ok_and(|file| file.chat_template.is_some());
    if !template {
        return Err("it has no chat template, neither as chat_template.jinja nor in \
                    tokenizer_config.json: copy the folder of an instruction-tuned checkpoint"
            .into());
    }
    Ok(match tokenizer.bos_token {
        None => String::new(),
        Some(Token::Text(text) | Token::Added { content: text }) => text,
    })
}

/// Does `work` on a thread of its own, and tells meanwhile how far it is by what the process has grown
/// by, out of `memory` bytes: the library says nothing. A panic there is an error here.
pub fn with_progress<T: Send>(
    progress: &dyn Fn(f64),
    memory: u64,
    work: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    let before = resident_bytes();
    let mut told = 0.0;
    progress(told);
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("nestd-load".into())
            .spawn_scoped(scope, work)
            .map_err(|error| error.to_string())?;
        while !worker.is_finished() {
            thread::sleep(PROGRESS);
            let grown = resident_bytes().saturating_sub(before) as f64 / memory as f64;
            if grown.min(NEARLY) > told {
                told = grown.min(NEARLY);
                progress(told);
            }
        }
        worker.join().unwrap_or_else(|panic| {
            let why = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
                (Some(why), _) => (*why).to_owned(),
                (_, Some(why)) => why.clone(),
                (None, None) => resume_unwind(panic),
            };
            Err(format!("mistral.rs broke down while loading it: {why}"))
        })
    })
}

/// Memory of this process that is not backed by a file; 0 if the kernel does not say.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = anonymous.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
