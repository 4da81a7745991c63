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
