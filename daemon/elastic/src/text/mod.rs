//! Text to tokens and back, and how the next token is chosen.
//!
//! | module | owns |
//! | --- | --- |
//! | [`vocab`] | the pieces of a vocabulary in little memory |
//! | [`tokenizer`] | SentencePiece BPE, streams of text from tokens |
//! | [`template`] | a chat as one prompt; `guard` and `jinja` are what a template from a file may do |
//! | [`sample`], [`penalty`] | the choice of a token from logits |
//! | [`stop`] | stop strings in a stream |
//! | [`constrain`] | answers that fit a schema or a grammar |

pub mod constrain;
mod guard;
mod jinja;
pub mod penalty;
pub mod sample;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod vocab;

#[cfg(test)]
mod tests;
