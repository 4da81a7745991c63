//! What a model's file says about text: its vocabulary, its chat template, how to sample.

use crate::config::narrow;
use crate::error::{Error, Result};
use crate::gguf::{Array, Header, Value};
use crate::model::Model;
use crate::text::template::{self, Template};
use crate::text::tokenizer::{MAX_ENTRIES, Tokenizer, Vocabulary};

/// The text side of a model.
pub struct Chat {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt.
    pub template: Template,
    /// What the file recommends, and else the model's publisher.
    pub sampling: Sampling,
}

/// How tokens are drawn when nobody says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// 0 is all.
    pub top_k: u32,
    /// 1 is all.
    pub top_p: f64,
    /// 0 is all.
    pub min_p: f64,
}

impl Chat {
    /// Reads the keys of a model's file.
    pub fn read(model: &Model) -> Result<Self> {
        let header = Header::read(model.map().bytes())?;
        let kind = header.value("tokenizer.ggml.model").and_then(Value::as_str);
        if kind != Some("llama") {
            let problem = format!("it is {kind:?}, and Gemma 3n's is \"llama\" (SentencePiece)");
            return Err(Error::unsupported("tokenizer.ggml.model", problem));
        }
        let tokenizer = tokenizer(&header)?;
        if tokenizer.len() as usize > model.vocabulary() {
            let problem = format!("there are {} embeddings", model.vocabulary());
            return Err(Error::format("tokenizer.ggml.tokens", problem));
        }
        let piece = |id: Option<u32>| {
            id.map(|id| String::from_utf8_lossy(tokenizer.piece(id)).into_owned())
                .unwrap_or_default()
        };
        let (bos, eos) = (piece(tokenizer.bos()), piece(tokenizer.eos()));
        let key = "tokenizer.chat_template";
        let template = match header.value(key).and_then(Value::as_str) {
            Some(source) => Template::new(source, &bos, &eos),
            None => Template::gemma(&bos, &eos),
        };
        let template =
            template.map_err(|error: template::Error| Error::format(key, error.to_string()))?;
        Ok(Self { tokenizer, template, sampling: sampling(&header)? })
    }
}

fn tokenizer(header: &Header<'_>) -> Result<Tokenizer> {
    let list = |key: &str| -> Result<Array<'_>> {
        let key = format!("tokenizer.ggml.{key}");
        let list = header.value(&key).and_then(Value::as_array);
        list.ok_or_else(|| Error::format(key, "the list is missing"))
    };
    let id = |key: &str| {
        let value = header.value(&format!("tokenizer.ggml.{key}_token_id"));
        value.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    };
    // A file of holes may claim any number of them.
    let numbers = |key| Ok::<_, Error>(list(key)?.scalars().take(MAX_ENTRIES + 1));
    let scores: Vec<f32> = numbers("scores")?.filter_map(Value::as_f64).map(narrow).collect();
    let kinds: Vec<u32> = numbers("token_type")?
        .filter_map(|kind| kind.as_u64().and_then(|kind| u32::try_from(kind).ok()))
        .collect();
    let space = header.value("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool);
    let vocabulary = Vocabulary {
        tokens: list("tokens")?.strings(),
        scores: &scores,
        kinds: &kinds,
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        unk: id("unknown"),
        add_space_prefix: space.unwrap_or(true),
    };
    Tokenizer::new(vocabulary)
        .map_err(|error| Error::format("tokenizer.ggml.tokens", error.to_string()))
}

/// Gemma's publisher recommends what stands here for absent keys.
fn sampling(header: &Header<'_>) -> Result<Sampling> {
    let number = |key: &str, default: f64, most: f64| {
        let key = format!("general.sampling.{key}");
        match header.value(&key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|value| (0.0..=most).contains(value))
                .ok_or_else(|| Error::format(key, format!("not a number from 0 to {most}"))),
        }
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
    let top_k = number("top_k", 64.0, 1e6)? as u32;
    Ok(Sampling {
        temperature: number("temp", 1.0, 2.0)?,
        top_k,
        top_p: number("top_p", 0.95, 1.0)?,
        min_p: number("min_p", 0.0, 1.0)?,
    })
}
