"""STUDY.toml: what is compared with what, on which data, with which budget."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from abkd_fast.config import DistillConfig
from abkd_fast.presets import distill_preset
from abkd_fast.study.flags import Value, check_flags, with_flags
from abkd_fast.study.toml_checks import flat, integer, space, strings, table, text, unknown

BUDGET = ("trials", "trial_seeds", "final_seeds")


@dataclass(frozen=True)
class Range:
    """Numbers to search in: low to high, evenly or (log) by factors."""

    low: float
    high: float
    log: bool = False


Space = dict[str, "Range | list[Value]"]


@dataclass(frozen=True)
class Task:
    """One teacher and one student on one data set.

    Attributes:
        dataset: its name in the study file and in the results.
        preset: preset of ``abkd-fast distill`` that the settings start from, or None.
        teacher: FAMILY-LAYERSxWIDTH, or what else ``--teacher`` takes.
        student: FAMILY-LAYERSxWIDTH.
        settings: flags for every run of this data set.
        teacher_seeds: seeds of a teacher that is trained; the best on validation is used.
    """

    dataset: str
    preset: str | None
    teacher: str
    student: str
    settings: Mapping[str, Value]
    teacher_seeds: int

    @property
    def name(self) -> str:
        """Data set, teacher and student."""
        return f"{self.dataset}: {self.teacher} to {self.student}"

    def config(self, settings: Mapping[str, Value]) -> DistillConfig:
        """What ``abkd-fast distill`` would run with."""
        base = with_flags(distill_preset(self.preset), {"student": self.student})
        base = with_flags(base, {**self.settings, **settings})
        own = {"teacher": self.teacher, "teacher_seeds": self.teacher_seeds}
        if self.preset is None and base.data is None:
            own["dataset"] = self.dataset
        values = {entry.name: getattr(base, entry.name) for entry in fields(base)}
        return DistillConfig(**{**values, **own})


@dataclass(frozen=True)
class Method:
    """One objective with its fixed settings and what is searched for it.

    Attributes:
        name: as in tables.
        settings: flags, the objective among them.
        search: flag -> what it may be, the study's own search included.
        budget: trials, trial_seeds and final_seeds where they differ from the study's.
        unequal: why the budget differs; shown beside the method.
    """

    name: str
    settings: Mapping[str, Value]
    search: Space = field(default_factory=dict)
    budget: Mapping[str, int] = field(default_factory=dict)
    unequal: str | None = None

    @property
    def objective(self) -> str:
        """Name of the objective."""
        return str(self.settings["objective"])


@dataclass(frozen=True)
class BestWith:
    """The ``count`` methods that were best on validation, each joined with one more objective.

    They are chosen anew for every task, among ``among``, once their recipes are frozen.
    """

    method: str
    count: int
    among: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A checked study file; see docs/study/README.md for every key."""

    file: Path
    tasks: list[Task]
    methods: dict[str, Method]
    trials: int
    trial_seeds: int
    final_seeds: int
    workers: int
    threads: int
    sampler_seed: int
    start: list[dict[str, Value]]
    against: list[str]
    best_with: BestWith | None
    base: tuple[str, str] | None
    only: tuple[str, ...] = ()

    @property
    def wanted(self) -> list[Task]:
        """Tasks to run now; results are written of all."""
        return [task for task in self.tasks if not self.only or task.dataset in self.only]

    @property
    def folder(self) -> Path:
        """Where results are kept: beside the study file, under its name."""
        return self.file.with_suffix("")

    def budget(self, method: Method) -> tuple[int, int, int]:
        """(trials, seeds of a trial, seeds of the frozen recipe)."""
        trials, seeds, final = (method.budget.get(name, getattr(self, name)) for name in BUDGET)
        return trials, seeds, final


_STUDY = (*BUDGET, "workers", "threads", "sampler_seed", "against", "base")
_DATASET = ("preset", "teachers", "students", "settings", "teacher_seeds")
_METHOD = ("objective", "settings", "search", "unequal", *BUDGET)


def load_study(path: str | Path, only: Sequence[str] = (), workers: int | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the TOML file.
        only: data sets to run; none: all of them.
        workers: runs at a time, in place of the file's.

    Raises:
        OSError: the file cannot be read.
        ValueError: not TOML, or a key or value is wrong; names it and says what would be right.
    """
    path = Path(path)
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"STUDY.toml must be a file, got {path}, which is not there") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be TOML, got: {error}") from None
    from abkd_fast.study.spec_checks import check_budgets, check_methods, check_runs

    try:
        study = _study(path, found)
        check_budgets(study)
        check_methods(study)
        check_runs(study)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if only:
        names = list(dict.fromkeys(task.dataset for task in study.tasks))
        study = replace(study, only=tuple(strings("only", list(only), names)))
    return study if workers is None else replace(study, workers=integer("workers", workers, 1))


def _study(path: Path, found: dict[str, Any]) -> Study:
    sections = ("study", "settings", "search", "start", "datasets", "methods", "best_with")
    unknown("the file", found, sections)
    head = table("study", found.get("study", {}))
    unknown("[study]", head, _STUDY)
    settings = flat("settings", table("settings", found.get("settings", {})))
    shared = space("search", table("search", found.get("search", {})), Range)
    check_flags("[settings]", settings)
    check_flags("[search]", shared)
    methods = {
        name: _method(name, table(f"methods.{name}", entry), shared)
        for name, entry in table("methods", found.get("methods", {})).items()
    }
    if not methods:
        raise ValueError("[methods] must hold at least one method, got none")
    tasks: list[Task] = []
    for name, entry in table("datasets", found.get("datasets", {})).items():
        tasks += _tasks(name, table(f"datasets.{name}", entry), settings)
    if not tasks:
        raise ValueError("[datasets] must hold at least one data set, got none")
    study = Study(
        file=path,
        tasks=tasks,
        methods=methods,
        trials=integer("study.trials", head.get("trials", 8), 0),
        trial_seeds=integer("study.trial_seeds", head.get("trial_seeds", 2), 1),
        final_seeds=integer("study.final_seeds", head.get("final_seeds", 10), 1),
        workers=integer("study.workers", head.get("workers", 2), 1),
        threads=integer("study.threads", head.get("threads", 1), 1),
        sampler_seed=integer("study.sampler_seed", head.get("sampler_seed", 0), 0),
        start=_start(found.get("start", []), shared),
        against=strings("study.against", head.get("against", list(methods)), methods),
        best_with=_best_with(found.get("best_with"), methods),
        base=_base(head.get("base")),
    )
    return study


def _tasks(name: str, entry: dict[str, Any], shared: Mapping[str, Value]) -> list[Task]:
    where = f"datasets.{name}"
    unknown(f"[{where}]", entry, _DATASET)
    preset = entry.get("preset")
    default = distill_preset(None if preset is None else text(f"{where}.preset", preset))
    settings = {**shared, **flat(f"{where}.settings", table(where, entry.get("settings", {})))}
    check_flags(f"[{where}.settings]", settings)
    teachers = strings(f"{where}.teachers", entry.get("teachers", [default.teacher]))
    students = strings(f"{where}.students", entry.get("students", [default.student]))
    seeds = integer(f"{where}.teacher_seeds", entry.get("teacher_seeds", 1), 1)
    return [
        Task(name, preset, teacher, student, settings, seeds)
        for teacher in teachers
        for student in students
    ]


def _method(name: str, entry: dict[str, Any], shared: Space) -> Method:
    where = f"methods.{name}"
    unknown(f"[{where}]", entry, _METHOD)
    if "objective" not in entry:
        raise ValueError(f'[{where}] must have an objective, got none; add objective = "kd"')
    settings = flat(f"{where}.settings", table(where, entry.get("settings", {})))
    own = space(f"{where}.search", table(where, entry.get("search", {})), Range)
    for part in (settings, own):
        check_flags(f"[{where}]", part)
    settings["objective"] = text(f"{where}.objective", entry["objective"])
    reason = entry.get("unequal")
    return Method(
        name=name,
        settings=settings,
        # what a method fixes for itself is not searched for it
        search={**{key: v for key, v in shared.items() if key not in settings}, **own},
        budget={key: integer(f"{where}.{key}", entry[key], 0) for key in BUDGET if key in entry},
        unequal=None if reason is None else text(f"{where}.unequal", reason),
    )


def _start(found: Any, shared: Space) -> list[dict[str, Value]]:
    if not isinstance(found, list):
        raise ValueError("start must be [[start]] tables, got one table; write [[start]]")
    starts = []
    for index, entry in enumerate(found):
        values = flat(f"start[{index}]", table(f"start[{index}]", entry))
        check_flags(f"[[start]] {index}", values)
        starts.append(values)
    return starts


def _best_with(found: Any, methods: Mapping[str, Method]) -> BestWith | None:
    if found is None:
        return None
    entry = table("best_with", found)
    unknown("[best_with]", entry, ("method", "count", "among"))
    for key in ("method", "count", "among"):
        if key not in entry:
            raise ValueError(f"[best_with] must have {key}, got {', '.join(entry) or 'nothing'}")
    among = strings("best_with.among", entry["among"], methods)
    (method,) = strings("best_with.method", [entry["method"]], methods)
    count = integer("best_with.count", entry["count"], 1)
    if count > len(among) or method in among:
        raise ValueError(
            f"best_with must choose from among without its own method, got count {count} of "
            f"{', '.join(among)} with {method}"
        )
    return BestWith(method, count, tuple(among))


def _base(found: Any) -> tuple[str, str] | None:
    if found is None:
        return None
    entry = table("study.base", found)
    unknown("study.base", entry, ("study", "method"))
    if set(entry) != {"study", "method"}:
        raise ValueError(f"study.base must have study and method, got {', '.join(entry)}")
    return text("study.base.study", entry["study"]), text("study.base.method", entry["method"])
