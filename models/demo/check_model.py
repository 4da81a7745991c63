"""Checks that model.py computes what the reference implementation in `transformers` computes.

Compares F32 logits on random weights (or those of a checkpoint): at every size of the ladder, for
a prompt longer than the sliding window, for several documents in one row, and with a switch of
the size in the middle.
"""

import argparse
from pathlib import Path

import torch

import model as M
from evaluate import load
from reference_model import reference, reference_logits
from sizes import ladder


@torch.no_grad()
def lean_logits(params, c, ids, size, switch=None):
    """Logits of model.py for one prompt, with or without a switch."""
    n = len(ids)
    width, keep = M.size_tensors(c, *size, 1, n)
    if switch:
        at, then = switch
        width2, keep2 = M.size_tensors(c, *then, 1, n)
        width[:, at:], keep[:, at:] = width2[:, at:], keep2[:, at:]
    x = torch.tensor([ids])
    hidden = M.forward(params, c, x, torch.arange(n)[None], torch.zeros_like(x), width, keep)
    return M.logits(params, c, hidden)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--checkpoint", type=Path, help="weights to use; random ones by default")
    p.add_argument("--tolerance", type=float, default=2e-3, help="largest difference allowed")
    a = p.parse_args()
    if a.checkpoint:
        c, params = load(a.checkpoint)
    else:
        c = M.Config()
        params = M.init_params(c, seed=7)
        # Norms and scales that differ from their neutral start show more mistakes.
        g = torch.Generator().manual_seed(8)
        for name, value in params.items():
            if name.endswith("norm") or name == "correct_scale":
                value += 0.2 * torch.randn(value.shape, generator=g)
    net = reference(params, c)
    g = torch.Generator().manual_seed(9)
    ids = torch.randint(7, c.vocab, (c.window + 60,), generator=g).tolist()
    sizes = ladder(c)
    names = list(sizes)
    worst = 0.0

    def compare(what, got, want):
        nonlocal worst
        gap = (got - want).abs().max().item()
        worst = max(worst, gap)
        same = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
        print(f"{what:44} largest difference {gap:.1e}, same first choice {same:.1%}")

    for name in names:
        compare(f"{name}, {len(ids)} tokens", lean_logits(params, c, ids, sizes[name]), reference_logits(net, ids, sizes[name]))
    for first, then in ((0, -1), (-1, 0)):
        one, two = sizes[names[first]], sizes[names[then]]
        short = ids[:40]
        compare(
            f"switch {names[first]} -> {names[then]} at 25",
            lean_logits(params, c, short, one, (25, two)),
            reference_logits(net, short, one, (25, two)),
        )
    both = torch.tensor([ids[:30] + ids[50:90]])
    positions = torch.cat((torch.arange(30), torch.arange(40)))[None]
    segments = (torch.arange(70) >= 30).long()[None]
    width, keep = M.size_tensors(c, *sizes[names[0]], 1, 70)
    with torch.no_grad():
        hidden = M.forward(params, c, both, positions, segments, width, keep)
        compare("two documents in one row", M.logits(params, c, hidden)[30:], reference_logits(net, ids[50:90], sizes[names[0]]))
    print("OK" if worst <= a.tolerance else "DIFFERENT")
    raise SystemExit(worst > a.tolerance)


if __name__ == "__main__":
    main()
