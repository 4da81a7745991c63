"""A lean Gemma 3n text model for training and measuring on a CPU.

The mathematics is that of the reference implementation in `transformers` (see check_model.py,
which compares the two); the organisation differs for speed:

* The weights of all layers are stacked in one tensor per kind, so the optimizer handles some
  twenty tensors and not a thousand.
* Tokens are kept flat, `[tokens, 4, hidden]`, and one layer is one function without branches on
  data, so that `torch.compile` can fuse the many small element-wise steps of AltUp and the norms.
* The MatFormer size is an argument *per token and layer*: `width` is the FFN width in force and
  `keep` says whether the layer runs at all. One batch therefore mixes all sizes, and a switch of
  the size inside a sequence needs nothing special: the keys and values of the earlier tokens are
  simply those that the earlier size produced.
"""

import argparse
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

SPARSITY = 0.95
# The number of standard deviations above the mean that cuts off 95 % of a normal distribution.
SPARSE_CUTOFF = 1.6448536269514722


@dataclass(frozen=True)
class Config:
    """The shape of the demo model; everything a layer needs to know is here."""

    vocab: int = 1536
    hidden: int = 64
    ffn: int = 256
    layers: int = 35
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ple: int = 32
    altup: int = 4
    laurel: int = 32
    window: int = 512
    max_positions: int = 4096
    kv_shared: int = 15
    sparse_layers: int = 10
    rope_full: float = 1_000_000.0
    rope_sliding: float = 10_000.0
    softcap: float = 30.0
    eps: float = 1e-6

    @property
    def own_kv(self):
        """The number of layers that compute keys and values of their own."""
        return self.layers - self.kv_shared

    def is_full(self, layer):
        """Every fifth layer attends to everything, the others to a window."""
        return (layer + 1) % 5 == 0

    def kv_source(self, layer):
        """The layer whose keys and values `layer` reads."""
        if layer < self.own_kv:
            return layer
        return self.own_kv - 1 if self.is_full(layer) else self.own_kv - 2

    def to_dict(self):
        return asdict(self)


# Kinds of weights: name -> (shape without the layer axis, which layers have it).
def layer_shapes(c):
    """The shapes of the stacked weights; the first axis is the number of layers that own them."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    every, own = c.layers, c.own_kv
    return {
        "q": (every, q, c.hidden),
        "k": (own, kv, c.hidden),
        "v": (own, kv, c.hidden),
        "o": (every, c.hidden, q),
        "q_norm": (every, c.head_dim),
        "k_norm": (own, c.head_dim),
        "gate": (every, c.ffn, c.hidden),
        "up": (every, c.ffn, c.hidden),
        "down": (every, c.hidden, c.ffn),
        "laurel_left": (every, c.laurel, c.hidden),
        "laurel_right": (every, c.hidden, c.laurel),
        "ple_gate": (every, c.ple, c.hidden),
        "ple_proj": (every, c.hidden, c.ple),
        "input_norm": (every, c.hidden),
        "post_attn_norm": (every, c.hidden),
        "pre_ffn_norm": (every, c.hidden),
        "post_ffn_norm": (every, c.hidden),
        "post_laurel_norm": (every, c.hidden),
        "post_ple_norm": (every, c.hidden),
        "router": (every, c.altup, c.hidden),
        "router_norm": (every, c.hidden),
        "predict": (every, c.altup * c.altup, c.altup),
        "correct": (every, c.altup, c.altup),
        "correct_scale": (every, c.hidden),
    }


def model_shapes(c):
    """The shapes of the weights outside the layers."""
    return {
        "embed": (c.vocab, c.hidden),
        "ple_embed": (c.vocab, c.layers * c.ple),
        "ple_model_proj": (c.layers * c.ple, c.hidden),
        "ple_norm": (c.ple,),
        "altup_proj": (c.altup - 1, c.hidden, c.hidden),
        "altup_unembed": (c.altup - 1, c.hidden, c.hidden),
        "norm": (c.hidden,),
    }


def init_params(c, seed=1):
    """Fresh weights.

    The norms after each branch start at 0.3: branches that begin quietly leave the residual path
    near the identity (the `/ sqrt(2)` of Gemma 3n holds it at an RMS of 2.4), so 35 layers train
    from the first step. The router sees inputs divided by the hidden size and starts wide for it; the
    norms of q and k carry the usual scale of attention, which Gemma 3n leaves out.
    """
    g = torch.Generator().manual_seed(seed)
    quiet = {"post_attn_norm", "post_ffn_norm", "post_laurel_norm", "post_ple_norm"}
    params = {}
    for name, shape in {**layer_shapes(c), **model_shapes(c)}.items():
        if name in quiet:
            value = torch.full(shape, 0.3)
        elif name in ("q_norm", "k_norm"):
            value = torch.full(shape, c.head_dim**-0.25)
        elif name.endswith("norm") or name == "correct_scale":
            value = torch.ones(shape)
        else:
            std = {
                "embed": c.hidden**-0.5,
                "ple_embed": c.ple**-0.5,
                "router": 2.0,
                "predict": 0.1,
                "correct": 0.1,
            }.get(name, shape[-1] ** -0.5)
            value = torch.randn(shape, generator=g) * std
        params[name] = value
    return params


def rms(x, weight=None, eps=1e-6):
    """Root-mean-square norm, with a weight used as it is (no `1 +`)."""
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def rotate(x, cos, sin):
    """Rotary position embedding on the last axis."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def attend(q, k, v, mask, groups):
    """Attention with scale 1 (q and k are normed); `mask` is added to the scores."""
    b, s, kvh, d = k.shape
    q = q.transpose(1, 2)
    k = k.transpose(1, 2).unsqueeze(2).expand(b, kvh, groups, s, d).reshape(b, kvh * groups, s, d)
    v = v.transpose(1, 2).unsqueeze(2).expand(b, kvh, groups, s, d).reshape(b, kvh * groups, s, d)
    out = torch.softmax(q @ k.transpose(2, 3) + mask, dim=-1) @ v
    return out.transpose(1, 2).reshape(b * s, -1)


def layer(x, ple, rope, mask, width, keep, kv, w, c, sparse):
    """One decoder layer on the AltUp stack `x` [tokens, 4, hidden].

    `kv` is None for a layer that computes its own keys and values, else the pair to read.
    Returns the new stack and the pair.
    """
    cos, sin = rope
    b, s = cos.shape[:2]
    q_out, kv_out = c.heads * c.head_dim, c.kv_heads * c.head_dim

    # AltUp: predict all four streams from their mixture.
    modal = torch.tanh(F.linear(rms(x[:, 0], w["router_norm"]) / c.hidden, w["router"]).float())
    coefs = F.linear(modal, w["predict"]).view(-1, c.altup, c.altup).float()
    pred = x + (coefs.unsqueeze(-1) * x.unsqueeze(1)).sum(2)

    active = pred[:, 0]
    normed = rms(active, w["input_norm"])
    # One product for everything that reads the normed input.
    fused = F.linear(normed, w["in_proj"])
    q = fused[:, :q_out].view(b, s, c.heads, c.head_dim).float()
    q = rotate(rms(q, w["q_norm"]), cos, sin)
    if kv is None:
        at = q_out
        k = fused[:, at : at + kv_out].view(b, s, c.kv_heads, c.head_dim).float()
        v = fused[:, at + kv_out : at + 2 * kv_out].view(b, s, c.kv_heads, c.head_dim).float()
        kv = (rotate(rms(k, w["k_norm"]), cos, sin), rms(v))
    laurel = F.linear(fused[:, -c.laurel :], w["laurel_right"]).float()
    laurel = normed + rms(laurel, w["post_laurel_norm"])

    attn = F.linear(attend(q, kv[0], kv[1], mask, c.heads // c.kv_heads), w["o"]).float()
    h = (active + rms(attn, w["post_attn_norm"]) + laurel) * (1 / math.sqrt(2))

    # FFN: only the first `width` units of a token exist.
    both = F.linear(rms(h, w["pre_ffn_norm"]), w["gate_up"]).float()
    gate, up = both[:, : c.ffn], both[:, c.ffn :]
    exists = (torch.arange(c.ffn) < width.unsqueeze(-1)).float()
    if sparse:
        n = width.unsqueeze(-1).float()
        mean = (gate * exists).sum(-1, keepdim=True) / n
        var = ((gate - mean).pow(2) * exists).sum(-1, keepdim=True) / n
        gate = torch.relu(gate - (mean + SPARSE_CUTOFF * torch.sqrt(var + 1e-10)))
    units = F.gelu(gate, approximate="tanh") * up * exists
    ffn = F.linear(units, w["down"]).float()
    h = h + rms(ffn, w["post_ffn_norm"])

    # AltUp: correct the predictions by what the layer found, then add the per-layer embedding.
    modal = torch.tanh(F.linear(rms(h, w["router_norm"]) / c.hidden, w["router"]).float())
    coefs = F.linear(modal, w["correct"]).float() + 1.0
    new = pred + coefs.unsqueeze(-1) * (h - active).unsqueeze(1)
    first = F.gelu(F.linear(new[:, 0] * w["correct_scale"], w["ple_gate"]).float(), approximate="tanh")
    first = rms(F.linear(first * ple, w["ple_proj"]).float(), w["post_ple_norm"])
    new = torch.cat((new[:, :1], new[:, 1:] + first.unsqueeze(1)), dim=1)

    # A skipped layer is the identity on the whole stack.
    return torch.where(keep.view(-1, 1, 1), new, x), kv


def rope_table(positions, c, base):
    """Cosines and sines for `positions` [batch, length], ready to broadcast over heads."""
    freq = base ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    angle = positions.float().unsqueeze(-1) * freq
    angle = torch.cat((angle, angle), dim=-1).unsqueeze(2)
    return angle.cos(), angle.sin()


def attention_masks(segments, positions, window):
    """Additive masks (full, sliding) [batch, 1, length, length].

    Several documents may share a row: a token sees only earlier tokens of its own segment.
    """
    s = segments.shape[1]
    causal = torch.ones(s, s, dtype=torch.bool).tril()
    seen = causal & (segments.unsqueeze(2) == segments.unsqueeze(1))
    near = seen & (positions.unsqueeze(2) - positions.unsqueeze(1) < window)

    def additive(m):
        return torch.zeros(m.shape).masked_fill(~m, -1e9).unsqueeze(1)

    return additive(seen), additive(near)


def same_magnitude(y, target):
    """Rescale `y` to the RMS `target`, as Gemma 3n does on entry to and exit from the stack."""
    rms_y = torch.sqrt(y.pow(2).mean(-1, keepdim=True).clamp(min=1e-5))
    return y * target / rms_y


def prepare(params, c):
    """The weights in the arrangement that `layer` reads: fused, and split by layer."""
    q, k, v, left = params["q"], params["k"], params["v"], params["laurel_left"]
    own = torch.cat((q[: c.own_kv], k, v, left[: c.own_kv]), dim=1).unbind(0)
    shared = torch.cat((q[c.own_kv :], left[c.own_kv :]), dim=1).unbind(0)
    split = {
        name: params[name].unbind(0)
        for name in layer_shapes(c)
        if name not in ("q", "k", "v", "laurel_left", "gate", "up")
    }
    split["in_proj"] = own + shared
    split["gate_up"] = torch.cat((params["gate"], params["up"]), dim=1).unbind(0)
    return [
        {name: values[i] for name, values in split.items() if i < len(values)}
        for i in range(c.layers)
    ]


def forward(params, c, ids, positions, segments, width, keep, layer_fn=layer, watch=None):
    """Hidden states [tokens, hidden] after the final norm.

    ids, positions, segments: [batch, length]; width (integers) and keep (booleans):
    [layers, batch * length]. `watch`, a list, collects the largest absolute activations.
    """
    b, s = ids.shape
    flat = ids.reshape(-1)
    x0 = F.embedding(flat, params["embed"]) * math.sqrt(c.hidden)
    table = F.embedding(flat, params["ple_embed"]).view(-1, c.layers, c.ple) * math.sqrt(c.ple)
    proj = F.linear(x0, params["ple_model_proj"]).float().view(-1, c.layers, c.ple)
    proj = rms(proj * c.hidden**-0.5, params["ple_norm"])
    ple = ((proj + table) * (1 / math.sqrt(2))).unbind(1)

    target = x0.pow(2).mean(-1, keepdim=True).sqrt()
    streams = [x0]
    for p in params["altup_proj"].unbind(0):
        streams.append(same_magnitude(F.linear(x0, p).float(), target))
    x = torch.stack(streams, dim=1)

    ropes = {
        True: rope_table(positions, c, c.rope_full),
        False: rope_table(positions, c, c.rope_sliding),
    }
    full, near = attention_masks(segments, positions, c.window)
    weights = prepare(params, c)
    caches = {}
    for i in range(c.layers):
        is_full = c.is_full(i)
        kv = None if i < c.own_kv else caches[is_full]
        x, kv = layer_fn(
            x, ple[i], ropes[is_full], full if is_full else near, width[i], keep[i], kv,
            weights[i], c, i < c.sparse_layers,
        )  # fmt: skip
        if i < c.own_kv:
            caches[is_full] = kv
        if watch is not None:
            watch.append(x.abs().max().item())

    target = x[:, 0].pow(2).mean(-1, keepdim=True).sqrt()
    streams = [x[:, 0]]
    for i, p in enumerate(params["altup_unembed"].unbind(0)):
        streams.append(same_magnitude(F.linear(x[:, i + 1], p).float(), target))
    return rms(torch.stack(streams).mean(0), params["norm"])


def logits(params, c, hidden):
    """Soft-capped logits of hidden states."""
    raw = F.linear(hidden, params["embed"]).float()
    return c.softcap * torch.tanh(raw / c.softcap)


def size_tensors(c, widths, skipped, batch, length):
    """`width` and `keep` for a batch that runs at one size throughout."""
    n = batch * length
    width = torch.tensor(widths).view(-1, 1).expand(c.layers, n).contiguous()
    keep = torch.tensor([i not in skipped for i in range(c.layers)])
    return width, keep.view(-1, 1).expand(c.layers, n).contiguous()


def count(c):
    """The number of weights, in all."""
    return sum(math.prod(s) for s in {**layer_shapes(c), **model_shapes(c)}.values())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    config = Config()
    print(config)
    print(f"{count(config):,} weights")
