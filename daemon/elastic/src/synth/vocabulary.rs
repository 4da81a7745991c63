//! A vocabulary in the form of Gemma's, with made-up pieces.
//!
//! Control tokens, runs of line ends and spaces and the byte tokens have Gemma's numbers. Then come
//! characters, and then pieces that are each two earlier ones together, as a trained vocabulary's are,
//! so that a text is merged step by step into tokens of about three letters.

use std::collections::HashSet;

use super::fill::Random;
use crate::gguf::{Entry, Writer};

/// Where Gemma's tokens for images and sound begin.
const TEXT: usize = 262_144;
const FIRST_BYTE: usize = 238;
const SPACE: &str = "\u{2581}";

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Gemma's turns: a system message is put in front of the first question.
const TEMPLATE: &str = "\
{{ bos_token }}\
{%- set state = namespace(system='') -%}\
{%- for message in messages -%}\
{%- if message['role'] == 'system' -%}\
{%- set state.system = message['content'] | trim + '\\n\\n' -%}\
{%- else -%}\
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\
{{ '<start_of_turn>' + role + '\\n' + state.system + message['content'] | trim + '<end_of_turn>\\n' }}\
{%- set state.system = '' -%}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}";

/// Puts the tokenizer's keys into the header.
pub fn keys(writer: &mut Writer, count: usize, seed: u64) {
    let tokens = tokens(count, seed);
    // Earlier pieces are merged first.
    let score = |(id, (_, kind)): (usize, &(String, i32))| {
        if *kind == NORMAL { -(id as f32) } else { 0.0 }
    };
    let scores = tokens.iter().enumerate().map(score).collect();
    let kinds = tokens.iter().map(|(_, kind)| *kind).collect();
    let tokens = tokens.into_iter().map(|(piece, _)| piece.into_bytes()).collect();
    for (key, value) in [
        ("ggml.model", Entry::String("llama".into())),
        ("ggml.pre", Entry::String("default".into())),
        ("ggml.tokens", Entry::Strings(tokens)),
        ("ggml.scores", Entry::F32s(scores)),
        ("ggml.token_type", Entry::I32s(kinds)),
        ("ggml.bos_token_id", Entry::U32(2)),
        ("ggml.eos_token_id", Entry::U32(1)),
        ("ggml.eot_token_id", Entry::U32(106)),
        ("ggml.unknown_token_id", Entry::U32(3)),
        ("ggml.padding_token_id", Entry::U32(0)),
        ("ggml.mask_token_id", Entry::U32(4)),
        ("ggml.add_bos_token", Entry::Bool(true)),
        ("ggml.add_eos_token", Entry::Bool(false)),
        ("ggml.add_space_prefix", Entry::Bool(false)),
        ("chat_template", Entry::String(TEMPLATE.into())),
    ] {
        writer.pair(format!("tokenizer.{key}"), &value);
    }
}

/// Every piece with its type.
fn tokens(count: usize, seed: u64) -> Vec<(String, i32)> {
    let text = count.min(TEXT);
    let mut tokens: Vec<(String, i32)> = (0..FIRST_BYTE).map(special).collect();
    tokens.extend((0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    let room = text.saturating_sub(tokens.len());
    tokens.extend(pieces(room, seed).into_iter().map(|piece| (piece, NORMAL)));
    tokens.extend((text..count).map(|id| (format!("<soft_token_{id}>"), UNUSED)));
    tokens
}

/// The tokens in front of the bytes.
fn special(id: usize) -> (String, i32) {
    match id {
        0 => ("<pad>".into(), CONTROL),
        1 => ("<eos>".into(), CONTROL),
        2 => ("<bos>".into(), CONTROL),
        3 => ("<unk>".into(), UNKNOWN),
        4 => ("<mask>".into(), CONTROL),
        105 => ("<start_of_turn>".into(), CONTROL),
        106 => ("<end_of_turn>".into(), CONTROL),
        107..=137 => ("\n".repeat(id - 106), USER_DEFINED),
        138..=168 => (SPACE.repeat(id - 136), USER_DEFINED),
        id => (format!("<unused{id}>"), UNUSED),
    }
}

/// So many distinct pieces: characters, then all short runs of letters, then longer ones by chance.
fn pieces(room: usize, seed: u64) -> Vec<String> {
    let characters = [SPACE.to_owned()].into_iter().chain(
        ['!'..='~', '¡'..='ſ', 'Α'..='ω', 'А'..='я', 'ぁ'..='ヺ', '一'..='龥', '가'..='힣']
            .into_iter()
            .flatten()
            .map(String::from),
    );
    let letters = || ('a'..='z').map(String::from);
    let pairs = || letters().flat_map(move |a| letters().map(move |b| format!("{a}{b}")));
    let triples = || pairs().flat_map(move |a| letters().map(move |b| format!("{a}{b}")));
    let first = |piece: String| format!("{SPACE}{piece}");
    let capitals = || ('A'..='Z').map(String::from);
    // A model with few tokens has characters and pairs; the rest is for those of real size.
    let mut made = HashSet::new();
    let short = ('!'..='~').map(String::from).chain([SPACE.to_owned()]).chain(pairs());
    let longer = letters().chain(capitals()).map(first);
    let capital_pairs = capitals().flat_map(|a| letters().map(move |b| format!("{a}{b}")));
    let mut all: Vec<String> = short
        .chain(longer)
        .chain(capital_pairs.clone())
        .chain(capital_pairs.map(first))
        .chain(pairs().map(first))
        .chain(('0'..='9').flat_map(|a| ('0'..='9').map(move |b| format!("{a}{b}"))))
        .chain(triples())
        .chain(triples().map(first))
        .chain(characters)
        .filter(|piece| made.insert(piece.clone()))
        .take(room)
        .collect();
    let mut random = Random::new(seed);
    let parts: Vec<String> = pairs().chain(triples()).collect();
    let mut starts: Vec<String> = parts.iter().cloned().chain(pairs().map(first)).collect();
    while all.len() < room {
        let (start, end) = (random.below(starts.len()), random.below(parts.len()));
        let (Some(start), Some(end)) = (starts.get(start), parts.get(end)) else { break };
        let piece = format!("{start}{end}");
        if made.insert(piece.clone()) {
            if starts.len() < 2 * parts.len() {
                starts.push(piece.clone());
            }
            all.push(piece);
        }
    }
    all
}
