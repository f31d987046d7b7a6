"""How long what is left of a study will take."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from abkd_fast.study.cells import FINAL, TEACHER, TIMING, TRIAL, Cell
from abkd_fast.study.pool import Pool
from abkd_fast.study.schedule import Schedule
from abkd_fast.study.spec import Method, Task


@dataclass(frozen=True)
class Share:
    """Runs to come of one kind, and the seconds that one of them takes."""

    dataset: str
    student: str
    method: str
    count: int
    seconds: float | None
    measured: bool


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

    @property
    def hours(self) -> float:
        """Hours to come; runs that could not be timed count nothing."""
        total = sum(share.count * (share.seconds or 0.0) for share in self.shares)
        return total / self.workers / 3600

    def show(self, console: Console) -> None:
        """Print a table and the sum."""
        if not self.count:
            console.print("every run of this study is done")
            return
        table = Table("data set", "student", "method", "runs", "s a run", "from", title="to run")
        for share in self.shares:
            seconds = "?" if share.seconds is None else f"{share.seconds:.1f}"
            source = "finished runs" if share.measured else "a few epochs"
            cells = (share.dataset, share.student, share.method, str(share.count), seconds, source)
            table.add_row(*(cell.replace("[", "\\[") for cell in cells))
        console.print(table)
        console.print(
            f"{self.count} runs, about {self.hours:.1f} hours with {self.workers} at a time; "
            "a teacher counts with all its epochs, though it may stop early",
            highlight=False,
        )


def predict(schedule: Schedule, pool: Pool, console: Console) -> Prediction:
    """Seconds of a run from finished ones of its method, or from a few epochs of it now."""
    counts = _counts(schedule)
    known = _finished(schedule)
    wanted = {key: cell for key, (cell, _) in counts.items() if key not in known}
    timed: dict[tuple[str, str, str], float | None] = {}
    if wanted:
        console.print(f"timing a few epochs of {len(wanted)} kinds of runs", highlight=False)
    jobs = {key: pool.submit(cell) for key, cell in wanted.items()}
    for key, job in jobs.items():
        timed[key] = _seconds(counts[key][0], job.result())
    shares = []
    for key, (_, count) in counts.items():
        name = "teacher" if not key[2] else key[2]
        seconds = known.get(key, timed.get(key))
        shares.append(Share(key[0], key[1], name, count, seconds, key in known))
    return Prediction(shares, schedule.study.workers)


_Key = tuple[str, str, str]


def _counts(schedule: Schedule) -> dict[_Key, tuple[Cell, int]]:
    """(data set, student, method) -> (a run to time, how many are left)."""
    found: dict[_Key, tuple[Cell, int]] = {}
    study = schedule.study
    for task in study.tasks:
        teacher = Cell(TEACHER, task)
        if schedule.teachers.get(teacher.key) is None and teacher.config.trains_teacher:
            found[task.dataset, task.teacher, ""] = Cell(TIMING, _as_student(task)), 1
        for method in [*schedule.methods(task), *_to_be_joined(schedule, task)]:
            left = _left(schedule, task, method)
            if left:
                key = task.dataset, task.student, method.name
                found[key] = Cell(TIMING, task, method.name, method.settings), left
    return found


def _to_be_joined(schedule: Schedule, task: Task) -> list[Method]:
    """Stand-ins for the methods that will follow from frozen recipes."""
    rule, study = schedule.study.best_with, schedule.study
    if rule is None or len(schedule.methods(task)) > len(study.methods):
        return []
    return [
        replace(study.methods[name], name=f"{rule.method} + best {place}")
        for place, name in enumerate(rule.among[: rule.count], 1)
    ]


def _left(schedule: Schedule, task: Task, method: Method) -> int:
    """Runs of a method without a record."""
    trials, seeds, finals = schedule.study.budget(method)
    recipe = schedule.current(task, method)
    if recipe is not None:
        return sum(1 for _ in schedule.finals(task, recipe))
    done = 0
    if trials and method.name in schedule.study.methods:
        complete, missing = schedule.done_trials(task, method)
        done = len(complete) * seeds + (seeds - len(missing) if missing else 0)
    return trials * seeds - done + finals


def _finished(schedule: Schedule) -> dict[_Key, float]:
    """Mean seconds of finished runs."""
    seconds: dict[_Key, list[float]] = defaultdict(list)
    for kind in (TRIAL, FINAL):
        for record in schedule.records(kind).all():
            if record["error"] is None:
                key = record["dataset"], record["student"], record["method"]
                seconds[key].append(record["seconds"])
    return {key: sum(values) / len(values) for key, values in seconds.items()}


def _as_student(task: Task) -> Task:
    """A task whose run costs what the teacher's training costs an epoch."""
    return replace(task, student=task.teacher)


def _seconds(cell: Cell, record: dict[str, object]) -> float | None:
    """What the whole run takes, from one of a few epochs; None where that failed."""
    if record["error"] is not None:
        return None
    each, total = record["epoch_seconds"], record["seconds"]
    epochs, ran = cell.config.train.epochs, record["epochs"]
    assert isinstance(each, float) and isinstance(total, float) and isinstance(ran, int)
    if not cell.method:
        epochs = cell.config.teacher_train.epochs * cell.task.teacher_seeds
    return max(total - ran * each, 0.0) + epochs * each
