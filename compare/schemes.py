#!/usr/bin/env python3
"""What each way of quantizing costs in accuracy: a table.

Usage: schemes.py BINARY [REF] [--work DIR] [--tokens N]

BINARY is a release build of microgranite, REF a checkpoint of floats (default: demo). Every scheme is packed with
`quantize` and measured with `eval` on the built-in text. Prints Markdown; the figures of a scheme that is there
already are not made again.
"""

import argparse
import json
import pathlib
import subprocess

# (name of the row, flags of `quantize`)
SCHEMES = {
    "default": "",
    "nearest": "--rounding nearest",
    # mapping × granularity
    "symmetric tensor": "--rounding nearest --granularity tensor",
    "symmetric group": "--rounding nearest --granularity group",
    "affine tensor": "--rounding nearest --scheme affine --granularity tensor",
    "affine channel": "--rounding nearest --scheme affine",
    "affine group": "--rounding nearest --scheme affine --granularity group",
    # range
    "mse channel": "--rounding nearest --range mse",
    "mse group": "--rounding nearest --granularity group --range mse",
    "percentile channel": "--rounding nearest --range percentile:99.9",
    # rotation and smoothing
    "rotation blocks-64": "--rounding nearest --rotation blocks-64",
    "rotation strided": "--rounding nearest --rotation strided",
    "rotation none": "--rounding nearest --rotation none",
    "none, smooth 0.5": "--rounding nearest --rotation none --smooth 0.5",
    # calibrated rounding
    "compensated group": "--granularity group",
    "compensated affine": "--scheme affine",
    "compensated none": "--rotation none",
    "compensated smooth": "--smooth 0.5",
    "compensated 1024": "--calibration-tokens 1024",
}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def packed(args, name: str) -> pathlib.Path:
    """The folder of a scheme; packs it if it is missing."""
    folder = args.work / name.replace(" ", "-").replace(",", "").replace(".", "")
    if not folder.exists():
        run(args.binary, "quantize", args.model, "-o", str(folder), "--log", "warn", *SCHEMES[name].split())
    return folder


def evaluated(args, folder: pathlib.Path) -> dict:
    """The evaluation in the model's record; runs it if there is none."""
    record = folder / "quantization.json"
    if not json.loads(record.read_text())["evaluations"]:
        # Q8_0 is the same for all schemes, so it is measured once.
        more = ["--q8-0"] if folder.name == "default" else []
        run(args.binary, "eval", str(folder), "--against", args.model, "--tokens", str(args.tokens), "--log", "warn", *more)
    return json.loads(record.read_text())


def figures(found: dict) -> str:
    change = 100 * (found["perplexity"] / found["perplexity_reference"] - 1)
    return (
        f"{found['kl_mean']:.3g} ± {found['kl_mean_se']:.2g} | {found['kl_max']:.3g} | "
        f"{100 * found['same_top_token']:.1f} % | {change:+.2f} %"
    )


def accuracy(args) -> None:
    print("| scheme | flags of `quantize` | weights, MB | mean KL | max KL | same top token | perplexity |")
    print("|---|---|---|---|---|---|---|")
    for name, flags in SCHEMES.items():
        folder = packed(args, name)
        found = evaluated(args, folder)["evaluations"][-1]
        size = (folder / "model.int8.safetensors").stat().st_size / 1e6
        print(f"| {name} | {f'`{flags}`' if flags else ''} | {size:.1f} | {figures(found)} |", flush=True)
        if found.get("q8_0"):
            print(f"| Q8_0 | as llama.cpp computes it | | {figures(found['q8_0'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/schemes"))
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    accuracy(args)


if __name__ == "__main__":
    main()
