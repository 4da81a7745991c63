"""Speed and memory of the elastic engine on models of real dimensions, beside llama.cpp.

Each command alternates what it compares and prints medians. llama.cpp is that of the package
llama-cpp-python, built here (`pip install --no-binary llama-cpp-python --target DIR llama-cpp-python`)
and found through PYTHONPATH.

    nestctl model synth --size E2B --out e2b.gguf
    nestctl model nest e2b.gguf --out nested.gguf
    python tests/bench/elastic.py compare e2b.gguf --nested nested.gguf   speed against llama.cpp
    python tests/bench/elastic.py loaded e2b.gguf       the same while others use every core
    python tests/bench/elastic.py limit e2b.gguf 2048   speed in so many MiB against speed without a limit
    python tests/bench/elastic.py limit e2b.gguf 2048 --prompt 4000   the same with full caches
    python tests/bench/elastic.py switch e4b.gguf       1,000 switches in the middle of an answer

`limit` makes a control group, for which it must be root. The figures are in docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NESTCTL = HERE.parent.parent / "target/release/nestctl"
GROUPS = Path("/sys/fs/cgroup")


def bench(model, *options, before=None):
    """One run of `nestctl bench`."""
    command = [NESTCTL, "--json", "bench", "--model", model, "--threads", "2", *map(str, options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, preexec_fn=before).stdout)


def llama(model, *options):
    """One run of llama.cpp."""
    command = [sys.executable, HERE / "llama.py", model, "--threads", "2", *map(str, options)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(run.stdout)["runs"][-1]


def rates(result):
    return result["prefill_tokens_per_s"], result["decode_tokens_per_s"]


def show(name, rows):
    prefill, decode = (statistics.median(row[i] for row in rows) for i in (0, 1))
    spread = f"[{min(row[1] for row in rows):.1f} to {max(row[1] for row in rows):.1f}]"
    print(f"{name:28} prefill {prefill:7.1f}   decode {decode:6.2f} tokens/s {spread}", flush=True)
    return prefill, decode


def compare(model, rounds, prompts=None, tokens=48, side_file=None, nested=None):
    more = ("--side-file", side_file) if side_file else ()
    files = {"elastic": model, **({"nested": nested} if nested else {})}
    for prompt in prompts or (128, 512):
        options = ("--prompt-tokens", prompt, "--max-tokens", tokens)
        ours, theirs = {name: [] for name in files}, []
        for _ in range(rounds):
            for name, file in files.items():
                ours[name].append(bench(file, *options, *more, "--repeat", 1))
            theirs.append(rates(llama(model, *options)))
        for name, results in ours.items():
            rows = [rates(result) for result in results]
            show(f"{name}, prompt {prompt}", rows)
            ratios = [statistics.median(o[i] / t[i] for o, t in zip(rows, theirs)) for i in (0, 1)]
            print(f"{'over llama.cpp':28} prefill {ratios[0]:6.2f}x   decode {ratios[1]:5.2f}x")
            share = statistics.median(result["bandwidth_share"] for result in results)
            bandwidth = statistics.median(result["bandwidth_bytes_per_s"] for result in results) / 1e9
            print(f"bandwidth {bandwidth:.1f} GB/s, decode reaches {share:.0%}")
        show(f"llama.cpp, prompt {prompt}", theirs)


def loaded(model, rounds):
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        compare(model, rounds, prompts=(32,), tokens=24)
    finally:
        for burner in burners:
            burner.kill()


def forget(model):
    """Takes a file out of the page cache, so that the next reader's group is charged for it."""
    os.sync()
    with open(model, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def limited(mib):
    """A control group with a memory limit, of either version, and the file that takes a process in."""
    one = GROUPS / "memory"
    group = (one if one.is_dir() else GROUPS) / f"nestd-bench-{os.getpid()}"
    group.mkdir()
    limit = "memory.limit_in_bytes" if one.is_dir() else "memory.max"
    (group / limit).write_text(str(mib << 20))
    return group


def limit(model, mib, rounds, prompt, size):
    options = ("--prompt-tokens", prompt, "--max-tokens", 96, "--repeat", 2, *(("--size", size) if size else ()))
    within, free = [], []
    group = limited(mib)
    try:
        for _ in range(rounds):
            forget(model)
            enter = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
            within.append(rates(bench(model, *options, before=enter)))
            free.append(rates(bench(model, *options)))
    finally:
        group.rmdir()
    a, b = show(f"within {mib} MiB", within), show("without a limit", free)
    print(f"{'share':28} prefill {a[0] / b[0]:6.0%}   decode {a[1] / b[1]:5.0%}")


def switch(model, rounds):
    for _ in range(rounds):
        options = ("--prompt-tokens", 64, "--max-tokens", 2001, "--repeat", 1, "--switch-every", 2)
        result = bench(model, *options)
        print(json.dumps({key: result[key] for key in ("sizes", "decode_tokens_per_s", "between_tokens_ms", "switches")}))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=("compare", "loaded", "limit", "switch"))
    p.add_argument("model")
    p.add_argument("mib", nargs="?", type=int, default=2048, help="for limit")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--size", help="the MatFormer size, for limit")
    p.add_argument("--prompt", type=int, help="tokens of the prompt, for compare and limit")
    p.add_argument("--side-file", help="elastic with this side file, for compare")
    p.add_argument("--nested", help="the nested copy of the model, in turn with it, for compare")
    a = p.parse_args()
    if a.what == "limit":
        limit(a.model, a.mib, a.rounds, a.prompt or 256, a.size)
    elif a.what == "compare":
        compare(a.model, a.rounds, (a.prompt,) if a.prompt else None, side_file=a.side_file, nested=a.nested)
    else:
        {"loaded": loaded, "switch": switch}[a.what](a.model, a.rounds)


if __name__ == "__main__":
    main()
