"""What a run hands to people: a table for the terminal and one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from abkd_fast._pages import embed, render
from abkd_fast._storage import write_atomically
from abkd_fast.plots import History, attention_map, curves
from abkd_fast.task import METRICS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT = 1
KEYS = (
    "dataset",
    "teacher",
    "student",
    "objective",
    "compression_ratio",
    "step_ms",
    "peak_bytes",
    "seeds",
    "best_epoch",
    "epochs",
    "environment",
    "config",
    "command",
    "created",
)
MIB = 2**20
NONE = "–"


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """Return the teacher beside the student: size, accuracies, step time and memory.

    Args:
        metrics: the content of a metrics.json.

    Returns:
        A rich table; one column of figures where there is no teacher.

    Raises:
        ValueError: if metrics has another format or lacks a key.
    """
    _check_metrics(metrics)
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a data set's name is no markup.
    table = Table(title=Text(f"{metrics['dataset']['name']}, objective {metrics['objective']}"))
    table.add_column("")
    columns = ("teacher", "student") if metrics["teacher"] else ("model",)
    for column in columns:
        table.add_column(column, justify="right")
    for label, teacher, student in _rows(metrics):
        cells = (label, teacher, student) if metrics["teacher"] else (label, student)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def print_summary(metrics: Mapping[str, Any], console: Console | None = None) -> None:
    """Print :func:`summary_table`, by default to standard output.

    Raises:
        ValueError: if metrics has another format or lacks a key.
    """
    table = summary_table(metrics)
    if console is None:
        from rich.console import Console

        console = Console()
    console.print(table)


def write_report(
    folder: Path,
    metrics: Mapping[str, Any],
    histories: Sequence[History],
    attention: Tensor | None = None,
    attention_history: Tensor | None = None,
    attention_epochs: Sequence[int] | None = None,
    dissimilarity: Tensor | None = None,
) -> Path:
    """Write curves.png, the maps' PNG files and report/index.html into a run folder.

    The HTML file loads nothing and runs no script, so it can be mailed alone. Each file
    replaces an older one in one step.

    Args:
        folder: run folder; made where missing.
        metrics: the content of a metrics.json.
        histories: for each seed, in the order of metrics["seeds"], its epochs (see plots.curves).
        attention: [T, S] at the kept epoch of the seed that is best on validation, or None.
        attention_history: [K, T, S] of that seed, or None.
        attention_epochs: K epoch numbers of ``attention_history``.
        dissimilarity: [T, S] of that seed, or None. Without a map its file is not written.

    Returns:
        Path of report/index.html.

    Raises:
        ValueError: if metrics has another format or lacks a key, histories do not match its
            seeds, or a map is not as plots.attention_map needs it.
    """
    _check_metrics(metrics)
    if len(histories) != len(metrics["seeds"]):
        raise ValueError(
            f"histories must have one entry for each seed {metrics['seeds']}, "
            f"got {len(histories)}; pass DistillResult.history of each run"
        )
    folder = Path(folder)
    title = f"{metrics['dataset']['name']}: {' → '.join(_models(metrics))}"
    best, shown = metrics["best_epoch"], _shown(metrics)
    heading = f"{title}, {_count(len(histories), 'seed')}"
    figures = {"curves": curves(histories, folder / "curves.png", heading, best_epochs=best)}
    heading = f"{title}, seed {metrics['seeds'][shown]}"
    if attention is not None:
        figures["attention"] = attention_map(
            attention,
            folder / "attention.png",
            history=attention_history,
            epochs=attention_epochs,
            best_epoch=best[shown],
            title=f"attention, {heading}",
        )
    if dissimilarity is not None:
        label, path = "dissimilarity", folder / "dissimilarity.png"
        figures[label] = attention_map(
            dissimilarity, path, title=f"{label}, {heading}", label=label
        )
    html = _render(metrics, histories, attention, attention_history, figures)
    index = folder / "report" / "index.html"
    write_atomically(index, lambda temporary: _write_text(temporary, html))
    return index


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def _render(
    metrics: Mapping[str, Any],
    histories: Sequence[History],
    attention: Tensor | None,
    attention_history: Tensor | None,
    figures: Mapping[str, Path],
) -> str:
    seeds = zip(metrics["seeds"], metrics["best_epoch"], histories, strict=True)
    return render(
        "report.html",
        {
            "accuracy": _accuracy,
            "count": _count,
            "number": _number,
            "ratio": _ratio,
            "size": _size,
        },
        metrics=metrics,
        models=_models(metrics),
        metric=_metric(metrics),
        rows=_rows(metrics),
        maps=None if attention is None else _map_tables(attention),
        images={name: embed(path) for name, path in figures.items()},
        settings=list(_flatten(metrics["config"])),
        first_epoch=histories[0][0]["epoch"],
        unfinished=[seed for seed, best, history in seeds if best == history[-1]["epoch"]],
        shown=metrics["seeds"][_shown(metrics)],
        has_history=attention_history is not None and len(attention_history) > 1,
        mib=MIB,
    )


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    if metrics.get("format") != FORMAT:
        raise ValueError(
            f"metrics must have format {FORMAT}, got {metrics.get('format')!r}; "
            "write it with this version of abkd_fast"
        )
    if missing := [key for key in KEYS if key not in metrics]:
        raise ValueError(
            f"metrics must have the keys {', '.join(KEYS)}, lacks {', '.join(missing)}; "
            "pass the content of a metrics.json"
        )


def _shown(metrics: Mapping[str, Any]) -> int:
    """Return the position of the seed that is best on validation, the first of equals."""
    values = metrics["student"]["val"]["values"]
    return max(range(len(values)), key=values.__getitem__)


def _models(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of teacher, if any, and student."""
    models = [metrics["teacher"], metrics["student"]]
    return [str(model["model"]) for model in models if model]


def _accuracy(stat: Mapping[str, Any], unit: str = "") -> str:
    spread = "" if stat["std"] is None else f" ± {stat['std']:.2f}"
    return f"{stat['mean']:.2f}{spread}{unit} (n = {stat['n']})"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _size(model: Mapping[str, Any] | None) -> str:
    """Return the number of parameters; a teacher known by its cached states alone has none."""
    return NONE if model is None or model["parameters"] is None else f"{model['parameters']:,}"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


def _ratio(value: float) -> str:
    return f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def _metric(metrics: Mapping[str, Any]) -> str:
    """Return the name of what the run is judged by; runs of old are judged by accuracy."""
    return METRICS[metrics.get("metric", "acc")]


def _rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (what, teacher, student) of the summary; the teacher's cells may be dashes."""
    teacher, student = metrics["teacher"], metrics["student"]
    rows = [("model", teacher["model"] if teacher else NONE, student["model"])]
    rows.append(("parameters", _size(teacher), _size(student)))
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        cell = _accuracy(teacher[split]) if teacher else NONE
        rows.append((f"{name} {_metric(metrics)} (%)", cell, _accuracy(student[split])))
    for metric in [name for name in student.get("test_scores", {}) if name != metrics["metric"]]:
        cells = [
            _accuracy(side["test_scores"][metric]) if side else NONE for side in (teacher, student)
        ]
        rows.append((f"test {METRICS[metric]} (%)", cells[0], cells[1]))
    if metrics["compression_ratio"] is not None:
        rows.append(("compression", "1×", _ratio(metrics["compression_ratio"])))
    rows.append(("training step, p50 (ms)", NONE, _number(metrics["step_ms"]["p50"])))
    rows.append(("peak memory (MiB)", NONE, f"{metrics['peak_bytes'] / MIB:,.0f}"))
    return rows


def _map_tables(attention: Tensor) -> dict[str, Any]:
    """Return the map [T, S] as table cells, and what it says about each student layer.

    ``evenness`` is the mean entropy of a row over that of a uniform row: 1 where attention
    makes no choice at all, None where there is one student layer and so no choice.
    """
    values = attention.detach().cpu().double()
    layers, width = values.shape
    mass = values.sum(0)
    # A student layer that gets nothing has no mean and no strongest teacher layer.
    share = 100 * mass / mass.sum()
    depth = torch.arange(1, layers + 1, dtype=values.dtype) @ values / mass
    peak = (values.argmax(0) + 1).double().where(mass > 0, math.nan)
    rows = values / values.sum(1, keepdim=True)
    entropy = torch.special.entr(rows).sum(1).nanmean().item()
    return {
        "cells": values.tolist(),
        "top": values.max().item() or 1.0,
        "students": torch.stack([share, depth, peak], 1).tolist(),
        "evenness": entropy / math.log(width) if width > 1 and mass.sum() > 0 else None,
    }


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as (dotted name, value)."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)
