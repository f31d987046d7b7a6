"""Figures of a study: accuracies, accuracy against size and latency, curves and maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abkd_fast.plots import COLORS, DASHES, STYLE, attention_map, save
from abkd_fast.study.results import Summary, TaskResult
from abkd_fast.study.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def write_figures(schedule: Schedule, found: Sequence[TaskResult]) -> None:
    """PNG files in the study's folder; of what there are no runs yet there is no file."""
    from matplotlib import style

    folder = schedule.study.folder
    drawn = [result for result in found if _current(result)]
    if not drawn:
        return
    with style.context(["default", STYLE]):
        save(accuracies(drawn), "Test accuracy", folder / "accuracy.png")
        save(pareto(drawn), "Accuracy against cost", folder / "pareto.png")
        for result in drawn:
            name = _file_name(result)
            traces = {
                summary.method: [schedule.traces.get(row["key"]) for row in summary.rows]
                for summary in _current(result)
            }
            kept = {m: [t for t in found if t is not None] for m, found in traces.items()}
            figure = training({m: t for m, t in kept.items() if t})
            save(figure, f"Training, {result.task.name}", folder / f"training-{name}.png")
    for result in drawn:
        _maps(schedule, result)


def accuracies(found: Sequence[TaskResult]) -> Figure:
    """For each task and method every seed, the mean and its 95 % interval; the teacher dashed."""
    from matplotlib.figure import Figure

    most = max(len(_current(result)) for result in found)
    figure = Figure(figsize=(1.2 + 3.4 * len(found), 1.3 + 0.28 * most), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, result in zip(panels, found, strict=True):
        names = []
        for place, summary in enumerate(_current(result)):
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

    Bars are the 95 % intervals; what no other student beats in both is ringed.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(result.task.dataset for result in found))
    figure = Figure(figsize=(9.6, 0.6 + 2.9 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 2, squeeze=False, sharey="row")
    methods = list(dict.fromkeys(s.method for result in found for s in _current(result)))
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
    points: list[tuple[float, float]] = []
    for place, method in enumerate(methods):
        summaries = [s for result in found for s in _current(result) if s.method == method]
        # students of one size would hide each other
        shift = 1 + 0.05 * (place - (len(methods) - 1) / 2) if column == "parameters" else 1.0
        x = [s.middle(column) * shift for s in summaries]
        y = [s.test["mean"] for s in summaries]
        bars = [[m - s.low for m, s in zip(y, summaries, strict=True)],
                [s.high - m for m, s in zip(y, summaries, strict=True)]]  # fmt: skip
        axes.errorbar(
            x, y, bars, fmt=_MARKERS[place % len(_MARKERS)], color=COLORS[place % len(COLORS)],
            ms=4.5, elinewidth=0.8, label=method,
            markerfacecolor=COLORS[place % len(COLORS)] if place < len(COLORS) else "white",
        )  # fmt: skip
        points += zip([s.middle(column) for s in summaries], y, strict=True)
    if column == "parameters":
        for teacher in {r.task.teacher: r.teacher for r in found}.values():
            axes.plot(teacher["parameters"], teacher["used"]["test"], "*", ms=10, color="#777777",
                      label="teacher")  # fmt: skip
    axes.set_xscale("log")
    axes.grid(alpha=0.25, linewidth=0.6)


def training(traces: dict[str, list[dict[str, Any]]]) -> Figure:
    """Validation accuracy, and the norm of the gradient, against the epoch: means over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (method, runs) in enumerate(traces.items()):
        line: dict[str, Any] = {"color": COLORS[place % len(COLORS)], "linewidth": 1.2}
        line["linestyle"] = DASHES[place // len(COLORS) % len(DASHES)]
        metric = next(name for name in runs[0] if name.startswith("val_") and name != "val_loss")
        length = min(len(run["epoch"]) for run in runs)
        epochs = runs[0]["epoch"][:length]
        for axes, name in ((left, metric), (right, "gradient")):
            mean = np.mean([run[name][:length] for run in runs], axis=0)
            axes.plot(epochs, mean, label=f"{method} ({len(runs)})", **line)
    left.set_ylabel("validation accuracy (%), mean over seeds")
    right.set_ylabel("norm of the student's gradient, mean over seeds")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.margins(x=0.01)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure


def _maps(schedule: Schedule, result: TaskResult) -> None:
    """The attention of every method that has any, of its run that is best on validation."""
    for summary in _current(result):
        row = max(summary.rows, key=lambda row: row["val"])
        trace = schedule.traces.get(row["key"])
        if trace is None or "attention" not in trace:
            continue
        name = f"attention-{_file_name(result)}-{_slug(summary.method)}.png"
        title = f"{summary.method}, {result.task.name}, seed {row['seed']}"
        attention_map(torch.tensor(trace["attention"]), schedule.study.folder / name, title=title)


def _current(result: TaskResult) -> list[Summary]:
    return [summary for summary in result.summaries if summary.current]


def _file_name(result: TaskResult) -> str:
    task = result.task
    return "-".join(_slug(part) for part in (task.dataset, task.teacher, task.student))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
