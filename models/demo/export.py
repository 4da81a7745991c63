"""Writes a checkpoint as a Hugging Face folder (published names) and as GGUF (llama.cpp's names).

Both hold the same values, rounded to F16. Without a checkpoint, GGUF files are made from the folder. Two additions keep other loaders happy and change no
result: k_proj, v_proj and k_norm of the layers that share keys and values are written (zeros and
ones, nothing reads them), and the LAuReL rank is padded with zeros to 64, which llama.cpp assumes.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from evaluate import load
from reference_model import load_folder, named_weights
from sizes import write_csv
from tokenizer import BOS, CHAT_TEMPLATE, END, EOS, PAD, SPECIAL, UNK
from towers import AUDIO, VISION

LAUREL_RANK = 64
# Token ids of the towers; those of the published model, which loaders hold as constants.
IMAGE, AUDIO_TOKEN = 262145, 262273


def weights(params, c):
    """F16 weights by published name, without prefix, with the two additions."""
    out = {}
    for name, w in named_weights(params, c).items():
        if "laurel.linear_left" in name:
            w = torch.cat((w, torch.zeros(LAUREL_RANK - c.laurel, c.hidden)))
        if "laurel.linear_right" in name:
            w = torch.cat((w, torch.zeros(c.hidden, LAUREL_RANK - c.laurel)), dim=1)
        out[name] = w.half().contiguous()
        assert torch.isfinite(out[name]).all(), name
    kv = c.kv_heads * c.head_dim
    for i in range(c.own_kv, c.layers):
        out[f"layers.{i}.self_attn.k_proj.weight"] = torch.zeros(kv, c.hidden).half()
        out[f"layers.{i}.self_attn.v_proj.weight"] = torch.zeros(kv, c.hidden).half()
        out[f"layers.{i}.self_attn.k_norm.weight"] = torch.ones(c.head_dim).half()
    return out


def config(c):
    """config.json, with the keys of the published model."""
    text = {
        "model_type": "gemma3n_text",
        "vocab_size": c.vocab,
        "vocab_size_per_layer_input": c.vocab,
        "hidden_size": c.hidden,
        "hidden_size_per_layer_input": c.ple,
        "intermediate_size": [c.ffn] * c.layers,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "num_kv_shared_layers": c.kv_shared,
        "head_dim": c.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "activation_sparsity_pattern": [0.95] * c.sparse_layers + [0.0] * (c.layers - c.sparse_layers),
        "layer_types": ["full_attention" if c.is_full(i) else "sliding_attention" for i in range(c.layers)],
        "sliding_window": c.window,
        "max_position_embeddings": c.max_positions,
        "rope_theta": c.rope_full,
        "rope_local_base_freq": c.rope_sliding,
        "rope_scaling": None,
        "rms_norm_eps": c.eps,
        "final_logit_softcapping": c.softcap,
        "altup_num_inputs": c.altup,
        "altup_active_idx": 0,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_lr_multiplier": 1.0,
        "laurel_rank": LAUREL_RANK,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "float16",
    }
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "text_config": text,
        "vision_config": VISION,
        "audio_config": AUDIO,
        "audio_soft_tokens_per_image": 188,
        "vision_soft_tokens_per_image": 256,
        "image_token_id": IMAGE,
        "audio_token_id": AUDIO_TOKEN,
        "boi_token_id": 262144,
        "eoi_token_id": 262146,
        "boa_token_id": 262272,
        "eoa_token_id": 262274,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": [EOS, END],
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }


def tokenizer_config(c):
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": c.max_positions,
        "added_tokens_decoder": {
            str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            for i, t in enumerate(SPECIAL)
        },
        "chat_template": CHAT_TEMPLATE,
    }


GENERATION = {"bos_token_id": BOS, "eos_token_id": [EOS, END], "pad_token_id": PAD, "do_sample": False, "max_new_tokens": 128}
PROCESSOR = {"processor_class": "Gemma3nProcessor", "audio_seq_length": 188, "image_seq_length": 256}
PREPROCESSOR = {
    "processor_class": "Gemma3nProcessor",
    "image_processor_type": "SiglipImageProcessorFast",
    "do_convert_rgb": None,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 768, "width": 768},
    "image_seq_length": 256,
    "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
    "dither": 0.0,
    "feature_size": 128,
    "fft_length": 1024,
    "fft_overdrive": True,
    "frame_length": 512,
    "hop_length": 160,
    "input_scale_factor": 1.0,
    "max_frequency": 7600.0,
    "mel_floor": 1e-05,
    "min_frequency": 125.0,
    "padding_side": "right",
    "padding_value": 0.0,
    "preemphasis": 0.97,
    "preemphasis_htk_flavor": True,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(out, params, c, tokenizer, accuracy):
    """The Hugging Face folder, without the towers (see towers.py)."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {"model.language_model." + k: v for k, v in weights(params, c).items()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    shutil.copy(tokenizer, out / "tokenizer.json")
    write_json(out / "config.json", config(c))
    write_json(out / "tokenizer_config.json", tokenizer_config(c))
    write_json(out / "generation_config.json", GENERATION)
    write_json(out / "processor_config.json", PROCESSOR)
    write_json(out / "preprocessor_config.json", PREPROCESSOR)
    write_csv(c, out / "sizes.csv", accuracy)


def widen_ple(params, c, ple):
    """The same model with per-layer embeddings of a larger size, of which the new part is zero.

    llama.cpp has the published size, 256, as a constant. The table is scaled by the root of the size,
    and the projection is divided by its root mean square, so both get the root of the ratio.
    """
    wide = replace(c, ple=ple)
    scale = (c.ple / ple) ** 0.5
    out = dict(params)

    def per_layer(w):
        shape = (*w.shape[:-1], c.layers, ple - c.ple)
        return torch.cat((w.view(*w.shape[:-1], c.layers, c.ple), torch.zeros(shape)), -1).flatten(-2)

    out["ple_embed"] = per_layer(params["ple_embed"] * scale)
    out["ple_model_proj"] = per_layer(params["ple_model_proj"].T).T.contiguous()
    out["ple_norm"] = torch.cat((params["ple_norm"] * scale, torch.zeros(ple - c.ple)))
    out["ple_gate"] = torch.cat((params["ple_gate"], torch.zeros(c.layers, ple - c.ple, c.hidden)), 1)
    out["ple_proj"] = torch.cat((params["ple_proj"], torch.zeros(c.layers, c.hidden, ple - c.ple)), 2)
    return out, wide


def write_gguf(out, params, c, tokenizer, kind):
    """A GGUF file in `kind` (F32, F16 or Q8_0); what is no matrix with rows of 32 stays F32."""
    arch = gguf.MODEL_ARCH.GEMMA3N
    w = gguf.GGUFWriter(str(out), gguf.MODEL_ARCH_NAMES[arch])
    w.add_name("Nestd demo")
    w.add_size_label(f"{sum(v.numel() for v in params.values()) / 1e6:.1f}M")
    w.add_file_type({"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind])
    w.add_block_count(c.layers)
    w.add_context_length(c.max_positions)
    w.add_embedding_length(c.hidden)
    w.add_feed_forward_length([c.ffn] * c.layers)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_rope_freq_base(c.rope_full)
    w.add_final_logit_softcapping(c.softcap)
    w.add_sliding_window(c.window)
    w.add_sliding_window_pattern([not c.is_full(i) for i in range(c.layers)])
    w.add_shared_kv_layers(c.kv_shared)
    w.add_altup_active_idx(0)
    w.add_altup_num_inputs(c.altup)
    w.add_embedding_length_per_layer_input(c.ple)
    dense = float("-inf")
    cutoff = float(torch.distributions.Normal(0, 1).icdf(torch.tensor(0.95)))
    w.add_activation_sparsity_scale([cutoff] * c.sparse_layers + [dense] * (c.layers - c.sparse_layers))

    # The tokenizer as llama.cpp has Gemma's: a SentencePiece model whose scores are merge ranks.
    vocab = json.loads(Path(tokenizer).read_text(encoding="utf-8"))["model"]["vocab"]
    kinds, scores, tokens = [], [], sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(c.vocab))
    for i, t in enumerate(tokens):
        if t in SPECIAL:
            kinds.append(gguf.TokenType.UNKNOWN if i == UNK else gguf.TokenType.CONTROL)
        elif len(t) == 6 and t.startswith("<0x"):
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
        scores.append(-float(i) if kinds[-1] == gguf.TokenType.NORMAL else 0.0)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([t.encode() for t in tokens])
    w.add_token_scores(scores)
    w.add_token_types(kinds)
    w.add_bos_token_id(BOS)
    w.add_eos_token_id(EOS)
    w.add_eot_token_id(END)
    w.add_unk_token_id(UNK)
    w.add_pad_token_id(PAD)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(False)
    w.add_chat_template(CHAT_TEMPLATE)
    # As generation_config.json says it: greedy.
    w.add_sampling_temp(0.0)

    names = gguf.get_tensor_name_map(arch, c.layers)
    all_weights = weights(params, c)
    for part in ("altup_projections", "altup_unembed_projections"):
        all_weights[f"{part}.weight"] = torch.stack([all_weights.pop(f"{part}.{i}.weight") for i in range(c.altup - 1)])
    for name, value in all_weights.items():
        full = "model." + (name + ".weight" if name.endswith("_scale") else name)
        target = names.get_name(full, try_suffixes=(".weight",))
        assert target, full
        data = value.float().numpy()
        # Vectors and AltUp's tables of four are tiny and stay exact.
        if data.ndim == 1 or data.shape[-1] % 32 or "altup_router" in target or kind == "F32":
            w.add_tensor(target, data)
        elif kind == "F16":
            w.add_tensor(target, data.astype(np.float16))
        else:
            q = gguf.GGMLQuantizationType.Q8_0
            w.add_tensor(target, gguf.quants.quantize(data, q), raw_dtype=q)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    here = Path(__file__).parent
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--checkpoint", type=Path, help="checkpoint.pt of train.py; without it the folder is read, not written")
    p.add_argument("--tokenizer", type=Path, help="that of the folder by default")
    p.add_argument("--out", type=Path, default=here / "hf", help="the folder")
    p.add_argument("--measured", type=Path, help="results of evaluate.py --json, for the sizes table")
    p.add_argument("--gguf", type=Path, nargs="*", default=[], help="GGUF files; -F32, -F16 or -Q8_0 in the name says which")
    p.add_argument("--ple", type=int, help="widen the per-layer embeddings in the GGUF files with zeros; llama.cpp wants 256")
    a = p.parse_args()
    a.tokenizer = a.tokenizer or a.out / "tokenizer.json"
    accuracy = None
    if a.measured:
        accuracy = {k: v["accuracy"] for k, v in json.loads(a.measured.read_text()).items()}
    if a.checkpoint:
        c, params = load(a.checkpoint)
        write_folder(a.out, params, c, a.tokenizer, accuracy)
    else:
        c, params = load_folder(a.out)
    if a.ple:
        params, c = widen_ple(params, c, a.ple)
    for path in a.gguf:
        write_gguf(path, params, c, a.tokenizer, path.stem.rsplit("-", 1)[1])
    for path in (*sorted(a.out.iterdir()), *a.gguf):
        print(f"{path.stat().st_size:>10,}  {path.name}")


if __name__ == "__main__":
    main()
