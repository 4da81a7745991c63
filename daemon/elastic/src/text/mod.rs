//! Text to tokens and back, and how the next token is chosen.
//!
//! | module | owns |
//! | --- | --- |
//! | [`vocab`] | a vocabulary as a file has it; `pieces` holds it in little memory |
//! | [`tokenizer`] | text to tokens, by `merge`; and back, by `decoder` |
//! | [`template`] | a chat as one prompt; `guard` and `jinja` are what a template from a file may do |
//! | [`sample`], [`penalty`] | the choice of a token from logits |
//! | [`stop`] | stop strings in a stream |
//! | [`constrain`] | answers that fit a schema or a grammar |

pub mod constrain;
mod decoder;
mod guard;
mod jinja;
mod merge;
pub mod penalty;
mod pieces;
pub mod sample;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod vocab;

#[cfg(test)]
mod tests;
