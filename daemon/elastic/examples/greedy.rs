//! The likeliest tokens after a prompt, with no text in between: for comparing with other engines.
//!
//! ```text
//! cargo run --release -p nestd-elastic --example greedy MODEL.gguf [SIZE]
//! ```
//! Reads a request a line, `{"prompt": [2, 5, ...], "tokens": 64, "ends": [6]}`, and answers each with
//! a line `{"tokens": [...], "logits": [[first, second], ...]}`: the tokens up to one that ends or the
//! count, and the two highest logits that each was chosen by. Without SIZE the whole model computes.
//! `tests/reference/greedy.py` is what asks.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;

use nestd_elastic::forward::{Logits, Part, Runner};
use nestd_elastic::kv::{SLACK, Sequence, Shape, Store};
use nestd_elastic::ladder::sizes_of;
use nestd_elastic::model::Model;
use nestd_elastic::pool::{Pool, Settings};
use nestd_elastic::sizes::Slice;
use nestd_elastic::text::sample::greedy;
use serde_json::{Value, json};

/// The ids in a list.
fn ids(list: &Value) -> Result<Vec<u32>, Box<dyn Error>> {
    let list = list.as_array().ok_or("a list of token ids is missing")?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(list.iter().map(id).collect::<Option<_>>().ok_or("that is no token id")?)
}

/// The highest logit that is not at `first`.
fn second(logits: &[f32], first: usize) -> f32 {
    let others = logits.iter().enumerate().filter(|(at, _)| *at != first);
    others.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max)
}

fn answer(
    model: &Model,
    slice: &Slice,
    runner: &mut Runner,
    request: &Value,
) -> Result<Value, Box<dyn Error>> {
    let prompt = ids(&request["prompt"])?;
    let ends = ids(&request["ends"])?;
    let count = request["tokens"].as_u64().ok_or("a count of tokens is missing")?;
    let count = usize::try_from(count)?;
    let shape = Shape::new(model.config(), prompt.len() + count, Store::F16);
    let mut sequence = Sequence::new(&shape);
    let (mut tokens, mut highest) = (Vec::new(), Vec::new());
    let mut pending = prompt;
    while tokens.len() < count {
        let chunks = pending.chunks(SLACK).count();
        let mut next = None;
        for (index, chunk) in pending.chunks(SLACK).enumerate() {
            let wanted = if index + 1 == chunks { Logits::Last } else { Logits::None };
            let part = Part { sequence: &mut sequence, tokens: chunk, logits: wanted };
            let logits = runner.step(model, slice, &mut [part])?;
            next = greedy(logits).map(|at| (at, logits.get(at).copied(), second(logits, at)));
        }
        let (token, first, second) = next.ok_or("an empty prompt, or no finite logit")?;
        tokens.push(u32::try_from(token)?);
        highest.push([first, Some(second)]);
        pending = tokens.last().copied().into_iter().collect();
        if pending.iter().any(|token| ends.contains(token)) {
            break;
        }
    }
    Ok(json!({ "tokens": tokens, "logits": highest }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: greedy MODEL.gguf [SIZE]")?;
    let model = Model::open(Path::new(&path))?;
    let slice = match arguments.next() {
        None => model.full(),
        Some(wanted) => {
            let sizes = sizes_of(Path::new(&path), model.config())?;
            let size = sizes.iter().find(|size| size.name == wanted);
            model.slice(size.ok_or_else(|| format!("{path} has no size {wanted}"))?)?
        }
    };
    let pool = Pool::new(&Settings { threads: 2, ..Settings::default() })?;
    let mut runner = Runner::new(pool, None);
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let request = serde_json::from_str(&line?)?;
        writeln!(out, "{}", answer(&model, &slice, &mut runner, &request)?)?;
        out.flush()?;
    }
    Ok(())
}
