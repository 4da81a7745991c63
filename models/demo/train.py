"""Trains the demo model on a CPU: one process per core, gradients averaged after every step.

One thread per process avoids the synchronisation inside every small operation, which costs more
than half of the time of a model this narrow. Matrix products run in bfloat16, the rest in F32.

The MatFormer objective: every document of a batch draws its own size (full, one of the ladder, or
a random mix per layer), and a part of the documents changes the size at a random token, as a
switch in the middle of an answer does.

The learning rate follows the clock: it has decayed to nothing when `--minutes` of training are
over, whatever the machine. A run that was stopped goes on from its checkpoint.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

import model as M
from evaluate import measure
from sizes import LADDER, NARROW, SKIPPED, ladder

SHORT, LONG = 128, 384
# Weights of the matrices that Muon trains; the others (embeddings, norms, AltUp) go to AdamW.
MUON = ("q", "k", "v", "o", "gate", "up", "down", "laurel_left", "laurel_right", "ple_gate", "ple_proj")


# ----------------------------------------------------------------------------- data


def pack(ids, learn, ends, length, longer_than, seed):
    """Packs the documents of more than `longer_than` and at most `length` tokens into rows.

    Longer ones are cut where `length` is the larger of the two row lengths. Returns arrays
    [rows, length] of ids, learn flags, positions and segments (0 is padding).
    """
    starts = np.concatenate(([0], ends[:-1]))
    sizes = ends - starts
    wanted = (sizes > longer_than) & ((sizes <= length) | (length == LONG))
    order = np.flatnonzero(wanted)
    np.random.default_rng(seed).shuffle(order)
    rows, still_open = [], []
    for d in order:
        size = min(int(sizes[d]), length)
        for row in still_open:
            if row[0] + size <= length:
                break
        else:
            row = [0, []]
            still_open.append(row)
            if len(still_open) > 24:
                still_open.sort(key=lambda r: r[0])
                rows.append(still_open.pop()[1])
        row[0] += size
        row[1].append(d)
    rows += [r[1] for r in still_open]
    random.Random(seed).shuffle(rows)

    out = {k: np.zeros((len(rows), length), t) for k, t in
           (("ids", np.uint16), ("learn", np.uint8), ("positions", np.uint16), ("segments", np.uint8))}  # fmt: skip
    for r, docs in enumerate(rows):
        at = 0
        for n, d in enumerate(docs):
            size = min(int(sizes[d]), length)
            a, b = int(starts[d]), int(starts[d]) + size
            out["ids"][r, at : at + size] = ids[a:b]
            out["learn"][r, at : at + size] = learn[a:b]
            out["positions"][r, at : at + size] = np.arange(size)
            out["segments"][r, at : at + size] = n + 1
            at += size
    return out


class SizeSampler:
    """Draws MatFormer sizes for the documents of a batch."""

    def __init__(self, c, seed, weights, mixed_share):
        self.c, self.rng = c, random.Random(seed)
        self.weights, self.mixed_share = weights, mixed_share
        self.fixed = [(w, [i not in s for i in range(c.layers)]) for w, s in ladder(c).values()]

    def draw(self):
        rng = self.rng
        if rng.random() < self.mixed_share:
            return self.mixed()
        return rng.choices(self.fixed, self.weights)[0]

    def mixed(self):
        """Any mixture of widths down to the narrow one; the skipped block comes or stays as a whole."""
        c, rng = self.c, self.rng
        steps = list(range(c.ffn // NARROW, c.ffn + 1, 32))
        wide = rng.random()
        choice = [c.ffn if rng.random() < wide else rng.choice(steps) for _ in range(c.layers)]
        skip = rng.random() < 0.5
        return choice, [not (skip and i in SKIPPED) for i in range(c.layers)]

    def batch(self, segments, switch_share=0.25):
        """width and keep [layers, tokens] for the documents in `segments` [rows, length]."""
        rows, length = segments.shape
        widths = np.full((rows, length, self.c.layers), self.c.ffn, np.int32)
        keeps = np.ones((rows, length, self.c.layers), bool)
        for r in range(rows):
            bounds = np.flatnonzero(np.diff(segments[r], prepend=255))
            for a, b in zip(bounds, list(bounds[1:]) + [length]):
                w, k = self.draw()
                widths[r, a:b], keeps[r, a:b] = w, k
                if b - a > 8 and self.rng.random() < switch_share:
                    at = self.rng.randrange(a + 4, b - 2)
                    w, k = self.draw()
                    widths[r, at:b], keeps[r, at:b] = w, k
        n = rows * length
        width = torch.from_numpy(np.ascontiguousarray(widths.reshape(n, -1).T))
        return width, torch.from_numpy(np.ascontiguousarray(keeps.reshape(n, -1).T))


# ----------------------------------------------------------------------------- optimizer


def orthogonal(g):
    """The nearest semi-orthogonal matrices to the stack `g`, roughly, by five Newton-Schulz steps."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


def by_halves(name, g):
    """FFN gradients as twice as many matrices, one for each half of the width.

    Orthogonalised as a whole, the half that only the larger sizes use gets next to nothing: its
    gradient is the smaller one, and it withers until all sizes are alike. By itself it learns as
    fast as the other half.
    """
    n, rows, cols = g.shape
    if name in ("gate", "up"):
        return g.reshape(2 * n, rows // 2, cols)
    if name == "down":
        return g.reshape(n, rows, 2, cols // 2).transpose(1, 2).reshape(2 * n, rows, cols // 2)
    return g


def whole(name, g, shape):
    """Undoes `by_halves`."""
    if name == "down":
        n, rows, cols = shape
        return g.reshape(n, 2, rows, cols // 2).transpose(1, 2).reshape(shape)
    return g.reshape(shape)


class Optimizer:
    """Muon for the matrices of the layers, AdamW for the rest; both on stacked weights."""

    def __init__(self, params, lr_muon, lr_adam, decay):
        self.lr_muon, self.lr_adam, self.decay = lr_muon, lr_adam, decay
        self.muon = {k: p for k, p in params.items() if k in MUON}
        self.adam = {k: p for k, p in params.items() if k not in MUON}
        self.state = {k: {"m": torch.zeros_like(p)} for k, p in params.items()}
        for k in self.adam:
            self.state[k]["v"] = torch.zeros_like(params[k])
        self.t = 0

    @torch.no_grad()
    def step(self, scale):
        """One step at `scale` times the peak learning rates; reads and frees `.grad`."""
        self.t += 1
        momentum = min(0.95, 0.85 + self.t / 3000)
        for k, p in self.muon.items():
            m = self.state[k]["m"]
            m.lerp_(p.grad, 1 - momentum)
            parts = by_halves(k, p.grad.lerp(m, momentum))
            update = whole(k, orthogonal(parts), p.shape)
            p.mul_(1 - self.lr_muon * scale * self.decay)
            p.add_(update, alpha=-self.lr_muon * scale * max(1.0, parts.shape[1] / parts.shape[2]) ** 0.5)
        b1, b2 = 0.9, 0.98
        for k, p in self.adam.items():
            s = self.state[k]
            s["m"].lerp_(p.grad, 1 - b1)
            s["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            lr = self.lr_adam * scale * (10 if k == "router" else 1)
            denom = (s["v"] / (1 - b2**self.t)).sqrt_().add_(1e-8)
            p.addcdiv_(s["m"], denom, value=-lr / (1 - b1**self.t))
        for p in (*self.muon.values(), *self.adam.values()):
            p.grad = None


def learning_rate(step, progress):
    """Warm-up, a plateau for the first third, then a cosine to zero."""
    warm = min(1.0, (step + 1) / 150)
    if progress < 0.33:
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.33) / 0.67)))


# ----------------------------------------------------------------------------- training


def worker(rank, a):
    torch.set_num_threads(1)
    world = a.processes
    dist.init_process_group("gloo", init_method=f"file://{a.work.resolve()}/rendezvous-{os.getppid()}", rank=rank, world_size=world)
    c = M.Config()
    params = M.init_params(c)
    elapsed, step, log = 0.0, 0, []
    checkpoint = a.work / "checkpoint.pt"
    resumed = checkpoint.exists()
    if resumed:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        params, elapsed, step, log = saved["params"], saved["elapsed"], saved["step"], saved["log"]
    params = {k: p.requires_grad_() for k, p in params.items()}
    opt = Optimizer(params, a.lr_muon, a.lr_adam, a.decay)
    if resumed:
        opt.state, opt.t = saved["state"], saved["step"]

    data = np.load(a.tokens)
    ids, learn, ends = data["ids"], data["learn"], data["ends"]
    stores = {SHORT: pack(ids, learn, ends, SHORT, 0, 1), LONG: pack(ids, learn, ends, LONG, SHORT, 2)}
    total = {k: v["ids"].size for k, v in stores.items()}
    long_share = total[LONG] / (total[LONG] + total[SHORT])
    order = {k: np.random.default_rng(3).permutation(len(v["ids"])) for k, v in stores.items()}
    del data, ids, learn, ends

    tok = Tokenizer.from_file(str(a.tokenizer))
    with open(a.eval, encoding="utf-8") as f:
        examples = [json.loads(line) for line in f][:: a.eval_every_nth]
    sizes = ladder(c)

    sampler = SizeSampler(c, 1000 * step + rank, a.size_weights, a.mixed_share)
    layer_fn = torch.compile(M.layer, dynamic=False)
    if rank == 0:
        print(f"{M.count(c):,} weights; rows {[(k, len(v['ids'])) for k, v in stores.items()]}; "
              f"long share {long_share:.2f}; start at step {step}, {elapsed / 60:.1f} minutes", flush=True)  # fmt: skip

    def gradients(step, length):
        """Adds the gradients of one batch to the weights; returns the summed loss and the count."""
        store = stores[length]
        rows = a.batch // length
        start = (step * world + rank) * rows
        index = order[length][np.arange(start, start + rows) % len(order[length])]
        part = {k: v[index] for k, v in store.items()}
        x = torch.from_numpy(part["ids"].astype(np.int64))
        segments = torch.from_numpy(part["segments"].astype(np.int64))
        positions = torch.from_numpy(part["positions"].astype(np.int64))
        width, keep = sampler.batch(part["segments"])
        wanted = torch.zeros_like(x, dtype=torch.bool)
        wanted[:, :-1] = torch.from_numpy(part["learn"].astype(bool))[:, 1:]
        target = x.roll(-1, 1)[wanted]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = M.forward(params, c, x, positions, segments, width, keep, layer_fn=layer_fn)
            out = M.logits(params, c, hidden[wanted.reshape(-1)])
        loss = F.cross_entropy(out, target, reduction="sum")
        # A little pressure on the log-normaliser keeps the logits clear of the soft cap.
        (loss + 1e-4 * torch.logsumexp(out, -1).pow(2).sum()).backward()
        return loss.item(), len(target)

    # The first process compiles, the others then find the kernels in the cache on disk.
    for turn in range(world):
        if turn == rank:
            for length in stores:
                gradients(0, length)
            for p in params.values():
                p.grad = None
        dist.barrier()

    names = list(params)
    ran, tokens, losses, counts, last_save = 0.0, 0, 0.0, 0, time.time()
    limit = a.minutes * 60
    while True:
        begun = time.time()
        # All processes take long rows in the same steps, so that they need the same time.
        length = LONG if math.floor((step + 1) * long_share) > math.floor(step * long_share) else SHORT
        loss, count = gradients(step, length)
        flat = torch.cat([params[k].grad.reshape(-1) for k in names] + [torch.tensor([float(count), loss, elapsed])])
        dist.all_reduce(flat)
        count, loss, agreed = flat[-3].item(), flat[-2].item(), flat[-1].item() / world
        grads = flat[:-3] / count
        norm = grads.norm().item()
        grads *= min(1.0, 1.0 / (norm + 1e-6))
        at = 0
        for k in names:
            n = params[k].numel()
            params[k].grad = grads[at : at + n].view_as(params[k])
            at += n
        progress = agreed / limit
        lr = learning_rate(step, progress)
        opt.step(lr)
        step += 1
        ran += time.time() - begun
        elapsed += time.time() - begun
        tokens += a.batch * world
        losses, counts = losses + loss, counts + count
        if step % 25 == 0 and rank == 0:
            print(f"step {step} minute {elapsed / 60:.1f} loss {losses / counts:.4f} norm {norm:.2f} lr {lr:.3f} "
                  f"{tokens / ran:.0f} tokens/s", flush=True)  # fmt: skip
        if step % 25 == 0:
            mean_loss, ran, tokens, losses, counts = losses / counts, 0.0, 0, 0.0, 0
        done = progress >= 1 or (a.steps and step >= a.steps)
        if rank == 0 and (step % a.measure_every == 0 or done):
            plain = {k: p.detach() for k, p in params.items()}
            entry = {"step": step, "minutes": round(elapsed / 60, 2), "tokens": step * a.batch * world, "train_loss": round(mean_loss, 4)}
            for name in sizes:
                held, right, top = measure(plain, c, tok, examples, sizes[name])
                entry[name] = {"loss": round(held, 4), "right": round(sum(right) / len(right), 4), "top": round(top, 1)}
            log.append(entry)
            print("held out:", json.dumps(entry), flush=True)
        if rank == 0 and (done or step % a.measure_every == 0 or time.time() - last_save > 240):
            saved = {"config": c.to_dict(), "params": {k: p.detach() for k, p in params.items()}, "state": opt.state,
                     "step": step, "elapsed": elapsed, "log": log}  # fmt: skip
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            (a.work / "log.json").write_text(json.dumps(log, indent=1) + "\n")
            last_save = time.time()
        if done:
            break
    dist.barrier()
    dist.destroy_process_group()


def main():
    here = Path(__file__).parent
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and the log")
    p.add_argument("--tokens", type=Path, required=True, help="packed tokens from tokenizer.py")
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--eval", type=Path, default=here / "eval.jsonl")
    p.add_argument("--minutes", type=float, default=75, help="training time, without compiling and measuring")
    p.add_argument("--steps", type=int, default=0, help="stop after this many steps (0: by the clock)")
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--batch", type=int, default=2048, help="tokens per process and step")
    p.add_argument("--lr-muon", type=float, default=0.02)
    p.add_argument("--lr-adam", type=float, default=3e-3)
    p.add_argument("--decay", type=float, default=0.02, help="weight decay of Muon, times its learning rate")
    p.add_argument("--size-weights", type=float, nargs=len(LADDER), default=[0.80, 0.06, 0.04, 0.03, 0.03],
                   help="shares of the sizes of the ladder, from full to smallest")  # fmt: skip
    p.add_argument("--mixed-share", type=float, default=0.04, help="share of documents with a random mix of widths")
    p.add_argument("--measure-every", type=int, default=500, help="steps between held-out measurements")
    p.add_argument("--eval-every-nth", type=int, default=3, help="measure on every n-th held-out example only")
    a = p.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    for old in a.work.glob("rendezvous-*"):
        old.unlink()
    mp.spawn(worker, (a,), nprocs=a.processes)


if __name__ == "__main__":
    main()
