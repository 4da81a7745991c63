"""The reference implementation of `transformers`, with MatFormer sizes and published weight names."""

import argparse
import json
import math
import re

import torch
from safetensors.torch import load_file
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

import model as M

# Our stacked weights -> the published name inside a layer.
LAYER_NAMES = {
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "laurel_left": "laurel.linear_left.weight",
    "laurel_right": "laurel.linear_right.weight",
    "ple_gate": "per_layer_input_gate.weight",
    "ple_proj": "per_layer_projection.weight",
    "input_norm": "input_layernorm.weight",
    "post_attn_norm": "post_attention_layernorm.weight",
    "pre_ffn_norm": "pre_feedforward_layernorm.weight",
    "post_ffn_norm": "post_feedforward_layernorm.weight",
    "post_laurel_norm": "laurel.post_laurel_norm.weight",
    "post_ple_norm": "post_per_layer_input_norm.weight",
    "router": "altup.modality_router.weight",
    "router_norm": "altup.router_norm.weight",
    "predict": "altup.prediction_coefs.weight",
    "correct": "altup.correction_coefs.weight",
    "correct_scale": "altup.correct_output_scale",
}
MODEL_NAMES = {
    "embed": "embed_tokens.weight",
    "ple_embed": "embed_tokens_per_layer.weight",
    "ple_model_proj": "per_layer_model_projection.weight",
    "ple_norm": "per_layer_projection_norm.weight",
    "norm": "norm.weight",
}


def named_weights(params, c):
    """The weights under their published names, without the prefix of the language model."""
    out = {MODEL_NAMES[k]: params[k] for k in MODEL_NAMES}
    for i in range(c.altup - 1):
        out[f"altup_projections.{i}.weight"] = params["altup_proj"][i]
        out[f"altup_unembed_projections.{i}.weight"] = params["altup_unembed"][i]
    for kind, name in LAYER_NAMES.items():
        for i, w in enumerate(params[kind]):
            out[f"layers.{i}.{name}"] = w
    return out


def load_folder(folder):
    """Config and weights of the exported folder, as `evaluate.load` gives those of a checkpoint."""
    c, stored = M.Config(), load_file(str(folder / "model.safetensors"))

    def weight(name):
        return stored["model.language_model." + name].float()

    params = {kind: weight(name) for kind, name in MODEL_NAMES.items()}
    params["altup_proj"] = torch.stack([weight(f"altup_projections.{i}.weight") for i in range(c.altup - 1)])
    params["altup_unembed"] = torch.stack([weight(f"altup_unembed_projections.{i}.weight") for i in range(c.altup - 1)])
    for kind, shape in M.layer_shapes(c).items():
        whole = torch.stack([weight(f"layers.{i}.{LAYER_NAMES[kind]}") for i in range(shape[0])])
        # What is beyond the shape is the padding of the LAuReL rank.
        params[kind] = whole[tuple(slice(n) for n in shape)].contiguous()
    for kind, shape in {**M.model_shapes(c), **M.layer_shapes(c)}.items():
        assert tuple(params[kind].shape) == tuple(shape), (kind, params[kind].shape, shape)
    return c, params


def reference(params, c):
    """The model of `transformers`, in F32 with eager attention, holding these weights."""
    config = Gemma3nTextConfig(
        vocab_size=c.vocab, vocab_size_per_layer_input=c.vocab, hidden_size=c.hidden, intermediate_size=c.ffn,
        num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_dim,
        hidden_size_per_layer_input=c.ple, altup_num_inputs=c.altup, laurel_rank=c.laurel, sliding_window=c.window,
        max_position_embeddings=c.max_positions, num_kv_shared_layers=c.kv_shared, final_logit_softcapping=c.softcap,
        attn_implementation="eager",
    )  # fmt: skip
    net = Gemma3nForCausalLM(config).float().eval()
    state = {"model." + k: v.float() for k, v in named_weights(params, c).items()}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    net.tie_weights()
    return net


def from_folder(folder):
    """The model of `transformers` for an exported Hugging Face folder, in F32."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    net = Gemma3nForCausalLM(Gemma3nTextConfig(**text, attn_implementation="eager")).float().eval()
    prefix, first_shared = "model.language_model.", text["num_hidden_layers"] - text["num_kv_shared_layers"]
    unused = re.compile(r"layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)\.")
    state = {}
    for name, w in load_file(str(folder / "model.safetensors")).items():
        found = unused.search(name)
        if not (found and int(found[1]) >= first_shared):
            state["model." + name.removeprefix(prefix)] = w.float()
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    net.tie_weights()
    return net


class at_size:
    """Runs the reference at one MatFormer size inside a `with` block.

    The FFN matrices are cut to a prefix, and a skipped layer hands the AltUp stack on unchanged.
    """

    def __init__(self, net, widths, skipped):
        self.net, self.widths, self.skipped = net, widths, skipped

    def __enter__(self):
        self.saved = []
        for i, layer in enumerate(self.net.model.layers):
            mlp, w = layer.mlp, self.widths[i]
            self.saved.append((mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, layer.forward))
            gate, up, down = (x.weight.detach() for x in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            mlp.gate_proj.weight = torch.nn.Parameter(gate[:w].contiguous())
            mlp.up_proj.weight = torch.nn.Parameter(up[:w].contiguous())
            mlp.down_proj.weight = torch.nn.Parameter(down[:, :w].contiguous())
            if i in self.skipped:
                layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        return self.net

    def __exit__(self, *error):
        for layer, (gate, up, down, forward) in zip(self.net.model.layers, self.saved):
            layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight = gate, up, down
            layer.forward = forward


@torch.no_grad()
def reference_logits(net, ids, size, switch=None):
    """F32 logits [length, vocabulary] of one prompt.

    With `switch` = (position, size): the tokens from that position on run at the other size, on
    the caches that the first size has written.
    """
    x = torch.tensor([ids])
    if switch is None:
        with at_size(net, *size):
            return net(x, use_cache=False).logits[0]
    at, then = switch
    with at_size(net, *size):
        first = net(x[:, :at], use_cache=True)
    parts = [first.logits[0]]
    with at_size(net, *then):
        # One token at a time, as a running answer is computed.
        cache = first.past_key_values
        for i in range(at, len(ids)):
            step = net(x[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            parts.append(step.logits[0])
    return torch.cat(parts)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    c = M.Config()
    print(f"{sum(math.prod(w.shape) for w in named_weights(M.init_params(c), c).values()):,} weights")
