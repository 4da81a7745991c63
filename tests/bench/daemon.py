"""The daemon with a model of real dimensions in the page cache: start, first tokens, switches of the size.

    nestctl model synth --size E4B --out e4b.gguf
    python tests/bench/daemon.py e4b.gguf e2b.gguf
    python tests/bench/daemon.py e4b.gguf --switch 30 --tokens 1200

For each model: the time from the start of the process to READY, to a loaded model, and to the first token of a
question of about 32 tokens, first alone, then after the same long system prompt was read by another question. Medians of
several starts.

With `--switch N`: one answer, whose size goes from the largest to E2B and back after every N tokens, by the pin, with the
giving back and reading ahead of weights that this brings. What a switch costs is the time of the tokens after it over the median
of the others of their size. The figures are in docs/performance.md.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
import types
from pathlib import Path

BIN = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).parent.parent.parent / "target")) / "release"
SYSTEM = " ".join(f"Rule {n}: be brief, be kind, and name the source of what you say." for n in range(24))
QUESTIONS = [
    "What is on the left side of the street, and how far is the next stop of the bus to the harbour?",
    "Which of the two doors leads to the stairs, and is there a lift for somebody with a heavy suitcase?",
]


def ask(nestctl, question, system=None):
    command = [*nestctl, "--json", "ask", "--max-tokens", "2", *(["--system", system] if system else []), question]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1])["finished"]


@contextlib.contextmanager
def running(model=None, elastic="", bus="off", more=""):
    """A daemon with the model, or with the simulator: the command line of its nestctl, its process, and the times to READY
    and to the loaded model in ms. `elastic` is for that table, `more` has other tables."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "models").mkdir()
        if model:
            (folder / "models" / "model.gguf").symlink_to(Path(model).resolve())
        (folder / "nestd.toml").write_text(
            f"[model]\nname = '{'model' if model else 'sim'}'\ndir = '{folder}/models'\ncache_dir = '{folder}/cache'\n"
            f"[grpc]\nsocket = '{folder}/nestd.sock'\n"
            f"[dbus]\nbus = '{bus}'\n[metrics]\nlisten = ''\n[governor]\nenabled = false\n"
            f"[sessions]\ndir = '{folder}/sessions'\n[elastic]\nspill_dir = '{folder}/kv'\n{elastic}\n{more}\n"
        )
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(folder / "notify"))
        began = time.monotonic()
        daemon = subprocess.Popen(
            [BIN / "nestd", "--config", folder / "nestd.toml"],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stderr=subprocess.DEVNULL,
        )
        try:
            while "READY=1" not in told.recv(4096).decode():
                pass
            ready = time.monotonic() - began
            # Nobody reads what follows, and the daemon is not to wait for that.
            told.close()
            nestctl = [BIN / "nestctl", "--socket", folder / "nestd.sock"]
            while True:
                status = json.loads(subprocess.run([*nestctl, "--json", "status"], check=True, stdout=subprocess.PIPE).stdout)
                if status["state"] == "ready":
                    break
            yield types.SimpleNamespace(
                nestctl=nestctl, process=daemon, ready_ms=ready * 1e3, loaded_ms=(time.monotonic() - began) * 1e3
            )
        finally:
            daemon.terminate()
            daemon.wait()


def start(model, threads):
    with running(model, f"threads = {threads}") as daemon:
        alone = ask(daemon.nestctl, QUESTIONS[0])
        first = ask(daemon.nestctl, QUESTIONS[0], SYSTEM)
        after = ask(daemon.nestctl, QUESTIONS[1], SYSTEM)
    return {
        "ready_ms": daemon.ready_ms,
        "loaded_ms": daemon.loaded_ms,
        "prompt_tokens": alone["usage"]["prompt_tokens"],
        "ttft_ms": alone["timings"]["ttft_us"] / 1e3,
        "with_system_tokens": first["usage"]["prompt_tokens"],
        "with_system_ttft_ms": first["timings"]["ttft_us"] / 1e3,
        "after_system_cached": after["usage"]["cached_tokens"],
        "after_system_tokens": after["usage"]["prompt_tokens"],
        "after_system_ttft_ms": after["timings"]["ttft_us"] / 1e3,
    }


def switch(model, threads, every, tokens):
    """Times of the tokens of one answer, by size: after a switch, and the others."""
    with running(model, f"threads = {threads}") as daemon:
        sizes = [subprocess.run([*daemon.nestctl, "--json", "status"], check=True, stdout=subprocess.PIPE)]
        sizes = [json.loads(sizes[0].stdout)["active_size"], "E2B"]
        command = [*daemon.nestctl, "--json", "ask", "--max-tokens", str(tokens), "--json-schema", "/dev/stdin", "Go on"]
        # Such an answer does not end early.
        answer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        json.dump({"type": "string", "minLength": 10 * tokens}, answer.stdin)
        answer.stdin.close()
        switching, before, now, fresh, count = None, None, 0, False, 0
        times = {size: {"after a switch": [], "others": []} for size in sizes}
        for line in answer.stdout:
            event, at = json.loads(line), time.monotonic()
            if "size_changed" in event:
                now, fresh = sizes.index(event["size_changed"]["to"]), True
            if "text" not in event:
                continue
            if before:
                times[sizes[now]]["after a switch" if fresh else "others"].append((at - before) * 1e3)
            before, fresh, count = at, False, count + 1
            if count % every == 0:
                if switching and switching.wait():
                    raise SystemExit("a switch failed")
                switching = subprocess.Popen([*daemon.nestctl, "size", sizes[1 - now]], stdout=subprocess.DEVNULL)
    print(f"{model}: {count} pieces of text")
    for size, kinds in times.items():
        median = statistics.median(kinds["others"])
        for kind, values in kinds.items():
            p = [q - median for q in statistics.quantiles(values, n=100)]
            print(f"{size}, {kind}: {len(values)}, over the median of {median:.1f} ms: "
                  f"p50 {p[49]:.1f}, p90 {p[89]:.1f}, p99 {p[98]:.1f} ms")


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("models", nargs="+")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--switch", type=int, metavar="N", help="switch the size after every N tokens of one answer")
    p.add_argument("--tokens", type=int, default=600, help="of that answer")
    a = p.parse_args()
    for model in a.models:
        if a.switch:
            switch(model, a.threads, a.switch, a.tokens)
            continue
        runs = [start(model, a.threads) for _ in range(a.rounds)]
        print(model, {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]})


if __name__ == "__main__":
    main()
