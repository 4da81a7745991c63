//! Text to tokens and back, and how the next token is chosen.
//!
//! | module | owns |
//! | --- | --- |
//! | [`vocab`] | the pieces of a vocabulary in little memory |
//! | [`tokenizer`] | SentencePiece BPE, streams of text from tokens |
//! | [`template`] | a chat as one prompt; `guard` and `jinja` are what a template from a file may do |

mod guard;
mod jinja;
pub mod template;
pub mod tokenizer;
pub mod vocab;

#[cfg(test)]
mod tests;
