"""Lists the tensors of the vision and audio towers that the demo folder leaves out.

The demo model answers text only, but a loader of Gemma 3n checkpoints expects the towers too. This
script writes `towers.json`: {name: {"dtype", "shape"}} for the vision tower (MobileNetV5-300M, whose
dimensions are fixed), the audio tower (in the small dimensions of `export.AUDIO`) and the two
embedders. nestd adds them as holes in a sparse file.
"""

import argparse
import json
import math
from pathlib import Path

from model import Config

# The audio tower of config.json: one conformer layer, as narrow as the shape allows.
AUDIO = {
    "model_type": "gemma3n_audio",
    "vocab_size": 128,
    "vocab_offset": 262272,
    "input_feat_size": 128,
    "hidden_size": 32,
    "rms_norm_eps": 1e-06,
    "gradient_clipping": 10000000000.0,
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_invalid_logits_value": -1000000000.0,
    "conf_attention_logit_cap": 50.0,
    "conf_num_attention_heads": 1,
    "conf_num_hidden_layers": 1,
    "conf_conv_kernel_size": 5,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": [4, 4],
    "sscp_conv_group_norm_eps": 0.001,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
}
VISION = {
    "model_type": "gemma3n_vision",
    "architecture": "mobilenetv5_300m_enc",
    "do_pooling": False,
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "model_args": None,
    "rms_norm_eps": 1e-06,
    "vocab_offset": 262144,
    "vocab_size": 128,
}


def inverted_residual(name, cin, cout, start, mid, expand, scale=True):
    """A universal inverted residual: optional depthwise, expand, optional depthwise, project."""
    inner = int(cin * expand)
    out = {}
    if start:
        out[f"{name}.dw_start.conv.weight"] = [cin, 1, start, start]
        out[f"{name}.dw_start.bn.weight"] = [cin]
    out[f"{name}.pw_exp.conv.weight"] = [inner, cin, 1, 1]
    out[f"{name}.pw_exp.bn.weight"] = [inner]
    if mid:
        out[f"{name}.dw_mid.conv.weight"] = [inner, 1, mid, mid]
        out[f"{name}.dw_mid.bn.weight"] = [inner]
    out[f"{name}.pw_proj.conv.weight"] = [cout, inner, 1, 1]
    out[f"{name}.pw_proj.bn.weight"] = [cout]
    if scale:
        out[f"{name}.layer_scale.gamma"] = [cout]
    return out


def attention(name, width, heads, dim, stride):
    """A multi-query attention block; with a stride, keys and values are first downsampled."""
    out = {f"{name}.norm.weight": [width], f"{name}.attn.query.proj.weight": [heads * dim, width, 1, 1]}
    for part in ("key", "value"):
        if stride > 1:
            out[f"{name}.attn.{part}.down_conv.weight"] = [width, 1, 3, 3]
            out[f"{name}.attn.{part}.norm.weight"] = [width]
        out[f"{name}.attn.{part}.proj.weight"] = [dim, width, 1, 1]
    out[f"{name}.attn.output.proj.weight"] = [width, heads * dim, 1, 1]
    out[f"{name}.layer_scale.gamma"] = [width]
    return out


def vision_tower():
    """Shapes of MobileNetV5-300M as used in Gemma 3n."""
    out = {"conv_stem.conv.weight": [64, 3, 3, 3], "conv_stem.conv.bias": [64], "conv_stem.bn.weight": [64]}
    width = 64
    for i in range(3):
        name = f"blocks.0.{i}"
        out[f"{name}.conv_exp.weight"] = [4 * width, width, 3, 3]
        out[f"{name}.bn1.weight"] = [4 * width]
        out[f"{name}.conv_pwl.weight"] = [128, 4 * width, 1, 1]
        out[f"{name}.bn2.weight"] = [128]
        width = 128
    for i, (start, mid, expand) in enumerate(((3, 5, 6), (5, 0, 4), (3, 0, 4), (5, 0, 4), (3, 0, 4))):
        out |= inverted_residual(f"blocks.1.{i}", width, 256, start, mid, expand)
        width = 256
    for stage, target, plain, pairs, heads, dim, stride in ((2, 640, 7, 14, 12, 64, 2), (3, 1280, 0, 19, 16, 96, 1)):
        out |= inverted_residual(f"blocks.{stage}.0", width, target, 5, 5, 6)
        width, i = target, 1
        for _ in range(plain):
            out |= inverted_residual(f"blocks.{stage}.{i}", width, width, 5, 0, 4)
            i += 1
        if plain:
            out |= inverted_residual(f"blocks.{stage}.{i}", width, width, 0, 0, 1)
            i += 1
        for _ in range(pairs):
            out |= attention(f"blocks.{stage}.{i}", width, heads, dim, stride)
            out |= inverted_residual(f"blocks.{stage}.{i + 1}", width, width, 0, 0, 2)
            i += 2
    out |= inverted_residual("msfa.ffn", 640 + 1280, 2048, 0, 0, 2, scale=False)
    out["msfa.norm.weight"] = [2048]
    return out


def audio_tower(a):
    """Shapes of the conformer for the dimensions `a`."""
    h, channels = a["hidden_size"], a["sscp_conv_channel_size"]
    head = h // a["conf_num_attention_heads"]
    out, freq, last = {}, a["input_feat_size"], 1
    for i in range(2):
        kernel, stride = a["sscp_conv_kernel_size"][i], a["sscp_conv_stride_size"][i]
        out[f"subsample_conv_projection.conv_{i}.conv.weight"] = [channels[i], last, *kernel]
        out[f"subsample_conv_projection.conv_{i}.norm.weight"] = [channels[i]]
        freq = (freq + 2 - kernel[1]) // stride[1] + 1
        last = channels[i]
    out["subsample_conv_projection.input_proj_linear.weight"] = [h, last * freq]
    for i in range(a["conf_num_hidden_layers"]):
        c = f"conformer.{i}"
        for part in ("ffw_layer_start", "ffw_layer_end"):
            out[f"{c}.{part}.pre_layer_norm.weight"] = [h]
            out[f"{c}.{part}.ffw_layer_1.weight"] = [4 * h, h]
            out[f"{c}.{part}.ffw_layer_2.weight"] = [h, 4 * h]
            out[f"{c}.{part}.post_layer_norm.weight"] = [h]
        t = f"{c}.attention"
        out[f"{t}.pre_attn_norm.weight"] = [h]
        out[f"{t}.attn.per_dim_scale"] = [head]
        out[f"{t}.attn.relative_position_embedding.pos_proj.weight"] = [h, h]
        for part in ("q_proj", "k_proj", "v_proj"):
            out[f"{t}.attn.{part}.weight"] = [h, h]
        out[f"{t}.post.weight"] = [h, h]
        out[f"{t}.post_norm.weight"] = [h]
        v = f"{c}.lconv1d"
        out[f"{v}.pre_layer_norm.weight"] = [h]
        out[f"{v}.linear_start.weight"] = [2 * h, h]
        out[f"{v}.depthwise_conv1d.weight"] = [h, 1, a["conf_conv_kernel_size"]]
        out[f"{v}.conv_norm.weight"] = [h]
        out[f"{v}.linear_end.weight"] = [h, h]
        out[f"{c}.norm.weight"] = [h]
    return out


def embedder(vocab, width, hidden):
    """Shapes of the step from a tower to the language model."""
    return {
        "embedding.weight": [vocab, width],
        "hard_embedding_norm.weight": [width],
        "soft_embedding_norm.weight": [width],
        "embedding_projection.weight": [hidden, width],
    }


def towers(c):
    """All tensors, under the names of the published checkpoint."""
    parts = (
        ("vision_tower.timm_model", vision_tower()),
        ("audio_tower", audio_tower(AUDIO)),
        ("embed_vision", embedder(VISION["vocab_size"], VISION["hidden_size"], c.hidden)),
        ("embed_audio", embedder(AUDIO["vocab_size"], AUDIO["hidden_size"], c.hidden)),
    )
    return {
        f"model.{prefix}.{name}": {"dtype": "F16", "shape": shape} for prefix, tensors in parts for name, shape in tensors.items()
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path(__file__).parent / "towers.json")
    a = p.parse_args()
    all_tensors = towers(Config())
    a.out.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in all_tensors.items()) + "\n}\n")
    vision = sum(math.prod(v["shape"]) for k, v in all_tensors.items() if "vision_tower" in k)
    audio = sum(math.prod(v["shape"]) for k, v in all_tensors.items() if "audio_tower" in k)
    print(f"{len(all_tensors)} tensors; vision tower {vision:,} values, audio tower {audio:,}")


if __name__ == "__main__":
    main()
