"""Figures of a latency report, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abkd_fast.latency.subjects import FULL
from abkd_fast.plots import COLORS, STYLE, save
from abkd_fast.task import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 24  # bars of one model
_DASHES: dict[str, Any] = {
    "server": "solid",
    "eager": "solid",
    "flat": "dashed",
    "compile": "dotted",
    "torch-export": "dashdot",
    "aoti": (0, (6, 1.5, 1, 1.5, 1, 1.5)),
    "cuda_graph": (0, (8, 3)),
}
Models = Sequence[Mapping[str, Any]]


def draw(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write cdf.png, layers.png and pareto.png; returns their paths by name."""
    from matplotlib import style

    models = report["models"]
    title = f"{report['dataset']['name']}, {_threads(report)}"
    drawn = {"cdf": _cdf, "layers": _layers, "pareto": _pareto}
    with style.context(["default", STYLE]):
        return {
            name: save(make(models), f"{_HEADINGS[name]}: {title}", folder / f"{name}.png")
            for name, make in drawn.items()
        }


_HEADINGS = {
    "cdf": "share of calls within a time",
    "layers": "time of a full-graph pass by layer",
    "pareto": "accuracy and latency",
}


def _threads(report: Mapping[str, Any]) -> str:
    count = report["environment"]["threads"]
    return "1 thread" if count == 1 else f"{count} threads"


def _cdf(models: Models) -> Figure:
    """One panel for each kind of query; a colour for each model, a dash for each form."""
    kinds = [kind for kind in models[0]["queries"] if any(m["queries"][kind] for m in models)]
    figure, panels = _panels(len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        for model, color in zip(models, _colors(len(models)), strict=True):
            for form, found in model["queries"][kind].items():
                times = np.sort(found["samples_ns"]) * 1e-6
                share = np.arange(1, len(times) + 1) / len(times)
                axes.step(times, share, where="post", color=color, linestyle=_DASHES[form])
        _log_scale(axes)
        axes.set_title(kind, loc="left")
        axes.set_xlabel("ms (log scale)")
        axes.grid(alpha=0.25, linewidth=0.6)
    _legend_below(figure, models)
    panels[0].set_ylabel("share of calls")
    return figure


def _log_scale(axes: Axes) -> None:
    """Milliseconds on a log scale, with plain numbers that have room beside each other."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    wide = high > 5 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _layers(models: Models) -> Figure:
    """One panel for each model: its layers' bars, in order."""
    figure, panels = _panels(len(models))
    for axes, model, color in zip(panels, models, _colors(len(models)), strict=True):
        rows = _merged(model["layers"])
        place = np.arange(len(rows))
        axes.barh(place, [row["ms"] for row in rows], color=color, height=0.75)
        axes.set_yticks(place, [row["layer"] or "(model)" for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_title(model["name"], loc="left", parse_math=False)
        axes.set_xlabel("ms")
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    return figure


def _pareto(models: Models) -> Figure:
    """Test score against the median of a full-graph pass; the undominated ones joined."""
    figure, (axes,) = _panels(1)
    points = [(fastest(model), model["accuracy"]["test"]) for model in models]
    front = [p for p in points if not any(_beats(q, p) for q in points)]
    axes.plot(*zip(*sorted(front), strict=True), color="#999999", linewidth=1, zorder=1)
    for model, (ms, score), color in zip(models, points, _colors(len(models)), strict=True):
        marker = "s" if model["role"] == "teacher" else "o"
        axes.scatter([ms], [score], s=60, marker=marker, color=color, label=model["name"], zorder=2)
    axes.margins(0.15)
    _log_scale(axes)
    axes.set_xlabel("p50 of a full-graph pass, fastest form (ms, log scale)")
    axes.set_ylabel(f"test {METRICS[models[0]['metric']]} (%)")
    axes.grid(alpha=0.25, linewidth=0.6)
    _legend(axes)
    return figure


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether (ms, score) is as good in both and better in one; 5 % of time are noise."""
    better = one[1] > other[1] or (one[1] == other[1] and one[0] < other[0])
    return better and one[0] <= 1.05 * other[0]


def fastest(model: Mapping[str, Any]) -> float:
    """p50 in ms of the fastest form of the full-graph pass."""
    return min(row["p50"] for row in model["queries"][FULL].values())


def _merged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring layers of a deep model in one bar, so that their names can be read."""
    share = max(1, -(-len(rows) // _MOST))
    blocks = [rows[first : first + share] for first in range(0, len(rows), share)]
    return [
        {
            "layer": " to ".join(dict.fromkeys([block[0]["layer"], block[-1]["layer"]])),
            "ms": sum(row["ms"] for row in block),
        }
        for block in blocks
    ]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, list(panels[:count])


def _colors(count: int) -> list[str]:
    return [COLORS[place % len(COLORS)] for place in range(count)]


def _legend(axes: Axes) -> None:
    for text in axes.legend(loc="best").get_texts():
        text.set_parse_math(False)


def _legend_below(figure: Figure, models: Models) -> None:
    """Models' colours and full-graph passes' dashes, under the panels, where they hide no curve."""
    from matplotlib.lines import Line2D

    colors = zip(models, _colors(len(models)), strict=True)
    lines = [Line2D([], [], color=color, label=model["name"]) for model, color in colors]
    forms = dict.fromkeys(form for model in models for form in model["queries"][FULL])
    lines += [Line2D([], [], color="#777777", linestyle=_DASHES[f], label=f) for f in forms]
    legend = figure.legend(handles=lines, loc="outside lower left", ncols=4, handlelength=4)
    for text in legend.get_texts():
        text.set_parse_math(False)
