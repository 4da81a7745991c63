"""Writes reference outputs of the shipped model for tests of other implementations.

From the F32 implementation in `transformers`, for every MatFormer size: the logits at every
position of a dozen chats (prompt and greedy answer), and for two chats with a switch of the size in
the middle. To stay small, of each position are kept the largest logits with their token ids and
the logarithm of the sum of all exponentials, which together leave little room for error; of one
chat everything is kept.

references.safetensors holds, for chat N and size S (or switch K):
  chat.N.ids          I32 [length]       the token ids, prompt and answer
  chat.N.S.top_ids    I32 [length, top]  token ids of the largest logits, largest first
  chat.N.S.top        F32 [length, top]  these logits
  chat.N.S.logsumexp  F32 [length]
  chat.N.S.logits     F32 [length, vocabulary]   for chat 0 at the largest and smallest size
  switch.K.*                             the same for a switch
references.json says what they are: messages, the rendered prompt, the length of the prompt, the
greedy answer of every size, and where each switch happens.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from reference_model import from_folder, reference_logits
from sizes import ladder
from tokenizer import END, render
import model as M


def user(*turns):
    """Messages of alternating user and assistant turns."""
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]


# More than the sliding window of 256 tokens, so that a wrong window shows.
LONG = user(
    "Turn on the kitchen light", '{"action": "lights", "room": "kitchen", "state": "on"}',
    "and the bedroom", '{"action": "lights", "room": "bedroom", "state": "on"}',
    "set a timer for ten minutes", '{"action": "timer", "minutes": 10}',
    "What is 47 plus 38?", "47 + 38 = 85",
    "minus 6", "85 - 6 = 79",
    "What is the capital of Norway?", "The capital of Norway is Oslo.",
    "And of Peru?", "The capital of Peru is Lima.",
    "how do you say good night in German?", "Gute Nacht",
    "and in French?", "Bonne nuit",
    "Battery 15 %, wifi on. Is wifi on?", "Yes, Wi-Fi is on.",
    "it is 14:20, what time is it in 25 minutes?", "It will be 14:45.",
    "set the volume to 35", '{"action": "volume", "level": 35}',
    "take me to 12 Oak Street", '{"action": "navigate", "to": "12 Oak Street"}',
    "How many grams are 7 kilograms?", "7 kilograms = 7000 grams",
    "make the office light blue",
)  # fmt: skip
CHATS = (
    user("What is the capital of France?"),
    user("Turn off the garden light, please"),
    user("set a timer for 25 minutes"),
    user("what is 36 plus 47?"),
    user("7 x 8"),
    user("How many meters are 12 kilometers?"),
    user("It is 09:40, what time is it in 30 minutes?"),
    user("How do you say 'thank you' in Japanese?"),
    [{"role": "system", "content": "Battery 15 %, wifi off, volume 40 %."}, *user("How much battery is left?")],
    user("Who are you?"),
    user("Make the bedroom light red", '{"action": "lights", "room": "bedroom", "color": "red"}', "and the kitchen"),
    user("Write a poem about the ocean"),
    LONG,
)
# chat, tokens of the answer before the switch, from and to (places in the ladder)
SWITCHES = ((1, 7, 0, -1), (7, 2, -1, 0))
TOP = 24


@torch.no_grad()
def greedy(net, ids, size, limit=48):
    """The greedy answer to a prompt, its closing token included."""
    out = list(ids)
    while len(out) - len(ids) < limit:
        token = reference_logits(net, out, size)[-1].argmax().item()
        out.append(token)
        if token == END:
            break
    return out[len(ids) :]


def record(tensors, key, logits, everything):
    top = logits.topk(TOP, dim=-1)
    tensors[f"{key}.top_ids"] = top.indices.int()
    tensors[f"{key}.top"] = top.values.contiguous()
    tensors[f"{key}.logsumexp"] = torch.logsumexp(logits, -1)
    if everything:
        tensors[f"{key}.logits"] = logits.contiguous()


def main():
    here = Path(__file__).parent
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--folder", type=Path, default=here / "hf", help="the exported Hugging Face folder")
    p.add_argument("--out", type=Path, default=here / "references", help="folder to write")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    net = from_folder(a.folder)
    tok = Tokenizer.from_file(str(a.folder / "tokenizer.json"))
    sizes = ladder(M.Config())
    names = list(sizes)
    tensors, chats, switches = {}, [], []
    for n, messages in enumerate(CHATS):
        text = render(messages)
        prompt = tok.encode(text, add_special_tokens=False).ids
        answers = {name: greedy(net, prompt, size) for name, size in sizes.items()}
        ids = prompt + answers[names[0]]
        tensors[f"chat.{n}.ids"] = torch.tensor(ids, dtype=torch.int32)
        for name, size in sizes.items():
            logits = reference_logits(net, ids, size)
            record(tensors, f"chat.{n}.{name}", logits, n == 0 and name in (names[0], names[-1]))
        said = {name: tok.decode(t) for name, t in answers.items()}
        chats.append({"messages": messages, "prompt": text, "prompt_length": len(prompt), "length": len(ids), "greedy": said})
        print(n, len(prompt), said[names[0]], "|", said[names[-1]], flush=True)
    for k, (n, after, one, two) in enumerate(SWITCHES):
        at = chats[n]["prompt_length"] + after
        ids = tensors[f"chat.{n}.ids"].tolist()
        logits = reference_logits(net, ids, sizes[names[one]], (at, sizes[names[two]]))
        record(tensors, f"switch.{k}", logits, False)
        switches.append({"chat": n, "position": at, "from": names[one], "to": names[two]})
    save_file(tensors, str(a.out / "references.safetensors"))
    about = {"sizes": names, "top": TOP, "chats": chats, "switches": switches}
    (a.out / "references.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
