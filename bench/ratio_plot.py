"""The figure of the registry: the fastest peer's time over ours, by op and width."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator
from registry.ratios import ratios
from section_registry import TINY

from abkd_fast.plots import COLORS

Report = dict[str, Any]
TICKS = [0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def draw_ratios(reports: dict[str, Report]) -> Figure:
    """A line an op and width; colours are graphs, hollow marks bfloat16."""
    found = [
        (ours, peer)
        for ours, peer in ratios(reports["registry"])
        if peer is not None and ours["graph"] != TINY
    ]
    lines = sorted({(row["op"], int(row["width"])) for row, _ in found})
    graphs = list(dict.fromkeys(row["graph"] for row, _ in found))
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.19 * len(lines)), layout="constrained")
    for k, (op, _) in enumerate(lines):
        if k and op != lines[k - 1][0]:
            axis.axhline(k - 0.5, color="0.85", lw=0.6)
    axis.axvline(1, color="0.4", lw=1)
    for ours, peer in found:
        color = COLORS[1 + graphs.index(ours["graph"]) % (len(COLORS) - 1)]
        half = ours["dtype"] != "float32"
        axis.plot(peer["p50"] / ours["p50"], lines.index((ours["op"], int(ours["width"]))),
                  marker="o", markersize=5, ls="none", color=color, alpha=0.9,
                  markerfacecolor="white" if half else color)  # fmt: skip
    axis.set_yticks(range(len(lines)), [f"{op}, {width}" for op, width in lines])
    axis.set(xscale="log", ylim=(len(lines) - 0.5, -0.5), xlabel="fastest peer / abkd_fast")
    low, high = axis.get_xlim()
    axis.set_xticks([tick for tick in TICKS if low <= tick <= high])
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="x", color="0.9", lw=0.6)
    labels = {row["graph"]: label_of(row) for row, _ in found}
    marks = [Line2D([], [], marker="o", ls="none", markersize=5, color=COLORS[1 + k], label=label)
             for k, label in enumerate(labels.values())]  # fmt: skip
    hollow = {"markerfacecolor": "white", "color": "0.3"}
    marks += [Line2D([], [], marker="o", ls="none", markersize=5, label="bfloat16", **hollow)]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    return figure


def label_of(row: Report) -> str:
    """The graph as the case names it, which says synthetic where it is."""
    return str(row["label"])
