"""One round: every engine once, one after the other, each in a process of its own.

    python measure.py BINARY FOLDERS TEXT [PROMPT ANSWER]

appends a line for each engine to FOLDERS/runs.jsonl.
"""

import json
import os
import sys
import time
from pathlib import Path

import process
from engines import all_of
from tokenizers import Tokenizer

# Tokens that the decoded stream begins with: what `microgranite bench` has before it.
STREAM_PROMPT = 64


def timed(engine, prompt, tokens):
    """Seconds, processor seconds and joules of one request."""
    before = time.perf_counter(), process.cpu_seconds(engine.pid), process.joules()
    ids = engine.complete(prompt, tokens)
    after = time.perf_counter(), process.cpu_seconds(engine.pid), process.joules()
    assert len(ids) == tokens, f"{tokens} tokens were asked for, {len(ids)} came"
    return [b - a if a is not None else None for a, b in zip(before, after)]


def measure(engine, ids, prompt_tokens, answer_tokens):
    figures = engine.start()
    try:
        figures["loaded"] = process.memory(engine.pid)
        engine.complete(ids[:STREAM_PROMPT], 2)  # what is set up at first use is not counted
        seconds, cpu, _ = timed(engine, ids[:prompt_tokens], 1)
        figures |= {"prefill_tok_s": prompt_tokens / seconds, "prefill_cpu_s": cpu / prompt_tokens}
        # A stream of many tokens less one of a single token: the decoding alone.
        one = timed(engine, ids[:STREAM_PROMPT], 1)
        many = timed(engine, ids[:STREAM_PROMPT], 1 + answer_tokens)
        seconds, cpu, joules = [b - a if a is not None else None for a, b in zip(one, many)]
        figures |= {"decode_tok_s": answer_tokens / seconds, "decode_cpu_s": cpu / answer_tokens}
        figures["decode_joules"] = None if joules is None else joules / answer_tokens
        figures["used"] = process.memory(engine.pid)
    finally:
        engine.stop()
    return figures


def main(binary, folders, text, prompt_tokens="512", answer_tokens="64"):
    folders = Path(folders)
    tokenizer = Tokenizer.from_file(str(folders / "bf16" / "tokenizer.json"))
    ids = tokenizer.encode(Path(text).read_text(), add_special_tokens=False).ids
    plan = {"prompt": int(prompt_tokens), "answer": int(answer_tokens)}
    with open(folders / "runs.jsonl", "a") as runs:
        for name, engine in all_of(binary, folders, len(os.sched_getaffinity(0))).items():
            figures = measure(engine, ids, plan["prompt"], plan["answer"])
            print(json.dumps({"engine": name, "plan": plan, **figures}), file=runs, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
