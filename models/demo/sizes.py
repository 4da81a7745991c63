"""The MatFormer sizes of the demo model and their table in the published column layout."""

import argparse
import csv
import math
from pathlib import Path

from model import Config, layer_shapes, model_shapes

# The layers that keep the full FFN width (the others run at the narrow one), and the layers left
# out: the same choices as the published sizes E4B, E3.18B, E2.54B, E1.96B and E2B. The narrow width
# is an eighth of the full one, not half as published: half is enough for all this model can do.
NARROW = 8
SKIPPED = tuple(range(20, 25))
LADDER = (
    (tuple(range(35)), ()),
    ((4, *range(9, 25), 29, 34), ()),
    ((4, *range(20, 25)), ()),
    ((4,), SKIPPED),
    ((), SKIPPED),
)


def widths(c, wide):
    """The FFN width of every layer."""
    return [c.ffn if i in wide else c.ffn // NARROW for i in range(c.layers)]


def effective(c, wide, skipped):
    """The weights that a size computes with: all but the table of per-layer embeddings."""
    shapes = model_shapes(c)
    total = sum(math.prod(s) for name, s in shapes.items() if not name.startswith("ple_"))
    total += c.ple
    kept = [i for i in range(c.layers) if i not in skipped]
    total += len(kept) * c.ple * c.hidden
    for name, (owners, *rest) in layer_shapes(c).items():
        for i in kept:
            if i < owners:
                size = math.prod(rest)
                if name in ("gate", "up", "down"):
                    size = size * widths(c, wide)[i] // c.ffn
                total += size
    return total


def ladder(c):
    """The sizes from full to smallest: name -> (widths of all layers, skipped layers)."""
    result = {}
    for i, (wide, skipped) in enumerate(LADDER):
        name = f"E{effective(c, wide, skipped) / 1e6:.2f}M"
        if 0 < i < len(LADDER) - 1:
            name += "-layer-level"
        result[name] = (widths(c, wide), skipped)
    assert len(result) == len(LADDER)
    return result


def write_csv(c, path, accuracy=None):
    """Writes the table. The widths listed are those of the layers kept, as published.

    The column of the published table that holds a benchmark result holds the measured share of
    right answers on eval.jsonl, where there is one.
    """
    with open(path, "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["name", "# Layers", "# Effective Params (B)", "MMLU PT accuracy", "FFN Hidden Dims", "Layers Skipped"])
        for (name, (wide, skipped)), (choice, _) in zip(ladder(c).items(), LADDER):
            kept = [w for i, w in enumerate(wide) if i not in skipped]
            share = f"{accuracy[name]:.2%}" if accuracy else ""
            out.writerow([
                name, len(kept), f"{effective(c, choice, skipped) / 1e9:.5f}", share,
                "[" + ", ".join(map(str, kept)) + "]", "[" + ", ".join(map(str, skipped)) + "]" if skipped else "",
            ])  # fmt: skip


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--csv", type=Path, help="write the table here")
    a = p.parse_args()
    if a.csv:
        write_csv(Config(), a.csv)
    for name, (w, skipped) in ladder(Config()).items():
        print(name, "wide:", [i for i, x in enumerate(w) if x == Config().ffn], "skipped:", list(skipped))
