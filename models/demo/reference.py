"""Writes reference outputs of the shipped model for tests of other implementations.

From the F32 implementation in `transformers`, for every MatFormer size: the logits at every
position of a dozen chats (prompt and greedy answer), and for two chats with a switch of the size in
the middle. To stay small, of each position are kept the largest logits with their token ids and
the logarithm of the sum of all exponentials, which together leave little room for error; of one
chat everything is kept.

references.safetensors holds, for chat N and size S (or switch K):
  chat.N.ids          I32 [length]     the token ids, prompt and answer
  chat.N.S.top_ids    I32 [kept, top]  token ids of the largest logits, largest first
  chat.N.S.top        F32 [kept, top]  these logits
  chat.N.S.logsumexp  F32 [kept]
  chat.N.S.logits     F32 [kept, vocabulary]   for chat 0 at the largest and smallest size
  switch.K.*                           the same for a switch
Row 0 belongs to the position `first_kept` (0 but for the long chat) and predicts the token after it.
references.json says what they are: messages, the rendered prompt, the length of the prompt, the
greedy answer of every size, and where each switch happens.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import model as M
from reference_model import at_size, from_folder, reference_logits
from sizes import ladder
from tokenizer import END, render


def user(*turns):
    """Messages of alternating user and assistant turns."""
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]


# More than the sliding window of 512 tokens, so that a wrong window shows.
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
    "make the office light blue", '{"action": "lights", "room": "office", "color": "blue"}',
    "no, green", '{"action": "lights", "room": "office", "color": "green"}',
    "Take a selfie", '{"action": "camera", "mode": "selfie"}',
    "wake me up at 6:45", '{"action": "alarm", "time": "06:45"}',
    "What is 9 times 7", "9 * 7 = 63",
    "convert 5 hours to minutes", "5 hours = 300 minutes",
    "Which month comes after May?", "June comes after May.",
    "Today is Friday, what day is it in 3 days?", "It will be Monday.",
    "how many legs does a spider have", "A spider has 8 legs.",
    "Call Emma", '{"action": "call", "name": "Emma"}',
    "bluetooth off", '{"action": "bluetooth", "state": "off"}',
    "How do you say water in Spanish?", "Agua",
    "what is the highest mountain?", "The highest mountain is Mount Everest.",
    "Set the heating in the bathroom to 23 degrees", '{"action": "heating", "room": "bathroom", "degrees": 23}',
    "Thank you!", "You are welcome!",
    "dim the bedroom light to 40 percent",
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
# Of a longer chat only so many positions at its end are kept.
KEPT = 160


@torch.no_grad()
def greedy(net, ids, size, limit=48):
    """The greedy answer to a prompt, its closing token included."""
    answer, cache, x = [], None, torch.tensor([ids])
    with at_size(net, *size):
        while len(answer) < limit:
            step = net(x, past_key_values=cache, use_cache=True)
            answer.append(step.logits[0, -1].argmax().item())
            if answer[-1] == END:
                break
            cache, x = step.past_key_values, torch.tensor([answer[-1:]])
    return answer


def record(tensors, key, logits, everything):
    logits = logits[-KEPT:]
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
        chats.append({"messages": messages, "prompt": text, "prompt_length": len(prompt), "length": len(ids),
                      "first_kept": max(0, len(ids) - KEPT), "greedy": said})  # fmt: skip
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
