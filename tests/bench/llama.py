"""Prefill and decode speed of llama.cpp on a GGUF file, as JSON, to compare with `nestctl bench`.

    pip install --no-binary llama-cpp-python llama-cpp-python   # built here: native flags
    python tests/bench/llama.py MODEL.gguf --prompt-tokens 128 --max-tokens 32 --threads 2
"""

import argparse
import json
import time

import llama_cpp


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--prompt-tokens", type=int, default=128)
    p.add_argument("--max-tokens", type=int, default=32)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeat", type=int, default=1)
    a = p.parse_args()
    began = time.monotonic()
    llm = llama_cpp.Llama(a.model, n_ctx=4096, n_batch=512, n_threads=a.threads, n_threads_batch=a.threads, verbose=False)
    load_s = time.monotonic() - began
    prompt = [1000 + i * 37 % 200000 for i in range(a.prompt_tokens)]
    runs = []
    for _ in range(a.repeat):
        llm.reset()
        began = time.monotonic()
        llm.eval(prompt)
        prefill_s = time.monotonic() - began
        began = time.monotonic()
        for i in range(a.max_tokens):
            llm.eval([5000 + i])
        decode_s = time.monotonic() - began
        runs.append({"prefill_tokens_per_s": a.prompt_tokens / prefill_s, "decode_tokens_per_s": a.max_tokens / decode_s})
    print(json.dumps({"engine": "llama.cpp", "load_s": load_s, "runs": runs}))


if __name__ == "__main__":
    main()
