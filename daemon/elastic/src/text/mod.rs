//! Text to tokens and back, and how the next token is chosen.
//!
//! | module | owns |
//! | --- | --- |
//! | [`vocab`] | the pieces of a vocabulary in little memory |
//! | [`tokenizer`] | SentencePiece BPE, streams of text from tokens |

pub mod tokenizer;
pub mod vocab;
