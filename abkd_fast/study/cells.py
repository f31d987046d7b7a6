"""One run of a study, and what names it for ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abkd_fast.config import DistillConfig
from abkd_fast.study.flags import Value
from abkd_fast.study.spec import Task

TEACHER, TRIAL, FINAL, TIMING = "teacher", "trial", "final", "timing"


@dataclass(frozen=True, eq=False)
class Cell:
    """A run: of a teacher (all its seeds), of a trial, of a frozen recipe, or to see the speed.

    Attributes:
        kind: teacher, trial, final or timing.
        task: data set, teacher and student.
        method: its name, "" for a teacher.
        settings: every flag beside the task's.
        seed: of the student.
        search: of a trial, which search it belongs to.
        number: of the trial, or of the recipe.
    """

    kind: str
    task: Task
    method: str = ""
    settings: Mapping[str, Value] | None = None
    seed: int = 0
    search: str = ""
    number: int = 0

    @property
    def config(self) -> DistillConfig:
        """What ``abkd-fast distill`` would run with."""
        return self.task.config(self.settings or {})

    @property
    def key(self) -> str:
        """Names the run: all that its result follows from, apart from versions and machines.

        Not the trial's or recipe's number: the same settings are the same run.
        """
        task = self.task
        student = None if self.kind == TEACHER else [task.student, dict(self.settings or {})]
        shared = {k: v for k, v in task.settings.items() if student or not _is_students(k)}
        parts = [self.kind, task.dataset, task.preset, task.teacher, task.teacher_seeds]
        return digest([*parts, shared, student, self.seed])

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == TEACHER:
            return f"{self.task.dataset}: teacher {self.task.teacher}"
        which = {TRIAL: f"trial {self.number}, ", FINAL: "", TIMING: "timing, "}[self.kind]
        return f"{self.task.dataset}: {self.task.student}, {self.method}, {which}seed {self.seed}"

    def about(self) -> dict[str, Any]:
        """The columns that say which run a record is of."""
        task = self.task
        found: dict[str, Any] = {"key": self.key, "dataset": task.dataset, "teacher": task.teacher}
        if self.kind == TEACHER:
            return found
        found |= {"student": task.student, "method": self.method, "seed": self.seed}
        if self.kind == TRIAL:
            found |= {"search": self.search, "trial": self.number}
        else:
            found |= {"recipe": self.number}
        return {**found, "settings": dict(self.settings or {})}


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value; the order of a table's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _is_students(flag: str) -> bool:
    """Whether a setting of all runs leaves the teacher as it is."""
    return flag.split(".")[0] in ("train", "student_options", "objective")
