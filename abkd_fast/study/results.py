"""What a study hands out: rows, summaries, comparisons, tables and figures."""

from __future__ import annotations

import csv
import importlib.util
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abkd_fast._storage import write_atomically
from abkd_fast.metrics import summarise
from abkd_fast.study.cells import TEACHER, Cell
from abkd_fast.study.recipes import Recipe
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.spec import Task
from abkd_fast.study.statistics import Comparison, compare, interval

COLUMNS = (
    *("dataset", "teacher", "student", "method", "recipe", "seed", "val", "test", "parameters"),
    *(
        "compression",
        "epochs",
        "best_epoch",
        "train_seconds",
        "train_processor",
        "step_ms",
        "latency_ms",
    ),
    *("peak_bytes", "teacher_test", "teacher_sha256", "settings"),
    *("abkd_fast", "torch", "python", "numpy", "cpu", "threads", "error"),
)


@dataclass(frozen=True)
class Summary:
    """One recipe of one method on one task, over its seeds.

    Attributes:
        method: its name.
        recipe: number of the recipe, 1 the first.
        current: whether the study file describes this recipe now.
        trials: validation figures of the search's trials, None where one failed.
        val: {mean, std, n, values} over the seeds that succeeded.
        test: likewise.
        low: lower end of the 95 % interval of the mean test figure.
        high: its upper end.
        rows: the rows of the seeds that succeeded.
        settings: what the recipe sets.
    """

    method: str
    recipe: int
    current: bool
    trials: list[float | None]
    val: dict[str, Any]
    test: dict[str, Any]
    low: float
    high: float
    rows: list[dict[str, Any]]
    settings: dict[str, Any]

    def middle(self, column: str) -> float:
        """Median of a column over the seeds."""
        return float(statistics.median(row[column] for row in self.rows))


@dataclass(frozen=True)
class TaskResult:
    """All there is of one task."""

    task: Task
    teacher: dict[str, Any]
    summaries: list[Summary]
    comparisons: list[Comparison]
    pending: int
    notes: list[str]

    def current(self) -> list[Summary]:
        """Those of the recipes that the study file describes now."""
        return [summary for summary in self.summaries if summary.current]


def write_results(schedule: Schedule) -> list[TaskResult]:
    """Write runs.csv (and .parquet), results.json, tables.md, tables.tex and the figures."""
    from abkd_fast.study.figures import write_figures
    from abkd_fast.study.tables import write_tables

    folder = schedule.study.folder
    rows = [row for task in schedule.study.tasks for row in _rows(schedule, task)]
    write_csv(folder / "runs.csv", rows)
    if importlib.util.find_spec("pyarrow") is not None:
        write_parquet(folder / "runs.parquet", rows)
    found = [result for task in schedule.study.tasks if (result := _task(schedule, task))]
    text = json.dumps({"format": 1, "tasks": [_plain(result) for result in found]}, indent=1)
    _write_text(folder / "results.json", text + "\n")
    write_tables(schedule, found)
    write_figures(schedule, found)
    return found


def traces_of(schedule: Schedule, result: TaskResult) -> dict[str, list[dict[str, Any]]]:
    """Curves, norms and maps of the runs of every current recipe, by method."""
    found = {}
    for summary in result.current():
        runs = [schedule.traces.get(row["key"]) for row in summary.rows]
        found[summary.method] = [run for run in runs if run is not None]
    return {method: runs for method, runs in found.items() if runs}


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One line a run; settings as JSON."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """The same table for tools that read Parquet."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    write_atomically(path, lambda place: parquet.write_table(pyarrow.table(columns), place))


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


def cells_of(schedule: Schedule, task: Task, recipe: Recipe) -> list[Cell]:
    """Runs of a frozen recipe, done or not."""
    return list(schedule.finals(task, recipe, every=True))


def _rows(schedule: Schedule, task: Task) -> list[dict[str, Any]]:
    rows = []
    for recipe in schedule.recipes.of(task):
        for cell in cells_of(schedule, task, recipe):
            record = schedule.runs.get(cell.key)
            if record is not None:
                flat = {**record, **record.get("environment", {}), **cell.about()}
                flat["settings"] = json.dumps(flat["settings"], sort_keys=True)
                rows.append({name: flat.get(name) for name in COLUMNS} | {"key": cell.key})
    return rows


def _task(schedule: Schedule, task: Task) -> TaskResult | None:
    teacher = schedule.teachers.get(Cell(TEACHER, task).key)
    if teacher is None or teacher["error"] is not None:
        return None
    rows = _rows(schedule, task)
    methods = {method.name: method for method in schedule.methods(task)}
    summaries, pending = [], 0
    for recipe in schedule.recipes.of(task):
        named = recipe["method"], recipe["recipe"]
        mine = [row for row in rows if (row["method"], row["recipe"]) == named]
        pending += len(cells_of(schedule, task, recipe)) - len(mine)
        method = methods.get(recipe["method"])
        current = method is not None and schedule.current(task, method) == recipe
        good = [row for row in mine if row["error"] is None]
        if good:
            summaries.append(_summary(recipe, current, good))
    waiting = [m for m in methods.values() if schedule.current(task, m) is None]
    pending += sum(schedule.left(task, method) for method in waiting)
    order = list(methods)
    place = {name: index for index, name in enumerate(order)}
    summaries.sort(key=lambda s: (not s.current, place.get(s.method, len(place)), s.recipe))
    compared = [c for name in schedule.study.against for c in _against(name, summaries)]
    return TaskResult(task, teacher, summaries, compared, pending, _notes(schedule, task, rows))


def _summary(recipe: Recipe, current: bool, rows: list[dict[str, Any]]) -> Summary:
    test = [row["test"] for row in rows]
    low, high = interval(test) if len(test) > 1 else (test[0], test[0])
    return Summary(
        method=recipe["method"],
        recipe=recipe["recipe"],
        current=current,
        trials=recipe.get("trials", []),
        val=summarise([row["val"] for row in rows]),
        test=summarise(test),
        low=low,
        high=high,
        rows=rows,
        settings=recipe["settings"],
    )


def _against(name: str, summaries: list[Summary]) -> list[Comparison]:
    figures = {
        s.method: {row["seed"]: row["test"] for row in s.rows} for s in summaries if s.current
    }
    base = figures.pop(name, None)
    return [] if base is None else compare(name, base, figures)


def _notes(schedule: Schedule, task: Task, rows: list[dict[str, Any]]) -> list[str]:
    """What a reader must know beside the table."""
    notes = []
    for method in schedule.methods(task):
        if method.unequal is not None:
            notes.append(f"{method.name}: another budget, {method.unequal}.")
        if schedule.current(task, method) is None:
            notes.append(f"{method.name}: no recipe yet, or every trial of it failed.")
    teachers = sorted({row["teacher_sha256"] for row in rows if row["teacher_sha256"]})
    if len(teachers) > 1:
        notes.append(f"The runs are of {len(teachers)} teachers: {', '.join(teachers)}.")
    counts: dict[str, int] = {}
    for recipe in schedule.recipes.of(task):
        counts[recipe["method"]] = counts.get(recipe["method"], 0) + 1
    if len(set(counts.values())) > 1:
        most = ", ".join(f"{name} {count}" for name, count in counts.items())
        notes.append(f"Recipes were not frozen equally often: {most}.")
    return notes


def _plain(result: TaskResult) -> dict[str, Any]:
    summaries = []
    for summary in result.summaries:
        fields = asdict(summary)
        del fields["rows"]
        summaries.append(fields)
    task = result.task
    return {
        "dataset": task.dataset,
        "teacher": {"model": task.teacher, **result.teacher},
        "student": task.student,
        "summaries": summaries,
        "comparisons": [asdict(comparison) for comparison in result.comparisons],
        "pending": result.pending,
        "notes": result.notes,
    }
