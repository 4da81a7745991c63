//! A small vocabulary, and tests that need more than one module.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod constrain;
mod sample;
mod template;
mod vocab;

use super::tokenizer::Tokenizer;
use super::vocab::{Error, Vocabulary};

/// Control tokens of the small vocabulary, by their ids.
pub const CONTROL: [&str; 6] =
    ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];

/// One piece, its score and its type.
pub type Entry = (Vec<u8>, f32, u32);

/// Control tokens, bytes, and what is given, the first with the highest score.
pub fn entries(user_defined: &[&str], normal: &[&str]) -> Vec<Entry> {
    let control = CONTROL.iter().enumerate();
    let mut entries: Vec<Entry> = control
        .map(|(id, piece)| (piece.as_bytes().to_vec(), 0.0, if id == 3 { 2 } else { 3 }))
        .collect();
    entries.extend((0..256).map(|byte| (format!("<0x{byte:02X}>").into_bytes(), 0.0, 6)));
    entries.extend(user_defined.iter().map(|piece| (piece.as_bytes().to_vec(), -1000.0, 4)));
    entries.extend(
        normal
            .iter()
            .enumerate()
            .map(|(rank, piece)| (piece.as_bytes().to_vec(), -(rank as f32), 1)),
    );
    entries
}

/// A tokenizer of these entries.
pub fn load(entries: &[Entry], add_space_prefix: bool) -> Result<Tokenizer, Error> {
    let scores: Vec<f32> = entries.iter().map(|(_, score, _)| *score).collect();
    let kinds: Vec<u32> = entries.iter().map(|(_, _, kind)| *kind).collect();
    Tokenizer::new(Vocabulary {
        tokens: entries.iter().map(|(piece, _, _)| piece.as_slice()),
        scores: &scores,
        kinds: &kinds,
        bos: Some(2),
        eos: Some(1),
        eot: Some(5),
        unk: Some(3),
        add_space_prefix,
    })
}

/// A tokenizer with these pieces.
pub fn tokenizer(user_defined: &[&str], normal: &[&str]) -> Tokenizer {
    load(&entries(user_defined, normal), false).unwrap()
}
