"""Figures of a study: accuracies, accuracy against size and latency, curves and maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abkd_fast.plots import COLORS, DASHES, STYLE, attention_map, save
from abkd_fast.study.results import Summary, TaskResult, traces_of
from abkd_fast.study.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def write_figures(schedule: Schedule, found: Sequence[TaskResult]) -> None:
    """PNG files in the study's folder; of what there are no runs yet there is no file."""
    from matplotlib import style

    folder = schedule.study.folder
    drawn = [result for result in found if result.current()]
    if not drawn:
        return
    with style.context(["default", STYLE]):
        save(accuracies(drawn), "Test accuracy", folder / "accuracy.png")
        save(pareto(drawn), "Accuracy against cost", folder / "pareto.png")
        for result in drawn:
            name, title = _file_name(result), result.task.name
            traces = traces_of(schedule, result)
            if traces:
                save(training(traces), f"Training, {title}", folder / f"training-{name}.png")
            weighted = {
                method: runs
                for method, runs in traces.items()
                if any(name.startswith("norm.") for name in runs[0])
            }
            if weighted:
                save(collapse(weighted), f"Norms, {title}", folder / f"norms-{name}.png")
    for result in drawn:
        _maps(schedule, result)


def accuracies(found: Sequence[TaskResult]) -> Figure:
    """For each task and method every seed, the mean and its 95 % interval; the teacher dashed."""
    from matplotlib.figure import Figure

    most = max(len(result.current()) for result in found)
    figure = Figure(figsize=(1.2 + 3.4 * len(found), 1.3 + 0.28 * most), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, result in zip(panels, found, strict=True):
        names = []
        for place, summary in enumerate(result.current()):
            names.append(f"{summary.method} ({summary.test['n']})")
            values = summary.test["values"]
            axes.scatter(values, [place + 0.18] * len(values), s=9, color=COLORS[2], alpha=0.45,
                         linewidth=0)  # fmt: skip
            axes.plot([summary.low, summary.high], [place - 0.12] * 2, color=COLORS[0], lw=1.4)
            axes.plot(summary.test["mean"], place - 0.12, "o", color=COLORS[0], ms=4)
        teacher = result.teacher["used"]["test"]
        axes.axvline(teacher, color=COLORS[1], linestyle="dashed", linewidth=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.7)
        axes.set_xlabel("test accuracy (%)")
        axes.set_title(f"{result.task.dataset}: {result.task.student}", parse_math=False)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.annotate("teacher", (teacher, -0.68), (-3, -1), textcoords="offset points",
                      ha="right", va="top", fontsize=7, color=COLORS[1])  # fmt: skip
    return figure


def pareto(found: Sequence[TaskResult]) -> Figure:
    """A row for each data set: mean test accuracy against parameters, and against latency.

    Bars are the 95 % intervals; methods whose students cost the same stand side by side.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.task.dataset for result in found))
    figure = Figure(figsize=(9.6, 0.6 + 2.9 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    methods = list(dict.fromkeys(s.method for result in found for s in result.current()))
    costs = (("parameters", "parameters"), ("latency_ms", "inference on all nodes (ms)"))
    for row, name in zip(panels, names, strict=True):
        mine = [result for result in found if result.task.dataset == name]
        for axes, (column, label) in zip(row, costs, strict=True):
            _cost_panel(axes, mine, methods, column)
            axes.set_xlabel(label)
        row[0].set_ylabel(f"{name}: test accuracy (%)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _cost_panel(
    axes: Axes, found: Sequence[TaskResult], methods: Sequence[str], column: str
) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

    for place, method in enumerate(methods):
        # students of one size would hide each other
        shift = 1 + 0.03 * (place - (len(methods) - 1) / 2)
        pairs = [(_cost(r, s, column), s) for r in found for s in r.current() if s.method == method]
        x, y = [shift * cost for cost, _ in pairs], [s.test["mean"] for _, s in pairs]
        down = [max(s.test["mean"] - s.low, 0.0) for _, s in pairs]  # rounding
        up = [max(s.high - s.test["mean"], 0.0) for _, s in pairs]
        color = COLORS[place % len(COLORS)]
        turn = place // len(COLORS)  # filled, open, then filled again with other markers
        face = "white" if turn % 2 else color
        marker = _MARKERS[(place + turn // 2) % len(_MARKERS)]
        look: dict[str, Any] = {
            "color": color,
            "markerfacecolor": face,
            "ms": 4.5,
            "elinewidth": 0.8,
        }
        axes.errorbar(x, y, [down, up], fmt=marker, label=method, **look)
    for teacher in {r.task.teacher: r.teacher for r in found}.values():
        at = teacher[column], teacher["used"]["test"]
        if at[0] is None:  # a teacher of the user's own
            continue
        axes.plot(*at, "*", ms=10, color="#777777", label="teacher")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if column == "parameters" else plain)
    axes.margins(x=0.1)
    axes.grid(alpha=0.25, linewidth=0.6)


def _cost(result: TaskResult, summary: Summary, column: str) -> float:
    """Parameters; or the latency of students of that size, whatever they were trained by."""
    if column == "parameters":
        return summary.middle(column)
    size = summary.middle("parameters")
    alike = [s.middle(column) for s in result.current() if s.middle("parameters") == size]
    return sorted(alike)[len(alike) // 2]


_Traces = dict[str, list[dict[str, Any]]]


def training(traces: _Traces) -> Figure:
    """Validation accuracy and loss against the epoch: means over the seeds of each method."""
    metric = next(name for name in next(iter(traces.values()))[0] if re.match("val_(?!loss)", name))
    panels = {metric: "validation accuracy (%)", "val_loss": "validation loss"}
    return _panels(traces, panels, log=())


def collapse(traces: _Traces) -> Figure:
    """Norms over training: of the student's gradient, of the objective's weights and gradient."""
    totals: _Traces = {}
    for method, runs in traces.items():
        totals[method] = [
            run | {"weights": _total(run, "norm."), "moved": _total(run, "gradient.")}
            for run in runs
        ]
    panels = {
        "gradient": "gradient of the student",
        "weights": "weights of the objective",
        "moved": "gradient of the objective's weights",
    }
    return _panels(totals, {k: f"norm: {v}" for k, v in panels.items()}, log=tuple(panels))


def _panels(traces: _Traces, panels: dict[str, str], log: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.2 * len(panels), 3.9), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for place, (method, runs) in enumerate(traces.items()):
            length = min(len(run["epoch"]) for run in runs)
            mean = np.mean([run[name][:length] for run in runs], axis=0)
            color, dash = COLORS[place % len(COLORS)], DASHES[place // len(COLORS) % len(DASHES)]
            look: dict[str, Any] = {
                "color": color,
                "linestyle": dash,
                "label": f"{method} ({len(runs)})",
            }
            axes.plot(runs[0]["epoch"][:length], mean, linewidth=1.2, **look)
        axes.set_ylabel(label)
        axes.set_yscale("log" if name in log else "linear")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(x=0.01)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _total(run: dict[str, Any], prefix: str) -> list[float]:
    """Norm of all parts together, at every epoch."""
    parts = [values for name, values in run.items() if name.startswith(prefix)]
    return [float(np.linalg.norm(values)) for values in zip(*parts, strict=True)]


def _maps(schedule: Schedule, result: TaskResult) -> None:
    """The attention of every method that has any, of its run that is best on validation."""
    for summary in result.current():
        row = max(summary.rows, key=lambda row: row["val"])
        trace = schedule.traces.get(row["key"])
        if trace is None or "attention" not in trace:
            continue
        name = f"attention-{_file_name(result)}-{_slug(summary.method)}.png"
        title = f"{summary.method}, {result.task.name}, seed {row['seed']}"
        attention_map(torch.tensor(trace["attention"]), schedule.study.folder / name, title=title)


def _file_name(result: TaskResult) -> str:
    task = result.task
    return "-".join(_slug(part) for part in (task.dataset, task.teacher, task.student))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
