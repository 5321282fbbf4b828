"""Measures one engine once: `python measure.py BINARY FOLDERS TEXT ENGINE PROMPT ANSWER`.

Appends a line to FOLDERS/runs.jsonl. PROMPT and ANSWER are numbers of tokens.
"""

import json
import os
import sys
import time
from pathlib import Path

import process
from engines import all_of
from tokenizers import Tokenizer

# Prompt tokens of the decoded stream: the same as in `microgranite bench`.
STREAM_PROMPT = 64


def timed(engine, prompt, tokens):
    """For one request: seconds, processor seconds, joules, and processor seconds of all processes."""

    def now():
        return time.perf_counter(), process.cpu_seconds(engine.pid), process.joules(), process.busy_seconds()

    before = now()
    ids = engine.complete(prompt, tokens)
    after = now()
    assert len(ids) == tokens, f"{tokens} tokens were asked for, {len(ids)} came"
    return difference(after, before)


def difference(after, before):
    return [a - b if b is not None else None for a, b in zip(after, before)]


def measure(engine, ids, prompt_tokens, answer_tokens):
    try:
        figures = engine.start()
        figures["loaded"] = process.memory(engine.pid)
        engine.complete(ids[:STREAM_PROMPT], 2)  # what is set up at first use is not counted
        prompt = timed(engine, ids[:prompt_tokens], 1)
        one = timed(engine, ids[:STREAM_PROMPT], 1)
        many = timed(engine, ids[:STREAM_PROMPT], 1 + answer_tokens)
        figures["used"] = process.memory(engine.pid)
    finally:
        engine.stop()
    seconds, cpu, _, _ = prompt
    figures |= {"prefill_tok_s": prompt_tokens / seconds, "prefill_cpu_s": cpu / prompt_tokens}
    # The time of a stream of many tokens minus that of a single token: the decoding alone.
    seconds, cpu, joules, _ = difference(many, one)
    figures |= {"decode_tok_s": answer_tokens / seconds, "decode_cpu_s": cpu / answer_tokens}
    figures["decode_joules"] = None if joules is None else joules / answer_tokens
    seconds, cpu, _, busy = [a + b if b is not None else None for a, b in zip(prompt, many)]
    figures["others_cores"] = (busy - cpu) / seconds
    return figures


def main(binary, folders, text, name, prompt_tokens, answer_tokens):
    folders = Path(folders)
    tokenizer = Tokenizer.from_file(str(folders / "bf16" / "tokenizer.json"))
    ids = tokenizer.encode(Path(text).read_text(), add_special_tokens=False).ids
    plan = {"prompt": int(prompt_tokens), "answer": int(answer_tokens)}
    engine = all_of(binary, folders, len(os.sched_getaffinity(0)))[name]
    figures = measure(engine, ids, plan["prompt"], plan["answer"])
    with open(folders / "runs.jsonl", "a") as runs:
        print(json.dumps({"engine": name, "plan": plan, **figures}), file=runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
