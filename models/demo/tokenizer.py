"""Trains the tokenizer of the demo model, in the form of Gemma's, and packs the corpus into tokens.

Like Gemma's it is a BPE with byte fallback over text whose spaces are written as `▁`, without any
splitting before the merges. Merges that cross words would be learned that way, so training sees
the text cut into words, single digits and punctuation; a merge that was never learned cannot apply
later, so the shipped tokenizer needs no cutting.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, EOS, BOS, UNK, MASK, START, END = range(7)
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
BYTES = tuple(f"<0x{i:02X}>" for i in range(256))

# What the shipped template renders, with `<bos>` in front: the tokenizer itself adds none.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- set ns = namespace(head='', start=0) -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set ns.head = messages[0]['content'] | trim + '\\n\\n' -%}
    {%- else -%}
        {%- set ns.head = messages[0]['content'][0]['text'] | trim + '\\n\\n' -%}
    {%- endif -%}
    {%- set ns.start = 1 -%}
{%- endif -%}
{%- for message in messages[ns.start:] -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (ns.head if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def prompt_parts(messages):
    """The prompt of a chat as (text, is_answer) parts, the same text as CHAT_TEMPLATE renders."""
    head = ""
    if messages[0]["role"] == "system":
        head, messages = messages[0]["content"].strip() + "\n\n", messages[1:]
    parts = []
    for i, m in enumerate(messages):
        text = (head if i == 0 else "") + m["content"].strip()
        if m["role"] == "assistant":
            parts += [("<start_of_turn>model\n", False), (text + "<end_of_turn>", True), ("\n", False)]
        else:
            parts.append((f"<start_of_turn>user\n{text}<end_of_turn>\n", False))
    return parts


def render(messages):
    """The prompt that asks the model for the next answer."""
    return "<bos>" + "".join(t for t, _ in prompt_parts(messages)) + "<start_of_turn>model\n"


def train(texts, size):
    """A tokenizer of `size` entries; special tokens first, then the 256 bytes."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    # A word takes the space before it along; digits and new lines stay alone.
    cut = Regex(r"\n|[0-9]|▁?\p{L}+|▁?[^\p{L}0-9▁\n]+|▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(cut, behavior="isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL + BYTES), show_progress=False, min_frequency=5
    )
    bpe.train_from_iterator(texts, trainer)

    learned = json.loads(bpe.to_str())["model"]
    out = Tokenizer(
        models.BPE(
            vocab=learned["vocab"],
            merges=[tuple(m) for m in learned["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    out.normalizer = normalizers.Replace(" ", "▁")
    out.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    out.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    out.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return out


def encode_example(tok, e):
    """Token ids of one example and the flags of those to be learned (the assistant's)."""
    ids, learn = [BOS], [0]
    for text, is_answer in prompt_parts(e["messages"] + [{"role": "assistant", "content": e["answer"]}])[:-1]:
        part = tok.encode(text, add_special_tokens=False).ids
        ids += part
        learn += [int(is_answer)] * len(part)
    return ids, learn


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--train", type=Path, required=True, help="the training split from corpus.py")
    p.add_argument("--size", type=int, default=1536, help="entries in the vocabulary")
    p.add_argument("--out", type=Path, help="train a tokenizer and write it here")
    p.add_argument("--use", type=Path, help="use this tokenizer.json and train none")
    p.add_argument("--tokens", type=Path, help="also write the packed training tokens here (.npz)")
    a = p.parse_args()

    with open(a.train, encoding="utf-8") as f:
        examples = [json.loads(line) for line in f]
    if a.use:
        tok = Tokenizer.from_file(str(a.use))
    else:
        texts = (render(e["messages"]) + e["answer"] for e in examples[:150_000])
        tok = train((t.replace("<start_of_turn>", "\n").replace("<end_of_turn>", "\n") for t in texts), a.size)
        tok.save(str(a.out))
    print(f"{tok.get_vocab_size()} entries")

    if a.tokens:
        ids, learn, ends = [], [], []
        for e in examples:
            i, n = encode_example(tok, e)
            ids += i
            learn += n
            ends.append(len(ids))
        np.savez(a.tokens, ids=np.array(ids, np.uint16), learn=np.array(learn, np.uint8), ends=np.array(ends, np.int64))
        lengths = np.diff([0] + ends)
        print(f"{len(ids):,} tokens, {sum(learn):,} to learn; example lengths: median {np.median(lengths):.0f}, "
              f"95 % {np.percentile(lengths, 95):.0f}, longest {lengths.max()}")  # fmt: skip


if __name__ == "__main__":
    main()
