"""Combines the measurements: `python report.py FOLDERS…` writes results.json and results.md beside itself."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
NAMES = {
    "f32": "transformers, f32",
    "bf16": "transformers, bf16",
    "llm-int8": "LLM.int8, bitsandbytes",
    "microgranite": "microgranite int8",
}
PACKAGES = ("torch", "transformers", "bitsandbytes")


def undisturbed(runs):
    """The runs in which other processes used less than a twentieth of the processors; all runs if there is none."""
    return [run for run in runs if run["others_cores"] < 0.05 * len(os.sched_getaffinity(0))] or runs


def medians(runs):
    """The median of each figure over the runs, and its minimum and maximum; figures may be nested, or missing."""
    if isinstance(runs[0], dict):
        return {key: medians([run[key] for run in runs]) for key in runs[0] if key not in ("engine", "plan")}
    if runs[0] is None:
        return None
    return {"median": median(runs), "least": min(runs), "greatest": max(runs)}


def results(folders):
    """All results for one checkpoint."""
    runs = [json.loads(line) for line in (folders / "runs.jsonl").read_text().splitlines()]
    accuracy = folders / "accuracy.json"
    accuracy = json.loads(accuracy.read_text()) if accuracy.exists() else None
    engines = {}
    for name in NAMES:
        own = undisturbed([run for run in runs if run["engine"] == name])
        checkpoint = folders / ("bf16" if name == "f32" else name)
        engines[name] = {
            "runs": len(own),
            "disk": sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")),
            **medians(own),
            "accuracy": accuracy and accuracy["engines"][name],
        }
    text = accuracy and {key: value for key, value in accuracy.items() if key != "engines"}
    return {"plan": runs[0]["plan"], "text": text, "engines": engines}


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    flags = said.get("flags", "").split()
    return {
        "cpu": said.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16") if flag in flags],
        "packages": {package: version(package) for package in PACKAGES},
    }


def number(value, digits=3):
    """Three significant digits, never with an exponent."""
    if value == 0 or value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    places = max(0, digits - len(str(int(value)))) if value >= 1 else digits
    return f"{value:.{places}f}"


def megabytes(size):
    return number(size / 1e6)


# The columns of the table for an engine; None leaves the cell empty.
ROWS = {
    "weights on disk, MB": lambda e: megabytes(e["disk"]),
    "footprint it reports, MB": lambda e: megabytes(e["footprint"]["median"]),
    "resident when loaded, MB: its own + mapped files": lambda e: resident(e["loaded"]),
    "… of which before loading": lambda e: "before_loading" in e and resident(e["before_loading"]),
    "resident after the requests, MB": lambda e: resident(e["used"]),
    "peak, MB": lambda e: megabytes(e["used"]["peak"]["median"]),
    "loading, s": lambda e: number(e["load_s"]["median"]),
    "from start to ready, s": lambda e: number(e["start_s"]["median"]),
    "prompt, tokens/s": lambda e: spread(e["prefill_tok_s"]),
    "one stream, tokens/s": lambda e: spread(e["decode_tok_s"]),
    "CPU-ms per prompt token": lambda e: number(1e3 * e["prefill_cpu_s"]["median"]),
    "CPU-ms per generated token": lambda e: number(1e3 * e["decode_cpu_s"]["median"]),
    "joules per generated token": lambda e: e["decode_joules"] and number(e["decode_joules"]["median"]),
    "cores that others used meanwhile": lambda e: f"{e['others_cores']['median']:.2f}",
    "perplexity": lambda e: e["accuracy"] and f"{e['accuracy']['perplexity']:.2f}",
    "mean KL against f32": lambda e: e["accuracy"] and with_error(e["accuracy"], "kl_mean", 5),
    "same top token as f32": lambda e: e["accuracy"] and f"{100 * e['accuracy']['same_top_token']:.1f} %",
}


def resident(memory):
    return f"{megabytes(memory['anonymous']['median'])} + {megabytes(memory['file']['median'])}"


def spread(figure):
    return f"{number(figure['median'])} ({number(figure['least'])}–{number(figure['greatest'])})"


def with_error(figures, name, places):
    error = figures[f"{name}_se"]
    return f"{figures[name]:.{places}f} ± {error:.{places}f}" if error else "0"


def table(model, result):
    engines = result["engines"]
    plan = result["plan"]
    runs = "/".join(str(count) for count in dict.fromkeys(engine["runs"] for engine in engines.values()))
    lines = [
        f"**{model}**: medians (least–greatest) of {runs} runs; prompt of {plan['prompt']} tokens, answer of {plan['answer']}",
        "",
        "| | " + " | ".join(NAMES[name] for name in engines) + " |",
        "|---" + "|---:" * len(engines) + "|",
    ]
    for title, cell in ROWS.items():
        cells = [cell(engine) for engine in engines.values()]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(text or "" for text in cells) + " |")
    return "\n".join(lines) + "\n"


def main(*folders):
    models = {Path(folder).name: results(Path(folder)) for folder in folders}
    everything = {"machine": machine(), "models": models}
    (HERE / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    (HERE / "results.md").write_text("\n".join(table(*model) for model in models.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
