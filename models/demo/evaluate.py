"""Loss and exact-match accuracy by skill and by MatFormer size, in PyTorch.

An answer counts as right when greedy decoding would produce it to the letter. That is so exactly
when the model, given the right answer so far, puts every next token of it first, the closing one
included; so one pass over prompt and answer together decides it, without generating.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import model as M
from sizes import ladder
from tokenizer import BOS, END, encode_example, render


def load(path):
    """Config and weights of a checkpoint of train.py, rounded to F16 as they are shipped."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return M.Config(**state["config"]), {k: v.half().float() for k, v in state["params"].items()}


def batches(tok, examples, tokens=4096):
    """Padded batches of examples of similar length: ids, learn flags of the last answer, indices."""
    coded = []
    for n, e in enumerate(examples):
        ids, _ = encode_example(tok, e)
        answer = len(tok.encode(e["answer"].strip() + "<end_of_turn>", add_special_tokens=False).ids)
        coded.append((ids, answer, n))
    coded.sort(key=lambda x: len(x[0]))
    while coded:
        count = 1
        while count < len(coded) and (count + 1) * len(coded[count][0]) <= tokens:
            count += 1
        part, coded = coded[:count], coded[count:]
        longest = len(part[-1][0])
        ids = torch.zeros(count, longest, dtype=torch.long)
        learn = torch.zeros(count, longest, dtype=torch.bool)
        for row, (i, answer, _) in enumerate(part):
            ids[row, : len(i)] = torch.tensor(i)
            learn[row, len(i) - answer : len(i)] = True
        yield ids, learn, [n for _, _, n in part]


@torch.no_grad()
def measure(params, c, tok, examples, size, half=False):
    """(loss per answer token, list of right/wrong, largest activation) at one size.

    With `half` the matrix products run in F16 and the AltUp stack is rounded to F16 after every
    layer, as an engine on a CPU may do.
    """

    def rounded(*args):
        x, kv = M.layer(*args)
        return x.half().float(), kv

    right, loss, count, watch = [False] * len(examples), 0.0, 0, []
    for ids, learn, numbers in batches(tok, examples):
        b, s = ids.shape
        positions = torch.arange(s).expand(b, s)
        width, keep = M.size_tensors(c, *size, b, s)
        wanted = learn[:, 1:]
        target = ids[:, 1:][wanted]
        with torch.autocast("cpu", torch.float16, enabled=half):
            hidden = M.forward(params, c, ids, positions, torch.zeros_like(ids), width, keep, rounded if half else M.layer, watch)
            out = M.logits(params, c, hidden.view(b, s, -1)[:, :-1][wanted])
        loss += F.cross_entropy(out, target, reduction="sum").item()
        count += len(target)
        hit = torch.ones(b, s - 1, dtype=torch.bool)
        hit[wanted] = out.argmax(-1) == target
        for n, ok in zip(numbers, hit.all(1).tolist()):
            right[n] = ok
    return loss / count, right, max(watch)


@torch.no_grad()
def generate(params, c, tok, messages, size, limit=60):
    """A greedy answer to a chat; recomputes the whole sequence for each token."""
    ids = tok.encode(render(messages), add_special_tokens=False).ids
    start = len(ids)
    while len(ids) - start < limit:
        x = torch.tensor([ids])
        width, keep = M.size_tensors(c, *size, 1, len(ids))
        hidden = M.forward(params, c, x, torch.arange(len(ids))[None], torch.zeros_like(x), width, keep)
        token = M.logits(params, c, hidden[-1]).argmax().item()
        if token in (END, BOS):
            break
        ids.append(token)
    return tok.decode(ids[start:])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--folder", type=Path, default=Path(__file__).parent / "hf", help="the exported folder to measure")
    p.add_argument("--checkpoint", type=Path, help="measure this checkpoint.pt of train.py instead")
    p.add_argument("--tokenizer", type=Path, help="that of the folder by default")
    p.add_argument("--eval", type=Path, default=Path(__file__).parent / "eval.jsonl")
    p.add_argument("--sizes", help="names, separated by commas; all by default")
    p.add_argument("--json", type=Path, help="also write the results here")
    p.add_argument("--half", action="store_true", help="compute in F16")
    p.add_argument("--wrong", type=int, default=0, help="print this many wrong answers of the first size")
    p.add_argument("--ask", nargs="*", default=[], help="answer these prompts with every size instead")
    a = p.parse_args()

    if a.checkpoint:
        c, params = load(a.checkpoint)
    else:
        from reference_model import load_folder  # here, because train.py imports this file without transformers

        c, params = load_folder(a.folder)
    tok = Tokenizer.from_file(str(a.tokenizer or a.folder / "tokenizer.json"))
    names = a.sizes.split(",") if a.sizes else list(ladder(c))
    if a.ask:
        for name in names:
            for text in a.ask:
                print(name, "|", text, "->", generate(params, c, tok, [{"role": "user", "content": text}], ladder(c)[name]))
        return
    with open(a.eval, encoding="utf-8") as f:
        examples = [json.loads(line) for line in f]
    skills = list(dict.fromkeys(e["skill"] for e in examples))
    results = {}
    for name in names:
        start = time.time()
        loss, right, top = measure(params, c, tok, examples, ladder(c)[name], a.half)
        by_skill = {}
        for s in skills:
            hits = [ok for e, ok in zip(examples, right) if e["skill"] == s]
            by_skill[s] = sum(hits) / len(hits)
        total = sum(right) / len(right)
        results[name] = {"loss": loss, "accuracy": total, "skills": by_skill, "largest_activation": top}
        print(f"{name:22} loss {loss:.4f}  right {total:.1%}  " + "  ".join(f"{s} {v:.0%}" for s, v in by_skill.items())
              + f"  largest activation {top:.0f}  ({time.time() - start:.0f} s)", flush=True)  # fmt: skip
        if a.wrong and name == names[0]:
            for e, ok in [x for x in zip(examples, right) if not x[1]][: a.wrong]:
                said = generate(params, c, tok, e["messages"], ladder(c)[name])
                print("   wrong:", json.dumps(e["messages"], ensure_ascii=False), "wanted", e["answer"], "said", said)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
