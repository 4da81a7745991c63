"""Compares the elastic engine's likeliest tokens with llama.cpp's, on the same GGUF file of the demo model.

Run by hand, from the project's folder; the first two lines once (models/demo/requirements.txt has what
export.py needs; llama-cpp-python may as well lie in a folder that PYTHONPATH names):

    python3 -m venv V && V/bin/pip install llama-cpp-python numpy -r models/demo/requirements.txt
    (cd models/demo && ../../V/bin/python export.py --ple 256 --gguf /tmp/wide-F32.gguf /tmp/wide-Q8_0.gguf)
    cargo build --release -p nestd-elastic --example greedy
    V/bin/python tests/reference/greedy.py /tmp/wide-F32.gguf /tmp/wide-Q8_0.gguf

llama.cpp has the published width of the per-layer embeddings, 256, as a constant, hence `--ple 256`. It knows
the largest size only. Both engines keep keys and values in F16.

Sets of prompts: `questions`, held-out ones up to the end of the answer; `long`, conversations of held-out
questions and answers that are longer than the sliding window, up to the end; `free` and `long, free`, 64 tokens
whatever they are, so that most lie behind the end of the answer, where the model has learned nothing and is seldom
sure. All of it takes minutes, and far longer on a machine that is busy.

Prompts are given as token ids, the same to both. Up to the first token that differs both engines have read the
same; what follows it is not compared. Each engine tells by how much the likeliest logit led the next one. How much
the two leads differ where the tokens are equal shows what rounding does; where tokens differ, the leads of both
together are what rounding would have to explain. Exits with 1 if one is more than the most seen at equal tokens.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WINDOW = 512
FREE = 64
LONGEST = 128


def prompt(messages):
    """The demo model's chat template; a system message stands before the first turn's text."""
    system = ""
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"].strip() + "\n\n", messages[1:]
    out = "<bos>"
    for i, m in enumerate(messages):
        role = "model" if m["role"] == "assistant" else m["role"]
        out += f"<start_of_turn>{role}\n{system if i == 0 else ''}{m['content'].strip()}<end_of_turn>\n"
    return out + "<start_of_turn>model\n"


def conversations(lines, tokenize, lengths):
    """For each length a conversation of at least so many tokens that ends with a question."""
    lines = [line for line in lines if len(line["messages"]) == 1]
    at = 0
    for length in lengths:
        messages = []
        while True:
            line = lines[at % len(lines)]
            at += 1
            ids = tokenize(prompt(messages + line["messages"]))
            if len(ids) >= length:
                yield ids
                break
            messages += [*line["messages"], {"role": "assistant", "content": line["answer"]}]


class Elastic:
    """The example program `greedy`, a request and an answer a line."""

    def __init__(self, program, model):
        self.process = subprocess.Popen([program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self, ids, tokens, ends):
        self.process.stdin.write(json.dumps({"prompt": ids, "tokens": tokens, "ends": ends}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the elastic engine ended with {self.process.wait()}; its message is above")
        answer = json.loads(line)
        return answer["tokens"], [first - second for first, second in answer["logits"]]


class Llama:
    def __init__(self, llama_cpp, numpy, model):
        self.lib, self.numpy = llama_cpp, numpy
        try:
            self.llm = llama_cpp.Llama(model, n_ctx=4096, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)
        except ValueError as error:
            sys.exit(f"llama.cpp does not load it ({error}); was it made with --ple 256?")

    def tokenize(self, text):
        return self.llm.tokenize(text.encode(), add_bos=False, special=True)

    def answer(self, ids, tokens, ends):
        self.llm.reset()
        out, apart, pending = [], [], ids
        while len(out) < tokens:
            self.llm.eval(pending)
            pointer = self.lib.llama_get_logits_ith(self.llm.ctx, -1)
            logits = self.numpy.ctypeslib.as_array(pointer, shape=(self.llm.n_vocab(),))
            # The first of equals, as in the elastic engine.
            token = int(logits.argmax())
            second, first = self.numpy.partition(logits, -2)[-2:]
            out.append(token)
            apart.append(float(first - second))
            if token in ends:
                break
            pending = [token]
        return out, apart


def compare(name, prompts, tokens, ends, elastic, llama):
    """Prints a row of the table. Gives the differences of leads at equal tokens, and the leads at others."""
    moves, others = [], []
    for number, ids in enumerate(prompts):
        ours, our_leads = elastic.answer(ids, tokens, ends)
        theirs, their_leads = llama.answer(ids, tokens, ends)
        for at, (a, b) in enumerate(zip(our_leads, their_leads)):
            if ours[at] != theirs[at]:
                others.append(a + b)
                print(
                    f"{name} {number} ({len(ids)} tokens), token {at}: elastic has {ours[at]}, leading by {a:.4f}, "
                    f"llama.cpp {theirs[at]} by {b:.4f}",
                    file=sys.stderr,
                )
                break
            moves.append(abs(a - b))
    moves.sort()
    middle, most = (moves[len(moves) // 2], moves[-1]) if moves else (0.0, 0.0)
    span = f"{len(others)} times, {min(others):.2g} to {max(others):.2g}" if others else "none"
    lengths = [len(ids) for ids in prompts]
    print(
        f"| {name} | {len(prompts)} | {min(lengths)} to {max(lengths)} | {len(prompts) - len(others)} "
        f"| {len(moves)} | {middle:.2g}, {most:.2g} "
        f"| {span} |",
        flush=True,
    )
    return moves, others


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("models", nargs="+", type=Path, help="GGUF files of export.py --ple 256")
    p.add_argument("--program", type=Path, default=ROOT / "target/release/examples/greedy", help="the elastic engine's side")
    p.add_argument("--questions", type=int, default=450, help="how many held-out questions (default: all)")
    p.add_argument("--long", type=int, default=12, help="how many conversations beyond the sliding window")
    p.add_argument("--free", type=int, default=100, help="how many continuations of 64 tokens")
    a = p.parse_args()
    try:
        import llama_cpp
        import numpy
    except ImportError as error:
        sys.exit(f"{error}: see the commands at the head of this file")
    for path in (*a.models, a.program):
        if not path.is_file():
            sys.exit(f"{path} is missing: see the commands at the head of this file")
    file = ROOT / "models/demo/eval.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    # Every skill in equal parts, as the file has one after the other.
    step = max(1, len(lines) // max(1, a.questions))
    failed = False
    for model in a.models:
        llama, elastic = Llama(llama_cpp, numpy, str(model)), Elastic(a.program, model)
        ends = llama.tokenize("<end_of_turn>")
        if len(ends) != 1:
            sys.exit(f"{model} has no token <end_of_turn>: is it the demo model?")
        questions = [llama.tokenize(prompt(line["messages"])) for line in lines[::step][: a.questions]]
        # From a little over the window to five times as much.
        lengths = [WINDOW + 8 + i * 4 * WINDOW // max(1, a.long - 1) for i in range(a.long)]
        long = list(conversations(lines[7:], llama.tokenize, lengths))
        free = questions[:: max(1, len(questions) // max(1, a.free))][: a.free]
        print(f"{model.name}: leads differ by (median, most) at equal tokens; leads at tokens that differ")
        print("| prompts | | tokens long | equal answers | equal tokens | leads differ by | at others |")
        moves, others = [], []
        for name, prompts, tokens, stop in (
            ("questions", questions, LONGEST, ends),
            ("long", long, LONGEST, ends),
            ("long, free", long, FREE, []),
            ("free", free, FREE, []),
        ):
            if prompts:
                more = compare(name, prompts, tokens, stop, elastic, llama)
                moves += more[0]
                others += more[1]
        failed |= max(others, default=0.0) > max(moves, default=0.0)
    if failed:
        sys.exit("rounding does not explain a token that differs")


if __name__ == "__main__":
    main()
