"""What the daemon's APIs cost for each token, and what background work costs interactive requests.

    cargo build --release --no-default-features -p nestd -p nestctl --bins --example in_process
    python tests/bench/load.py overhead                 gRPC, D-Bus signals and a pipe beside the engine in-process
    python tests/bench/load.py overhead --speed 1000    the same where every token is an event of its own
    python tests/bench/load.py flood                    TTFT of interactive requests, idle and under a flood: simulator
    python tests/bench/load.py flood --model models/demo/nestd-demo-Q8_0.gguf

What is compared alternates in each round; medians of several rounds. `overhead` needs dbus-daemon. The figures are in
docs/performance.md.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from daemon import BIN, running

TICKS = os.sysconf("SC_CLK_TCK")
WAYS = {"gRPC": ["--grpc"], "D-Bus signals": ["--dbus"], "D-Bus, pipe": ["--dbus", "--fd"]}
LIMITS = "[limits]\nmax_tokens = 8000\nbuffer_bytes = 67108864\n"


def cpu_s(process):
    """CPU time of a process so far, its ended threads included."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def message_bus():
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:path={folder}/bus"
        command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={address}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while not Path(f"{folder}/bus").exists():
                time.sleep(0.01)
            yield address, process
        finally:
            process.terminate()
            process.wait()


def bench(nestctl, *options):
    command = [*nestctl, "--json", "bench", *map(str, options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def in_process(speed, tokens, answers):
    command = [BIN / "examples/in_process", *map(str, (speed, tokens, answers))]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    made = told["tokens"]
    return {
        "wall": told["seconds"] * 1e6 / made,
        "daemon": told["cpu_s"] * 1e6 / made,
        "bus": 0,
        "client": 0,
        "tokens_a_piece": made / told["pieces"],
    }


def over(way, daemon, bus, address, tokens, answers):
    """Microseconds for each token: of the clock, and of the CPU in the daemon, in the bus and in the client."""
    nestctl = daemon.nestctl if way == "gRPC" else [BIN / "nestctl", "--bus", address]
    options = [*WAYS[way][1:], "--clients", 1, "--priority", "interactive", "--requests", answers]
    before = cpu_s(daemon.process), cpu_s(bus), resource.getrusage(resource.RUSAGE_CHILDREN)
    told = bench(nestctl, *options, "--prompt-tokens", tokens + 2, "--max-tokens", tokens)
    after = cpu_s(daemon.process), cpu_s(bus), resource.getrusage(resource.RUSAGE_CHILDREN)
    made = told["all"]["completion_tokens"]
    assert made == tokens * answers, told
    client = sum(getattr(after[2], of) - getattr(before[2], of) for of in ("ru_utime", "ru_stime"))
    return {
        "wall": told["seconds"] * 1e6 / made,
        "daemon": (after[0] - before[0]) * 1e6 / made,
        "bus": (after[1] - before[1]) * 1e6 / made,
        "client": client * 1e6 / made,
        "tokens_a_piece": made / told["all"]["pieces"],
    }


def overhead(speed, tokens, answers, rounds):
    sim = f"[sim]\nenabled = true\ntokens_per_s = {speed}.0\nprefill_tokens_per_s = 1000000.0\n"
    with message_bus() as (address, bus), running(bus=address, more=sim + LIMITS) as daemon:
        rows = []
        for _ in range(rounds):
            row = {"in-process": in_process(speed, tokens, answers)}
            row |= {way: over(way, daemon, bus, address, tokens, answers) for way in WAYS}
            rows.append(row)
    print(f"{speed} tokens/s, {answers} answers of {tokens} tokens, one client; microseconds a token, medians of {rounds}")
    for way in rows[0]:
        median = {key: statistics.median(row[way][key] for row in rows) for key in rows[0][way]}
        ratio = statistics.median(row[way]["wall"] / row["in-process"]["wall"] for row in rows)
        cpu = statistics.median(row[way]["daemon"] / row["in-process"]["daemon"] for row in rows)
        print(
            f"{way:14} wall {median['wall']:8.2f} ({ratio:5.2f}x)   CPU: daemon {median['daemon']:7.2f} ({cpu:5.2f}x), "
            f"bus {median['bus']:6.2f}, client {median['client']:6.2f}   tokens a piece {median['tokens_a_piece']:6.1f}"
        )


INTERACTIVE = ["--clients", 1, "--priority", "interactive", "--pause-ms", "20..200", "--prompt-tokens", 32, "--max-tokens", 8]
FLOOD = ["--clients", 8, "--priority", "background", "--duration", 3600, "--prompt-tokens", "32..256", "--max-tokens", "32..256"]


@contextlib.contextmanager
def flooded(nestctl):
    """Background requests without end; yields what will hold their report."""
    command = [*nestctl, "--json", "bench", *map(str, FLOOD)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    report = {}
    try:
        # Until its requests run.
        while json.loads(subprocess.check_output([*nestctl, "--json", "status"]))["running_requests"] < 2:
            time.sleep(0.05)
        yield report
    finally:
        process.send_signal(signal.SIGINT)
        told = process.communicate()[0]
        if told:
            report |= json.loads(told)["all"]


def flood(model, requests, rounds):
    sim = "[sim]\nenabled = true\ntokens_per_s = 20.0\nprefill_tokens_per_s = 200.0\n"
    rows = []
    with running(model, more="" if model else sim) as daemon:
        for round in range(rounds):
            # Other prompts of the same lengths: those of the run before are in the prefix cache.
            asked = [[*INTERACTIVE, "--requests", requests, "--seed", 2 * round + i] for i in (0, 1)]
            idle = bench(daemon.nestctl, *asked[0])["all"]
            with flooded(daemon.nestctl) as report:
                under = bench(daemon.nestctl, *asked[1])["all"]
            print(f"round {round + 1} of {rounds}", file=sys.stderr)
            rows.append((idle, under, report))
    print(f"{Path(model).name if model else 'simulator'}, {requests} interactive requests a run, medians of {rounds}")
    for percentile in ("p50", "p90", "p99"):
        idle, under = ([row[i]["ttft_ms"][percentile] for row in rows] for i in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(idle, under))
        print(
            f"TTFT {percentile}: idle {statistics.median(idle):8.2f} ms, under the flood {statistics.median(under):8.2f} ms, "
            f"ratio {ratio:5.2f}x  [{min(b / a for a, b in zip(idle, under)):.2f} to {max(b / a for a, b in zip(idle, under)):.2f}]"
        )
    between = [statistics.median(row[i]["per_token_ms"]["p50"] for row in rows) for i in (0, 1)]
    print(f"a token: idle {between[0]:.2f} ms, under the flood {between[1]:.2f} ms")
    print("the flood's outcomes:", [row[2].get("outcomes") for row in rows])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=("overhead", "flood"))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--speed", type=int, default=1_000_000, help="tokens a second of the simulator, for overhead")
    p.add_argument("--tokens", type=int, default=2000, help="tokens of an answer, for overhead")
    p.add_argument("--answers", type=int, help="for overhead [default: 50, or 10 s of them]")
    p.add_argument("--model", help="for flood [default: the simulator]")
    p.add_argument("--requests", type=int, default=200, help="interactive requests in a run, for flood")
    a = p.parse_args()
    if a.what == "overhead":
        answers = a.answers or max(1, min(50, a.speed * 10 // a.tokens))
        overhead(a.speed, a.tokens, answers, a.rounds)
    else:
        flood(a.model, a.requests, a.rounds)


if __name__ == "__main__":
    main()
