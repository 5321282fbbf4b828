#!/usr/bin/env python3
"""Compares the speed of llama.cpp with microgranite's, on a published shape with random weights.

    python llama_cpp.py MICROGRANITE LLAMA_BATCHED_BENCH SHAPE

The second program is llama.cpp's `llama-batched-bench`, built for this CPU. The file for it is made once and kept in `target/compare`: it is
as large as the model in Q8_0. The engines take turns, ROUNDS times (3), on THREADS threads (2); medians are shown.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import shape_gguf

ROUNDS, THREADS = (int(os.environ.get(name, default)) for name, default in (("ROUNDS", 3), ("THREADS", 2)))
PROMPT, STREAM_PROMPT, STEPS, STREAMS = 512, 64, 16, 8
WORK = Path(__file__).parent.parent / "target" / "compare"


def lines(*command):
    out = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def of_llama_cpp(program, file):
    def run(prompt, streams):
        context = streams * (prompt + STEPS)
        sizes = ["-npp", prompt, "-ntg", STEPS, "-npl", streams, "-c", context, "-b", PROMPT, "-ub", PROMPT]
        return lines(program, "-m", file, "-t", THREADS, *sizes, "--output-format", "jsonl")[-1]

    alone, together = run(PROMPT, 1), run(STREAM_PROMPT, STREAMS)
    return alone["speed_pp"], alone["speed_tg"], together["speed_tg"]


def of_microgranite(program, shape):
    sizes = ["--prompt", PROMPT, "--batch", f"1,{STREAMS}", "--runs", 1, "--steps", STEPS, "--threads", THREADS]
    out = subprocess.run(
        [str(part) for part in (program, "bench", "--shape", shape, *sizes, "--json")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    report = json.loads(out)
    return report["prefill"][0]["tok_s"], *(decode["tok_s"] for decode in report["decode"])


def main(microgranite, batched_bench, shape):
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / f"{shape}.gguf"
    if not file.exists():
        unfinished = file.with_suffix(".part")
        shape_gguf.main(shape, unfinished)
        unfinished.rename(file)
    runs = [(of_llama_cpp(batched_bench, file), of_microgranite(microgranite, shape)) for _ in range(ROUNDS)]
    print(f"| tokens/s, {shape} | llama.cpp, Q8_0 | microgranite | |\n|---|---|---|---|")
    for index, what in enumerate((f"a prompt of {PROMPT}", "one stream", f"{STREAMS} streams")):
        theirs, ours = ([run[engine][index] for run in runs] for engine in (0, 1))
        each = (", ".join(f"{speed:.1f}" for speed in speeds) for speeds in (theirs, ours))
        print(f"| {what} | {' | '.join(each)} | {median(ours) / median(theirs):.2f} × |")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    main(*sys.argv[1:])
