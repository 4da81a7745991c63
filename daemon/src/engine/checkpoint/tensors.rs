//! The tensors that mistral.rs asks a Gemma 3n checkpoint for: the language model's here, the towers'
//! in `towers`. Called by the parent module and by `memory`.

use super::config::{Config, Text};
use super::towers;

const PREFIX: &str = "model.language_model";

/// A tensor that mistral.rs asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// What it is part of, if the language model can do without. A part is there or not, as a whole.
    pub group: Option<&'static str>,
}

/// Every tensor, at full size.
#[must_use]
pub fn wanted(config: &Config) -> Vec<Wanted> {
    let text = &config.text;
    let shape = config.shape();
    let mut wanted = outside_layers(text);
    for (index, width) in shape.widths.iter().enumerate() {
        let shared = index >= shape.first_shared_layer;
        wanted.extend(layer(text, *width).into_iter().map(|(name, shape)| {
            // A layer that reads another's KV cache makes no keys and values. mistral.rs asks for
            // these all the same; newer checkpoints leave them out.
            let unused =
                shared && ["self_attn.k", "self_attn.v"].iter().any(|kind| name.starts_with(kind));
            let group = if unused { Some("keys and values that are not used") } else { None };
            Wanted { name: format!("{PREFIX}.layers.{index}.{name}"), shape, group }
        }));
    }
    wanted.extend(towers::towers(config));
    wanted
}

/// The language model without its layers.
pub fn outside_layers(text: &Text) -> Vec<Wanted> {
    let Text { hidden_size: hidden, vocab_size, hidden_size_per_layer_input: ple, .. } = *text;
    let all_ple = text.layers as u64 * ple;
    let mut tensors = vec![
        ("embed_tokens.weight".to_owned(), vec![vocab_size, hidden]),
        (
            "embed_tokens_per_layer.weight".to_owned(),
            vec![text.vocab_size_per_layer_input, all_ple],
        ),
        ("per_layer_model_projection.weight".to_owned(), vec![all_ple, hidden]),
        ("per_layer_projection_norm.weight".to_owned(), vec![ple]),
        ("norm.weight".to_owned(), vec![hidden]),
    ];
    for stream in 1..text.altup_num_inputs {
        for kind in ["altup_projections", "altup_unembed_projections"] {
            tensors.push((format!("{kind}.{}.weight", stream - 1), vec![hidden, hidden]));
        }
    }
    if !text.tie_word_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![vocab_size, hidden]));
    }
    let wanted = |(name, shape)| Wanted { name: format!("{PREFIX}.{name}"), shape, group: None };
    tensors.into_iter().map(wanted).collect()
}

/// One layer with this FFN width, its names without their prefix.
pub fn layer(text: &Text, width: u64) -> Vec<(&'static str, Vec<u64>)> {
    let Text { hidden_size: hidden, head_dim, altup_num_inputs: altup, .. } = *text;
    let (queries, keys) = (text.heads * head_dim, text.kv_heads * head_dim);
    let (rank, ple) = (text.laurel_rank, text.hidden_size_per_layer_input);
    vec![
        ("self_attn.q_proj.weight", vec![queries, hidden]),
        ("self_attn.k_proj.weight", vec![keys, hidden]),
        ("self_attn.v_proj.weight", vec![keys, hidden]),
        ("self_attn.o_proj.weight", vec![hidden, queries]),
        ("self_attn.q_norm.weight", vec![head_dim]),
        ("self_attn.k_norm.weight", vec![head_dim]),
        ("mlp.gate_proj.weight", vec![width, hidden]),
        ("mlp.up_proj.weight", vec![width, hidden]),
        ("mlp.down_proj.weight", vec![hidden, width]),
        ("input_layernorm.weight", vec![hidden]),
        ("post_attention_layernorm.weight", vec![hidden]),
        ("pre_feedforward_layernorm.weight", vec![hidden]),
        ("post_feedforward_layernorm.weight", vec![hidden]),
        ("altup.correct_output_scale", vec![hidden]),
        ("altup.correction_coefs.weight", vec![altup, altup]),
        ("altup.prediction_coefs.weight", vec![altup * altup, altup]),
        ("altup.modality_router.weight", vec![altup, hidden]),
        ("altup.router_norm.weight", vec![hidden]),
        ("laurel.linear_left.weight", vec![rank, hidden]),
        ("laurel.linear_right.weight", vec![hidden, rank]),
        ("laurel.post_laurel_norm.weight", vec![hidden]),
        ("per_layer_input_gate.weight", vec![ple, hidden]),
        ("per_layer_projection.weight", vec![hidden, ple]),
        ("post_per_layer_input_norm.weight", vec![hidden]),
    ]
}
