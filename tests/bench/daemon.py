"""Start and first tokens of the daemon with a model of real dimensions in the page cache.

    nestctl model synth --size E4B --out e4b.gguf
    python tests/bench/daemon.py e4b.gguf e2b.gguf

For each model: the time from the start of the process to READY, to a loaded model, and to the first token of a
question of about 32 tokens, first alone, then after the same long system prompt was read by another question. Medians of
several starts. The figures are in docs/performance.md.
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
from pathlib import Path

BIN = Path(__file__).parent.parent.parent / "target/release"
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
def running(model, elastic):
    """A daemon with the model: the command line of its nestctl, and the times to READY and to the loaded model in ms."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "models").mkdir()
        (folder / "models" / "model.gguf").symlink_to(Path(model).resolve())
        (folder / "nestd.toml").write_text(
            f"[model]\ndir = '{folder}/models'\ncache_dir = '{folder}/cache'\n[grpc]\nsocket = '{folder}/nestd.sock'\n"
            f"[dbus]\nbus = 'off'\n[metrics]\nlisten = ''\n[governor]\nenabled = false\n"
            f"[sessions]\ndir = '{folder}/sessions'\n[elastic]\nspill_dir = '{folder}/kv'\n{elastic}\n"
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
            nestctl = [BIN / "nestctl", "--socket", folder / "nestd.sock"]
            while True:
                status = json.loads(subprocess.run([*nestctl, "--json", "status"], check=True, stdout=subprocess.PIPE).stdout)
                if status["state"] == "ready":
                    break
            yield nestctl, ready * 1e3, (time.monotonic() - began) * 1e3
        finally:
            daemon.terminate()
            daemon.wait()


def start(model, threads):
    with running(model, f"threads = {threads}") as (nestctl, ready, loaded):
        alone = ask(nestctl, QUESTIONS[0])
        first = ask(nestctl, QUESTIONS[0], SYSTEM)
        after = ask(nestctl, QUESTIONS[1], SYSTEM)
    return {
        "ready_ms": ready,
        "loaded_ms": loaded,
        "prompt_tokens": alone["usage"]["prompt_tokens"],
        "ttft_ms": alone["timings"]["ttft_us"] / 1e3,
        "with_system_tokens": first["usage"]["prompt_tokens"],
        "with_system_ttft_ms": first["timings"]["ttft_us"] / 1e3,
        "after_system_cached": after["usage"]["cached_tokens"],
        "after_system_tokens": after["usage"]["prompt_tokens"],
        "after_system_ttft_ms": after["timings"]["ttft_us"] / 1e3,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("models", nargs="+")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    for model in a.models:
        runs = [start(model, a.threads) for _ in range(a.rounds)]
        print(model, {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]})


if __name__ == "__main__":
    main()
