"""What each engine's arithmetic costs, as `microgranite eval` defines it: `python accuracy.py BINARY FOLDERS TEXT`.

Each transformers engine against transformers' f32, window by window; microgranite against its own f32, which must have
the perplexity of transformers'. Writes FOLDERS/accuracy.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from worker import load

# As in `microgranite eval`: each window starts at position 0, and its last token predicts nothing.
WINDOW = 512
# Four windows: enough for standard errors of a few percent, in minutes on two cores.
TOKENS = 2048


def mean(values):
    """The mean and its standard error, treating the values as independent."""
    values = np.concatenate(values)
    return values.mean(), values.std(ddof=1) / len(values) ** 0.5


@torch.inference_mode()
def window_logits(model, windows):
    for window in windows:
        yield model(torch.tensor([window])).logits[0, :-1].float().numpy()


def log_softmax(logits):
    """In f64: divergences near 0.001 are differences of numbers near 10."""
    return torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()


def compare(expected, found, windows):
    """The divergence of `found` from `expected`, both iterables of one logit array per window."""
    nll, kl, same_top = [], [], []
    for reference, other, window in zip(expected, found, windows):
        same_top.append((reference.argmax(-1) == other.argmax(-1)).astype(float))
        reference, other = log_softmax(reference), log_softmax(other)
        nll.append(-other[np.arange(len(other)), window[1:]])
        kl.append((np.exp(reference) * (reference - other)).sum(-1).clip(min=0))
    (nll, nll_se), (kl, kl_se), (top, top_se) = mean(nll), mean(kl), mean(same_top)
    return {
        "perplexity": np.exp(nll),
        "perplexity_se": np.exp(nll) * nll_se,
        "kl_mean": kl,
        "kl_mean_se": kl_se,
        "same_top_token": top,
        "same_top_token_se": top_se,
    }


def ours(binary, folders, text):
    models = [folders / "microgranite", "--against", folders / "bf16"]
    command = [binary, "eval", *models, "--text", text, "--tokens", str(TOKENS), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main(binary, folders, text):
    folders = Path(folders)
    tokenizer = Tokenizer.from_file(str(folders / "bf16" / "tokenizer.json"))
    ids = tokenizer.encode(Path(text).read_text(), add_special_tokens=False).ids[:TOKENS]
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - 1, WINDOW)]
    results = {}
    # The reference's logits are written to a file: there is no memory for two larger models.
    with tempfile.TemporaryDirectory(dir=folders) as kept:
        files = [Path(kept) / f"{i}.npy" for i in range(len(windows))]
        for file, logits in zip(files, window_logits(load("f32", folders / "bf16"), windows)):
            np.save(file, logits)
        results["f32"] = compare(map(np.load, files), map(np.load, files), windows)
        for name, folder in (("bf16", "bf16"), ("llm-int8", "llm-int8")):
            model = load(name, folders / folder)
            results[name] = compare(map(np.load, files), window_logits(model, windows), windows)
            del model
    evaluated = ours(binary, folders, text)
    results["microgranite"] = {key: evaluated[key] for key in results["f32"]}
    predicted = sum(len(window) - 1 for window in windows)
    assert evaluated["tokens"] == predicted, f"{evaluated['tokens']} tokens predicted, transformers {predicted}"
    reference = evaluated["perplexity_reference"]
    difference = abs(reference / results["f32"]["perplexity"] - 1)
    assert difference < 1e-4, f"the f32 models differ: perplexity {reference}, transformers {results['f32']['perplexity']}"
    results = {"predicted_tokens": predicted, "f32_perplexity_of_microgranite": reference, "engines": results}
    (folders / "accuracy.json").write_text(json.dumps(results, indent=4) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
