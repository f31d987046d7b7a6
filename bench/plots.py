"""Figures of docs/benchmarks.md, from the JSON reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from limits import points
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from ratio_plot import draw_ratios

from abkd_fast.plots import COLORS, STYLE

Report = dict[str, Any]
MARKERS = "osD^vPX*<>h"
PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")


def best_ratio(row: Report) -> float:
    """How many times slower than ours the fastest peer is."""
    times = {name: found["p50"] for name, found in row["ms"].items()}
    ours = times.pop("abkd_fast")
    return min(times.values()) / ours


def spmm_target(width: int) -> float:
    """How many times slower than ours the fastest peer should be."""
    return 1.5 if width <= 128 else 1.2


def draw_spmm(reports: dict[str, Report]) -> Figure:
    rows = reports["spmm"]["rows"]
    widths = sorted({row["width"] for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True, layout="constrained")
    for axis, what in zip(axes, ("forward", "forward+backward"), strict=True):
        for k, name in enumerate(dict.fromkeys(row["dataset"] for row in rows)):
            found = [r for r in rows if r["dataset"] == name and r["what"] == what]
            x, y = [r["width"] for r in found], [best_ratio(r) for r in found]
            axis.plot(x, y, color=COLORS[k], marker=MARKERS[k], markersize=4, lw=1, label=name)
        target = [spmm_target(width) for width in widths]
        axis.step(widths, target, where="mid", color="gray", ls="dotted", lw=1, label="target")
        axis.set(title=what, xlabel="width", xscale="log", yscale="log")
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.xaxis.set_minor_locator(NullLocator())
        _plain_ticks(axis, [1, 1.5, 2, 3, 5, 7, 10, 15])
    axes[0].set_ylabel("fastest peer / abkd_fast")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def draw_roofline(reports: dict[str, Report]) -> Figure:
    figure, axis = plt.subplots(figsize=(8.6, 4.2), layout="constrained")
    machines = [report["machine"] for report in reports.values() if report.get("machine")]
    gemm = max(machine["gemm_gflop_s"]["float32"] for machine in machines)
    intensity = [0.02, 400.0]
    for size, text, dashes in (("16", "16 MB", "dashed"), ("1024", "1 GB", "solid")):
        rate = max(machine["copy_gb_s"][size] for machine in machines)
        label = f"copy of {text}, {rate:.0f} GB/s"
        axis.plot(
            intensity, [rate * x for x in intensity], color="gray", ls=dashes, lw=1, label=label
        )
    label = f"float32 product, {gemm:.0f} GFLOP/s"
    axis.axhline(gemm, color="gray", ls="dotted", lw=1, label=label)
    found = points(reports)
    for k, op in enumerate(dict.fromkeys(point.op for point in found)):
        ours = [point for point in found if point.op == op]
        label = "kl_div, linear, moments, max" if op == "rows" else op
        axis.scatter([p.gflop / p.gb for p in ours], [1e3 * p.gflop / p.ms for p in ours],
                     s=18, color=COLORS[k % len(COLORS)], marker=MARKERS[k], label=label,
                     alpha=0.8)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=intensity, ylim=(0.2, 3 * gemm))
    axis.set(xlabel="operations a byte", ylabel="GFLOP/s")
    axis.xaxis.set_major_formatter(PLAIN)
    axis.yaxis.set_major_formatter(PLAIN)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw_growth(reports: dict[str, Report]) -> Figure:
    rows = reports["growth"]["rows"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for k, kind in enumerate(kinds):
        found = [row for row in rows if row["kind"] == kind]
        nodes = [row["num_nodes"] for row in found]
        slope = reports["growth"]["slopes"][kind]
        axes[0].plot(nodes, [row["ns_per_edge"] for row in found], color=COLORS[k], lw=1,
                     marker=MARKERS[k], markersize=4, label=f"{kind}: {slope:.2f}")  # fmt: skip
    axes[0].set(title="time", xlabel="nodes", ylabel="ns an edge", xscale="log", ylim=(0, None))
    axes[0].legend(title="exponent of N from $10^6$ on", title_fontsize=8)
    found = [row for row in rows if row["kind"] == kinds[0]]
    nodes, peaks = [row["num_nodes"] for row in found], [row["peak_mb"] for row in found]
    axes[1].plot(nodes, peaks, color=COLORS[0], marker="o", markersize=4, lw=1, label="peak")
    line = [peaks[-1] * size / nodes[-1] for size in nodes]
    axes[1].plot(nodes, line, color="gray", ls="dotted", lw=1, label="proportional to N")
    title = f"memory: exponent {reports['growth']['slopes']['memory']:.2f}"
    axes[1].set(title=title, xlabel="nodes", ylabel="MB", xscale="log", yscale="log")
    axes[1].yaxis.set_major_formatter(PLAIN)
    axes[1].legend()
    return figure


def draw_growth_ops(reports: dict[str, Report]) -> Figure:
    """Left: time an edge. Right: memory a node."""
    rows = [row for row in reports["growth_ops"]["rows"] if "ms" in row]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for k, case in enumerate(dict.fromkeys((row["op"], row["degree"]) for row in rows)):
        found = [row for row in rows if (row["op"], row["degree"]) == case]
        nodes, label = [row["num_nodes"] for row in found], f"{case[0]}, degree {case[1]}"
        for axis, key in zip(axes, ("ns_per_edge", "bytes_per_node"), strict=True):
            axis.plot(nodes, [row[key] for row in found], color=COLORS[k], lw=1,
                      marker=MARKERS[k], markersize=4, label=label)  # fmt: skip
    axes[0].set(title="time", xlabel="nodes", ylabel="ns an edge", xscale="log", yscale="log")
    axes[1].set(title="memory", xlabel="nodes", ylabel="bytes a node", xscale="log", ylim=(0, None))
    axes[0].yaxis.set_major_formatter(PLAIN)
    axes[1].yaxis.set_major_formatter(PLAIN)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_step(reports: dict[str, Report]) -> Figure:
    """Left: shares of our step's time. Right: the fastest peer against ours."""
    rows = [row for row in reports["step"]["rows"] if row["allocator"] == "default"]
    ours = [row for row in rows if row["side"] == "abkd_fast"]
    names = [f"{row['case']} {row['dataset']}" for row in ours]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained",
                                width_ratios=[1.6, 1])  # fmt: skip
    left = [0.0] * len(ours)
    for k, group in enumerate(("layer_pair", "layers", "Adam", "torch ops", "rest")):
        shares = [100 * grouped(row)[group] / sum(grouped(row).values()) for row in ours]
        axes[0].barh(names, shares, left=left, color=COLORS[k], label=group, height=0.6)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    for k, row in enumerate(ours):
        axes[0].annotate(f"{row['median_ms']:.3g} ms", (101, k), va="center", fontsize=8)
        peers = [r for r in rows if r["side"] != "abkd_fast"
                 and (r["case"], r["dataset"]) == (row["case"], row["dataset"])]  # fmt: skip
        ratio = min(r["median_ms"] for r in peers) / row["median_ms"]
        axes[1].barh(k, ratio, color=COLORS[2], height=0.6)
        axes[1].annotate(f"{ratio:.1f}x", (ratio, k), xytext=(3, 0), va="center", fontsize=8,
                         textcoords="offset points")  # fmt: skip
    axes[0].set(xlim=(0, 116), xlabel="% of our step", xticks=range(0, 101, 20))
    axes[0].invert_yaxis()
    axes[1].set(xlabel="fastest peer / abkd_fast")
    axes[1].margins(x=0.15)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def grouped(row: Report) -> dict[str, float]:
    """The breakdown of a step in few groups, and what its median has beyond them."""
    groups = dict.fromkeys(("layer_pair", "layers", "Adam", "torch ops"), 0.0)
    for name, ms in row["breakdown"].items():
        if name.startswith("layer_pair"):
            groups["layer_pair"] += ms
        elif name == "Adam":
            groups["Adam"] += ms
        elif name in ("dense products", "other torch ops"):
            groups["torch ops"] += ms
        else:
            groups["layers"] += ms
    rest = max(0.0, row["median_ms"] - sum(groups.values()))
    return groups | {"rest": rest}


def _plain_ticks(axis: Axes, ticks: list[float]) -> None:
    low, high = axis.get_ylim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axis.yaxis.set_minor_locator(NullLocator())


FIGURES: dict[str, Callable[[dict[str, Report]], Figure]] = {
    "spmm": draw_spmm,
    "roofline": draw_roofline,
    "growth": draw_growth,
    "growth_ops": draw_growth_ops,
    "step": draw_step,
    "registry": draw_ratios,
}


def draw_all(reports: dict[str, Report], folder: Path) -> None:
    """Write every figure as ``folder/<name>.png``."""
    with plt.rc_context(STYLE):
        for name, draw in FIGURES.items():
            if name not in reports and name != "roofline":
                continue  # not measured
            figure = draw(reports)
            figure.savefig(folder / f"{name}.png", dpi=100)
            plt.close(figure)
