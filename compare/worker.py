"""One transformers engine in a process of its own: `python worker.py ENGINE FOLDER THREADS`, spoken to in JSON lines.

It says when its imports are done, loads the model when it gets a line, says when that is done, and from then on
answers `{"prompt": [id, …], "tokens": n}` with the `n` ids of greedy decoding.
"""

import json
import logging
import os
import sys

import torch
from transformers import AutoModelForCausalLM

# Our messages go to the pipe; what the libraries print on standard output goes to standard error.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# It warns of every cast from bf16, which would take much of the time of a small model.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "llm-int8": torch.bfloat16}


def say(**what):
    print(json.dumps(what), file=answers, flush=True)


def load(engine, folder):
    """LLM.int8 needs no extra argument: its folder's configuration names the method."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[engine], device_map="cpu").eval()


@torch.inference_mode()
def complete(model, prompt, tokens):
    """The model alone, without the bookkeeping of `generate`."""
    ids, cache, answer = torch.tensor([prompt]), None, []
    for _ in range(tokens):
        step = model(ids, cache=cache, use_cache=True, logits_to_keep=1)
        cache = step.cache
        ids = step.logits[:, -1].argmax(-1, keepdim=True)
        answer.append(ids.item())
    return answer


def main(engine, folder, threads):
    torch.set_num_threads(int(threads))
    say(imported=True)
    sys.stdin.readline()
    model = load(engine, folder)
    say(footprint=model.get_memory_footprint())
    for line in sys.stdin:
        say(ids=complete(model, **json.loads(line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
