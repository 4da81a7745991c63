//! Gemma 3n on mapped GGUF weights, any MatFormer size at any token.
//!
//! | module | owns |
//! | --- | --- |
//! | [`gguf`] | the header of a model's file, read where it lies; a writer |
//! | [`map`] | the file's mapping: what of it is in memory, and what happens when it is cut (`fault`) |
//! | [`tensor`] | kinds of weights, matrices as views of a mapping |
//! | [`config`] | a model's shape, from its header |
//! | [`sizes`] | MatFormer sizes: the table, and a size as an argument of a step |
//! | [`ladder`] | the sizes of a file |
//! | [`need`] | the memory that a size needs, and what a token costs |
//! | [`model`] | all of the above as one checked model |
//! | [`tiles`] | matrices in the order in which decode reads them |
//! | [`nest`] | files in that order, whose narrow sizes have pages of their own |
//! | [`sidefile`] | some matrices by columns, in a file of their own |
//! | [`residency`] | what of the model is in memory, giving back and reading ahead |
//! | [`kv`] | the KV caches of one sequence |
//! | [`kernels`] | products of quantized matrices, chosen for the CPU at run time |
//! | [`pool`] | the computing threads |
//! | [`forward`] | one step of the model for some tokens of some sequences |
//! | [`chat`] | what the file says about text: vocabulary, template, sampling |
//! | [`text`] | text to tokens and back, the chat template, the choice of the next token |
//! | [`synth`] | models of random weights, for benchmarks and tests |
//! | [`error`] | what can be wrong |

pub mod chat;
pub mod config;
pub mod error;
mod fault;
pub mod forward;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gguf;
pub mod kernels;
pub mod kv;
pub mod ladder;
pub mod map;
pub mod model;
pub mod need;
pub mod nest;
pub mod pool;
pub mod residency;
pub mod sidefile;
pub mod sizes;
pub mod synth;
pub mod tensor;
pub mod text;
pub mod tiles;
