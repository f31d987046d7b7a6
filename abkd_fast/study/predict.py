"""How long what is left of a study will take."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from abkd_fast.study.cells import FINAL, TEACHER, TIMING, TRIAL, Cell
from abkd_fast.study.pool import Pool
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.spec import Task

Cost = tuple[float, float]
_Key = tuple[str, str, str, str]  # data set, teacher, student, method


@dataclass(frozen=True)
class Share:
    """Runs to come of one kind, and what one of them takes.

    Attributes:
        dataset: of the runs.
        student: likewise.
        method: likewise.
        count: how many.
        cost: (seconds, seconds of processor time) of one, None where that could not be timed.
        source: where the cost is from.
    """

    dataset: str
    student: str
    method: str
    count: int
    cost: Cost | None
    source: str


@dataclass(frozen=True)
class Prediction:
    """What is left to run.

    Attributes:
        shares: by data set and method.
        workers: runs at a time.
    """

    shares: list[Share]
    workers: int

    @property
    def count(self) -> int:
        """Runs to come."""
        return sum(share.count for share in self.shares)

    def hours(self) -> Cost:
        """Hours with the machine as busy as it was, and with all of it to the study."""
        costs = [(share.count, share.cost) for share in self.shares if share.cost is not None]
        wall, processor = (sum(count * cost[i] for count, cost in costs) for i in (0, 1))
        return wall / self.workers / 3600, processor / self.workers / 3600

    def show(self, console: Console) -> None:
        """Print a table and the sum."""
        if not self.count:
            console.print("every run of this study is done")
            return
        table = Table("data set", "student", "method", "runs", "s a run", "processor s", "from")
        for share in self.shares:
            seconds = ("?", "?") if share.cost is None else tuple(f"{x:.1f}" for x in share.cost)
            cells = (share.dataset, share.student, share.method, str(share.count), *seconds)
            table.add_row(*(Text(cell) for cell in (*cells, share.source)))
        console.print(table)
        wall, processor = self.hours()
        console.print(
            f"{self.count} runs, {self.workers} at a time: about {wall:.1f} hours on a machine as "
            f"busy as now, {processor:.1f} hours on one that does nothing else.\nA teacher counts "
            "with all its epochs, though it may stop early.",
            highlight=False,
        )


def predict(schedule: Schedule, pool: Pool, console: Console) -> Prediction:
    """Cost of a run from finished ones of its method, or from a few epochs of it now."""
    counts, costs = _counts(schedule), _finished(schedule)
    wanted = {key: cell for key, (cell, _) in counts.items() if key not in costs}
    if wanted:
        console.print(f"timing a few epochs of {len(wanted)} kinds of runs", highlight=False)
    jobs = {key: pool.submit(cell) for key, cell in wanted.items()}
    costs |= {key: _cost(wanted[key], job.result()) for key, job in jobs.items()}
    shares = []
    for key, (_, count) in counts.items():
        source = "timed" if key in wanted else "runs"
        shares.append(Share(key[0], key[2], key[3] or "teacher", count, costs[key], source))
    shares += [_to_be_joined(schedule, task, costs) for task in schedule.study.wanted]
    return Prediction([share for share in shares if share.count], schedule.study.workers)


def _counts(schedule: Schedule) -> dict[_Key, tuple[Cell, int]]:
    """What is left: key -> (a run to time, how many)."""
    found: dict[_Key, tuple[Cell, int]] = {}
    for task in schedule.study.wanted:
        teacher = Cell(TEACHER, task)
        if schedule.teachers.get(teacher.key) is None and teacher.config.trains_teacher:
            # a student as large as the teacher costs as much an epoch
            same = replace(task, student=task.teacher)
            found[task.dataset, task.teacher, task.teacher, ""] = Cell(TIMING, same), 1
        for method in schedule.methods(task):
            left = schedule.left(task, method)
            if left:
                key = task.dataset, task.teacher, task.student, method.name
                found[key] = Cell(TIMING, task, method.name, method.settings), left
    return found


def _to_be_joined(schedule: Schedule, task: Task, costs: dict[_Key, Cost | None]) -> Share:
    """The methods that will follow from frozen recipes, as dear as the mean of the candidates."""
    rule, study = schedule.study.best_with, schedule.study
    count, cost, name = 0, None, ""
    if rule is not None and len(schedule.methods(task)) == len(study.methods):
        trials, seeds, finals = study.budget(study.methods[rule.method])
        name, count = f"{rule.method} + best", rule.count * (trials * seeds + finals)
        known = [
            costs.get((task.dataset, task.teacher, task.student, other)) for other in rule.among
        ]
        cost = _mean([entry for entry in known if entry is not None])
    return Share(task.dataset, task.student, name, count, cost, "mean")


def _finished(schedule: Schedule) -> dict[_Key, Cost | None]:
    """Mean cost of finished runs."""
    found: dict[_Key, list[Cost]] = defaultdict(list)
    for kind in (TRIAL, FINAL):
        for record in schedule.records(kind).all():
            if record["error"] is None:
                key = record["dataset"], record["teacher"], record["student"], record["method"]
                found[key].append((record["seconds"], record["processor"]))
    return {key: _mean(costs) for key, costs in found.items()}


def _mean(costs: list[Cost]) -> Cost | None:
    if not costs:
        return None
    wall, processor = (sum(cost[i] for cost in costs) / len(costs) for i in (0, 1))
    return wall, processor


def _cost(cell: Cell, record: dict[str, Any]) -> Cost | None:
    """What the whole run takes, from one of a few epochs; None where that failed."""
    if record["error"] is not None:
        return None
    epochs = cell.config.train.epochs
    if not cell.method:
        epochs = cell.config.teacher_train.epochs * cell.task.teacher_seeds
    more = epochs - record["epochs"]
    return (
        record["seconds"] + more * record["epoch_seconds"],
        record["processor"] + more * record["epoch_processor"],
    )
