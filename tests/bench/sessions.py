"""The second turn of a session: with its KV cache in memory, back from storage, and read again.

    nestctl model synth --size E2B --out e2b.gguf
    python tests/bench/sessions.py e2b.gguf

For each way in turn, a daemon is started, a session is asked a long question and then a short one; told is the time to the
second answer's first token. Medians of several rounds. The figures are in docs/performance.md.
"""

import argparse
import json
import statistics
import subprocess
import time

from daemon import running

WAYS = {
    "memory": "prefix_cache_mib = 512\nspill_mib = 0",
    "storage": "prefix_cache_mib = 0\nspill_mib = 512",
    "read again": "prefix_cache_mib = 0\nspill_mib = 0",
}


def ask(nestctl, session, question):
    command = [*nestctl, "--json", "ask", "--session", session, "--max-tokens", "8", "--temperature", "0", question]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1])["finished"]


def measure(model, way, words):
    with running(model, WAYS[way]) as daemon:
        nestctl = daemon.nestctl
        new = subprocess.run([*nestctl, "session", "new"], check=True, stdout=subprocess.PIPE, text=True)
        session = new.stdout.strip()
        first = ask(nestctl, session, " ".join(f"word{n % 97}" for n in range(words)))
        # A person reads the answer; the cache is written meanwhile.
        time.sleep(1)
        second = ask(nestctl, session, "And now?")
    return first, second


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--words", type=int, default=500)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    rounds = [{way: measure(a.model, way, a.words) for way in WAYS} for _ in range(a.rounds)]
    for way in WAYS:
        median = lambda of: round(statistics.median(of(*one[way]) for one in rounds), 1)
        print(way, {
            "prompt_tokens": median(lambda _, second: second["usage"]["prompt_tokens"]),
            "cached_tokens": median(lambda _, second: second["usage"]["cached_tokens"]),
            "first_ttft_ms": median(lambda first, _: first["timings"]["ttft_us"] / 1e3),
            "second_ttft_ms": median(lambda _, second: second["timings"]["ttft_us"] / 1e3),
        })


if __name__ == "__main__":
    main()
