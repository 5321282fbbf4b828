"""Draws results.json as results.svg: a block for each checkpoint, a panel for each figure, a bar for each engine."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from report import NAMES

HERE = Path(__file__).parent
# Readable on white and on black: the picture has a transparent background.
INK = "#7d7d7d"
OTHER, OURS = "#9aa5b1", "#e07b39"

PANELS = {
    "resident memory, MB": lambda e: sum(e["used"][kind]["median"] for kind in ("anonymous", "file")) / 1e6,
    "start to ready, s": lambda e: e["start_s"]["median"],
    "prompt, tokens/s": lambda e: e["prefill_tok_s"]["median"],
    "one stream, tokens/s": lambda e: e["decode_tok_s"]["median"],
    "CPU-ms per generated token": lambda e: 1e3 * e["decode_cpu_s"]["median"],
    "mean KL against f32": lambda e: e["accuracy"] and e["accuracy"]["kl_mean"],
}
MORE_IS_BETTER = ("prompt, tokens/s", "one stream, tokens/s")


def label(value):
    return "0" if value == 0 else f"{value:.2g}" if value < 0.1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def panel(axes, title, engines, value):
    values = [value(engine) for engine in engines.values()]
    axes.set_frame_on(False)
    axes.set_xticks([])
    if None in values:
        axes.set_yticks([])
        return
    colours = [OURS if name == "microgranite" else OTHER for name in engines]
    bars = axes.barh([NAMES[name] for name in engines], values, color=colours, height=0.72)
    axes.bar_label(bars, [label(v) for v in values], padding=3, color=INK, fontsize=9)
    axes.set_xlim(0, max(values) * 1.35)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    arrow = "→" if title in MORE_IS_BETTER else "←"
    axes.set_title(f"{title}  {arrow}", loc="left", color=INK, fontsize=9.5)


def draw(models, file):
    # Text is not converted to paths: small files, and text as sharp as the reader's fonts.
    plt.rcParams |= {"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "microgranite"}
    columns = 3
    blocks = [(model, result["engines"]) for model, result in models.items()]
    figure = plt.figure(figsize=(10.5, 3.9 * len(blocks)), layout="constrained")
    for block, (model, engines) in zip(figure.subfigures(len(blocks), 1, squeeze=False).flat, blocks):
        block.suptitle(model, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
        shown = [(title, value) for title, value in PANELS.items() if value(engines["f32"]) is not None]
        grid = block.subplots(-(-len(shown) // columns), columns, sharey=True)
        for axes, (title, value) in zip(grid.flat, shown):
            panel(axes, title, engines, value)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
    figure.savefig(file, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads((HERE / "results.json").read_text())["models"], HERE / "results.svg")
