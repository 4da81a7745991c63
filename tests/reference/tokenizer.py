"""Expected token ids for the tokenizer of nestd-elastic, by the Python package `tokenizers`.

Run by hand:  python3 -m venv V && V/bin/pip install tokenizers && V/bin/python tests/reference/tokenizer.py

Writes daemon/elastic/tests/data/tokenizer.json: texts and their ids with the demo model's vocabulary.

That vocabulary learned one merge for each piece, a GGUF file allows every merge that makes one; the script
counts the texts for which this matters (none).

With --gemma FILE (Gemma's own tokenizer.json) and --text FILES it writes the vocabulary as a GGUF file has
it, and the ids of the texts, to --out; the ignored test `gemma_itself` reads both (NESTD_TOKENIZER=FOLDER).

Found with Gemma 3's file (262144 tokens, 514906 merges) on 21 MB of text in 70 languages, 3780 texts and
7.7 million tokens: the same ids for all but one text, which has U+2581 itself next to spaces ("▁▁ ▁"). The order of
the merges is the order of the ids, so a score is as good as an id; every character of a piece is a piece.
User-defined are runs of 1 to 31 new lines, 2 to 31 spaces and 1 to 31 tabs, and HTML tags.

That one text is read in three ways. SentencePiece makes a run of spaces and literal U+2581 alike; --spaces shows it, with a
small model trained on the spot (pip install sentencepiece protobuf). `tokenizers` finds added tokens, written with U+2581,
in the text before it replaces spaces. llama.cpp's files have them with spaces, so it finds them in spaces only.
"""

import argparse
import json
import random
import struct
from pathlib import Path

try:
    from tokenizers import Tokenizer
except ImportError:  # --spaces does without
    Tokenizer = None

ROOT = Path(__file__).resolve().parents[2]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

SENTENCES = """\
The quick brown fox jumps over the lazy dog, 1,234.56 times; isn't it?
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.
Voix ambiguë d’un cœur qui, au zéphyr, préfère les jattes de kiwis.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
いろはにほへと ちりぬるを 漢字かな交じり文、カタカナ。
天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。
키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر
דג סקרן שט בים מאוכזב ולפתע מצא לו חברה
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश
আমি বাংলায় গান গাই। আমি বাংলার গান গাই।
เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน
Tiếng Việt: Con sói nhỏ và chú chó lớn đi dạo buổi sáng.
ᚠᛇᚻ᛫ᛒᛦᚦ ᲥᲐᲠᲗᲣᲚᲘ ქართული Հայերեն አማርኛ ᠮᠣᠩᠭᠣᠯ བོད་ཡིག ခေတ်မီ ភាសាខ្មែរ ລາວ தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ਪੰਜਾਬੀ ગુજરાતી
👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ 🫠 👨🏿‍🚀
Z̶̢̛a̴l̷g̶o̵ é é Å Å ﬁ ① Ⅻ ｆｕｌｌ ｗｉｄｔｈ ½ ℃
def f(x: int) -> dict[str, list[int]]:\n    return {"a": [i ** 2 for i in range(x)]}  # über\n\tpass
fn main() { let v: Vec<&'static str> = vec!["a\\n", r#"b"#]; println!("{v:?}"); }
{"key": [1, 2.5e-10, null, true], "nested": {"x": "\\u00e9"}}
SELECT * FROM t WHERE a <> 'b' AND c >= 10; -- 100%
https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Windows\\System32
0123456789 1000000 3.14159 -42 0xDEADBEEF 1e10 ١٢٣ १२३ 一二三
"""


def texts(pieces, rng):
    """Texts that are usual, and texts that are not."""
    yield from SENTENCES.splitlines()
    yield SENTENCES
    yield from ("", " ", "\n", "\t", "a", " a", "a ", "  a  b   c    ", "▁", "▁▁ ▁", "a▁b", "\r\n\r\n", "\0")
    for c in ("a", " ", "\n", "\t", "aA", "ab", "the ", "é", "漢", "👍", "-", "=", "0", "<", "▁"):
        for n in (2, 3, 5, 31, 32, 33, 64, 100, 257):
            yield c * n
    yield "".join(map(chr, range(256)))
    yield "".join(map(chr, range(0x2000, 0x2100)))
    for i in range(0, 256, 16):
        yield " ".join(map(chr, range(i, i + 16)))
    yield from ("\ufffe\uffff\ufdd0", "\ud7ff\ue000", "\U0010ffff\U000f0000", "\u200b\u200d\ufeff", "\u202eabc\u202c")
    yield from ("<0x0A>", "<0x41><0x42>", "<unk>", "<pad", "<bos", "bos>", "< bos >", "<start_of_tur", "start_of_turn>")
    scripts = (0x41, 0xC0, 0x370, 0x400, 0x530, 0x590, 0x600, 0x900, 0xE00, 0x1100, 0x1F300, 0x3040, 0x4E00, 0xAC00, 0x20000)
    for start in scripts:
        for _ in range(4):
            yield "".join(rng.choice((" ", "", "", "")) + chr(start + rng.randrange(80)) for _ in range(40))
    for _ in range(300):
        yield "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 60)))
    for _ in range(200):
        yield "".join(rng.choice("abcdefgh  tionersla") for _ in range(rng.randrange(1, 120)))
    for _ in range(100):
        random_chars = (chr(c) for c in (rng.randrange(0x110000) for _ in range(60)) if not 0xD800 <= c < 0xE000)
        yield "".join(random_chars)


def with_all_merges(data):
    """The tokenizer as transformers makes it from a SentencePiece file: a merge for every two pieces
    that make a third, in the order of the third's score; that is how Gemma's own tokenizer.json came to be.
    One that was trained by `tokenizers` knows for each piece only the merge that it was learned by."""
    vocab = data["model"]["vocab"]
    special = {t["content"] for t in data["added_tokens"]}
    merges = []
    for piece, rank in sorted(vocab.items(), key=lambda item: item[1]):
        if piece in special or is_byte(piece):
            continue
        splits = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        local = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(local, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    copy = json.loads(json.dumps(data))
    copy["model"]["merges"] = merges
    return Tokenizer.from_str(json.dumps(copy))


def is_byte(piece):
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def write_fixture(path):
    data = json.loads((ROOT / "models/demo/hf/tokenizer.json").read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    pieces = [p.replace("▁", " ") for p in vocab if not is_byte(p) and not (p.startswith("<") and p.endswith(">"))]
    trained, full = Tokenizer.from_str(json.dumps(data)), with_all_merges(data)
    cases, differ = [], 0
    for text in texts(pieces, random.Random(1)):
        ids = full.encode(text, add_special_tokens=False).ids
        differ += ids != trained.encode(text, add_special_tokens=False).ids
        cases.append([text, ids])
    print(f"{len(cases)} texts; the trained merges alone give other ids for {differ}")
    lines = (json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes")


def write_gemma(tokenizer, files, out):
    """Types as llama.cpp's converter gives them (control: special ones and `<unusedN>`, user defined: the other
    added tokens, with spaces for `▁` and a score of -1000); scores in the order of the merges, as SentencePiece has
    them."""
    data = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    added = {t["id"]: t for t in data["added_tokens"]}
    rank = {}
    for merge in data["model"]["merges"]:
        rank.setdefault("".join(merge), len(rank))
    out.mkdir(parents=True, exist_ok=True)
    tokens = dict(sorted((i, p) for p, i in vocab.items()))
    tokens.update((i, t["content"]) for i, t in added.items())
    with open(out / "vocabulary.bin", "wb") as f:
        for i in range(max(tokens) + 1):
            piece, score = tokens.get(i, f"[PAD{i}]"), 0.0
            if i not in tokens:
                kind, score = UNUSED, -10000.0
            elif i in added:
                looks = piece.startswith("<unused") or piece in ("<pad>", "<mask>")
                kind, score = (CONTROL if added[i]["special"] or looks else USER_DEFINED), -1000.0
                kind = UNKNOWN if piece == "<unk>" else kind
                piece = piece.replace("▁", " ") if kind == USER_DEFINED else piece
            elif is_byte(piece):
                kind = BYTE
            else:
                kind, score = NORMAL, -float(rank.get(piece, len(rank)))
            raw = piece.encode()
            f.write(struct.pack("<IfI", kind, score, len(raw)) + raw)
    tok = Tokenizer.from_str(json.dumps(data))
    rng = random.Random(2)
    pieces = [p.replace("▁", " ") for i, p in tokens.items() if i not in added and not is_byte(p)]
    total = 0
    with open(out / "cases.bin", "wb") as f:
        cases = list(texts(pieces, rng))
        cases += ["".join(rng.choice(pieces) for _ in range(rng.randrange(1, 200))) for _ in range(2000)]
        for file in files:
            text = file.read_bytes().decode(errors="replace")
            cases += [text[i : i + 20000] for i in range(0, len(text), 20000)]
        for text in cases:
            ids, raw = tok.encode(text, add_special_tokens=False).ids, text.encode()
            total += len(raw)
            f.write(struct.pack("<II", len(raw), len(ids)) + raw + struct.pack(f"<{len(ids)}I", *ids))
    print(f"{out}: {len(tokens)} tokens, {len(cases)} texts of {total:,} bytes")


def show_spaces():
    """What SentencePiece makes of texts with U+2581 itself, with runs of it as user-defined pieces."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"the quick brown fox  jumps over   the lazy dog and the other things {i}" for i in range(300)]),
        model_writer=model, model_type="bpe", vocab_size=400, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=2,
        user_defined_symbols=["▁" * n for n in range(2, 8)] + ["\n"],
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in ("▁▁", "  ", "▁ ▁", "▁▁ ", " ▁▁", "▁▁ ▁▁", "  ▁▁", "▁▁  ", "a▁▁b", "a ▁▁b", "▁ the", " ▁the", "▁▁ the", "▁" * 7 + " the"):
        print(f"{text!r:16} {processor.encode(text, out_type=str)}")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--gemma", type=Path, help="Gemma's tokenizer.json")
    p.add_argument("--text", type=Path, nargs="*", default=[], help="files to compare on")
    p.add_argument("--out", type=Path, default=Path("/tmp/gemma-tokenizer"))
    p.add_argument("--spaces", action="store_true", help="show what SentencePiece makes of U+2581")
    a = p.parse_args()
    if a.spaces:
        show_spaces()
    elif a.gemma:
        write_gemma(a.gemma, a.text, a.out)
    else:
        write_fixture(ROOT / "daemon/elastic/tests/data/tokenizer.json")


if __name__ == "__main__":
    main()
