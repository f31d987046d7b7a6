"""Runs a study to its end, and goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from abkd_fast._storage import exclusive
from abkd_fast.study.cells import TEACHER, Cell
from abkd_fast.study.pool import Pool
from abkd_fast.study.predict import Prediction, predict
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.spec import Study


def run_study(
    study: Study, place: Path | None = None, predict_only: bool = False, retry: bool = False
) -> list[str]:
    """Run what is not done yet; writes records, frozen recipes, tables and figures.

    Args:
        study: the checked file.
        place: folder for teachers and logs; None = runs/study.
        predict_only: say how long it would take, and stop.
        retry: run again what failed before.

    Returns:
        One line for every run that failed, now or earlier, of those that were to run now.

    Raises:
        ValueError: the folder is in use, or a record is damaged.
        KeyboardInterrupt: Ctrl-C; nothing that was finished is lost.
    """
    place = Path("runs/study") if place is None else place
    console = Console(stderr=True)
    # a prediction writes nothing
    with nullcontext() if predict_only else exclusive(study.folder / "trials.jsonl"):
        schedule = Schedule(study, retry)
        pool = Pool(study.workers, study.threads, place)
        try:
            prediction = predict(schedule, pool, console)
            prediction.show(console)
            if predict_only:
                return []
            _run(schedule, pool, prediction, console)
        finally:
            pool.close()
        from abkd_fast.study.results import write_results

        write_results(schedule)
    return failures(schedule)


def failures(schedule: Schedule) -> list[str]:
    """One line for every failed run that the file, as it is now, asks for."""
    cells = {cell.key: cell for cell in schedule.asked_for()}
    records = ((cell, schedule.records(cell.kind).get(key)) for key, cell in cells.items())
    return [f"{cell.label}: {r['error']}" for cell, r in records if r and r["error"] is not None]


def _run(schedule: Schedule, pool: Pool, prediction: Prediction, console: Console) -> None:
    """Keep every worker busy until nothing is left."""
    running: dict[Future[dict[str, Any]], Cell] = {}
    with _progress(prediction, console) as finished:
        while True:
            keys = {cell.key for cell in running.values()}
            for cell in schedule.pending():
                if len(running) == pool.workers:
                    break
                if cell.key not in keys:
                    keys.add(cell.key)
                    running[pool.submit(cell)] = cell
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                record = future.result()
                keep(schedule, cell, record)
                finished(cell, record)


def keep(schedule: Schedule, cell: Cell, record: dict[str, Any]) -> None:
    """Write a record; its trace first, so that a run that is there has one."""
    trace = record.pop("trace", None)
    if trace is not None:
        schedule.traces.append({"key": cell.key, **trace})
    schedule.records(cell.kind).append(record)


@contextmanager
def _progress(prediction: Prediction, console: Console) -> Iterator[Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    begin = time.monotonic()
    with Progress(
        *columns, *times, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("runs", total=prediction.count)
        count = 0

        def finished(cell: Cell, record: dict[str, Any]) -> None:
            nonlocal count
            count += 1
            bar.update(task, advance=1, total=max(prediction.count, count))
            minutes = (time.monotonic() - begin) / 60
            line = f"{count}/{prediction.count} ({minutes:.0f} min) {_line(cell, record)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield finished


def _line(cell: Cell, record: dict[str, Any]) -> str:
    if record["error"] is not None:
        return f"{cell.label}: FAILED: {record['error']}"
    figures = record["used"] if cell.kind == TEACHER else record
    what = f"validation {figures['val']:.2f}"
    if "test" in figures:
        what += f", test {figures['test']:.2f}"
    return f"{cell.label}: {what}, {record['seconds']:.0f} s"
