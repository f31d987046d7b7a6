"""What is to run next: follows from the study file and the records on disk alone.

Trials of every method come first, then their recipes are frozen, and only when every recipe of a
task is frozen do its runs with test figures begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from abkd_fast.study.cells import FINAL, TEACHER, TRIAL, Cell, digest
from abkd_fast.study.recipes import Recipe, Recipes
from abkd_fast.study.records import Records
from abkd_fast.study.search import Trial, best, next_settings
from abkd_fast.study.spec import Method, Range, Study, Task

FIRST_TRIAL_SEED = 1000  # of trials: a recipe is not chosen by the seeds that it is judged on


class Schedule:
    """The runs of a study: those done, and those to come.

    Attributes:
        study: the checked file.
        teachers: records of teachers.
        trials: records of trials, which have no test figure; all that choices are made from.
        recipes: what was frozen.
        runs: records with test figures; no choice looks at them.
        traces: curves and maps of the runs.
    """

    def __init__(self, study: Study, retry: bool = False) -> None:
        self.study = study
        folder = study.folder
        self.teachers = Records(folder / "teachers.jsonl", retry)
        self.trials = Records(folder / "trials.jsonl", retry)
        self.recipes = Recipes(folder / "recipes.json")
        self.runs = Records(folder / "runs.jsonl", retry)
        self.traces = Records(folder / "traces.jsonl")
        self._asked: dict[tuple[str, int], dict[str, Any]] = {}
        self._base = None
        if study.base is not None:
            self._base = Recipes(study.file.parent / Path(study.base[0]).stem / "recipes.json")

    def records(self, kind: str) -> Records:
        """Where the records of a kind of run are."""
        return {TEACHER: self.teachers, TRIAL: self.trials, FINAL: self.runs}[kind]

    def pending(self) -> Iterator[Cell]:
        """Runs that can be started now, the most urgent first; freezes what is due.

        A run that goes on already, or whose record says that it failed, is among them or not as it
        is without a record or with one.
        """
        trained = []
        for task in self.study.wanted:  # teachers first: every run of a task waits for its teacher
            teacher = Cell(TEACHER, task)
            record = self.teachers.get(teacher.key)
            if record is None:
                yield teacher
            elif record.get("error") is None:
                trained.append(task)
        for task in trained:
            yield from self._of_task(task)

    def asked_for(self) -> Iterator[Cell]:
        """Runs that the file asks for and that are due or done."""
        for task in self.study.wanted:
            yield Cell(TEACHER, task)
            for method in self.methods(task):
                done, missing = self.done_trials(task, method)
                for number, trial in enumerate(done):
                    yield from self._trial_cells(task, method, number, trial.settings)
                yield from missing
                recipe = self.current(task, method)
                if recipe is not None:
                    yield from self.finals(task, recipe, every=True)

    def left(self, task: Task, method: Method) -> int:
        """Runs of a method without a record."""
        trials, seeds, finals = self.study.budget(method)
        recipe = self.current(task, method)
        if recipe is not None:
            return sum(1 for _ in self.finals(task, recipe))
        if trials == 0:
            return finals
        if self.is_settled(task, method):  # every trial failed
            return 0
        complete, missing = self.done_trials(task, method)
        done = len(complete) * seeds + (seeds - len(missing) if missing else 0)
        return trials * seeds - done + finals

    def _of_task(self, task: Task) -> Iterator[Cell]:
        methods = self.methods(task)
        for method in methods:
            yield from self._trials(task, method)
        if len(self.methods(task)) > len(methods):  # the last recipe that they follow from
            yield from self._of_task(task)
            return
        settled = all(self.is_settled(task, method) for method in methods)
        for recipe in self.recipes.of(task) if settled else []:
            yield from self.finals(task, recipe)

    def methods(self, task: Task) -> list[Method]:
        """Methods of the file, and those that follow from frozen recipes."""
        methods = list(self.study.methods.values())
        rule = self.study.best_with
        if rule is None:
            return methods
        among = [self.study.methods[name] for name in rule.among]
        if not all(self.is_settled(task, method) for method in among):
            return methods
        frozen = [self.current(task, method) for method in among]
        ranked = sorted(
            (entry for entry in frozen if entry is not None), key=lambda entry: -entry["val"]
        )
        joined = self.study.methods[rule.method]
        further = [
            _join(joined, self.study.methods[entry["method"]]) for entry in ranked[: rule.count]
        ]
        return methods + [m for m in further if m.name not in self.study.methods]

    def current(self, task: Task, method: Method) -> Recipe | None:
        """The frozen recipe of the search that the file describes now."""
        return self.recipes.frozen(task, method.name, self.search_key(task, method))

    def search_key(self, task: Task, method: Method) -> str:
        """Names a search: space, budget and everything that is fixed."""
        study = self.study
        trials, seeds, _ = study.budget(method)
        space = {
            name: ["range", choice.low, choice.high, choice.log]
            if isinstance(choice, Range)
            else choice
            for name, choice in method.search.items()
        }
        fixed = [dict(task.settings), self._settings(task, method)]
        return digest([fixed, space, trials, seeds, study.start, study.sampler_seed])

    def finals(self, task: Task, recipe: Recipe, every: bool = False) -> Iterator[Cell]:
        """Runs of a frozen recipe: every one, or those without a record."""
        named = {method.name: method for method in self.methods(task)}
        method = named.get(recipe["method"])
        seeds = self.study.final_seeds if method is None else self.study.budget(method)[2]
        for seed in range(seeds):
            cell = Cell(
                FINAL, task, recipe["method"], recipe["settings"], seed, "", recipe["recipe"]
            )
            if every or self.runs.get(cell.key) is None:
                yield cell

    def done_trials(self, task: Task, method: Method) -> tuple[list[Trial], list[Cell]]:
        """Finished trials in order, and the runs that the next one still lacks."""
        trials, seeds, _ = self.study.budget(method)
        search = self.search_key(task, method)
        done: list[Trial] = []
        while len(done) < trials:
            number = len(done)
            if (search, number) not in self._asked:
                found = next_settings(method.search, self.study.start, done, self._seed(search))
                self._asked[search, number] = found
            chosen = self._asked[search, number]
            cells = self._trial_cells(task, method, number, chosen)
            records = [self.trials.get(cell.key) for cell in cells]
            missing = [cell for cell, r in zip(cells, records, strict=True) if r is None]
            if missing:
                return done, missing
            values = [record["val"] for record in records if record and record["error"] is None]
            done.append(Trial(chosen, values if len(values) == seeds else None))
        return done, []

    def _trial_cells(
        self, task: Task, method: Method, number: int, chosen: Mapping[str, Any]
    ) -> list[Cell]:
        search, settings = self.search_key(task, method), {**self._settings(task, method), **chosen}
        return [
            Cell(TRIAL, task, method.name, settings, FIRST_TRIAL_SEED + i, search, number)
            for i in range(self.study.budget(method)[1])
        ]

    # -- choices --------------------------------------------------------------------------

    def _trials(self, task: Task, method: Method) -> Iterator[Cell]:
        """The next runs of a search; freezes its recipe after the last."""
        if self.current(task, method) is not None:
            return
        done, missing = self.done_trials(task, method)
        if missing:
            yield from missing
            return
        search, fixed = self.search_key(task, method), self._settings(task, method)
        if self.study.budget(method)[0] == 0:
            chosen: dict[str, Any] = {"settings": fixed, "val": None, "trial": None, "trials": []}
            self.recipes.freeze(task, method.name, search, chosen)
            return
        winner = best(done)
        if winner is None:
            return
        chosen = {
            "settings": {**fixed, **done[winner].settings},
            "val": done[winner].val,
            "trial": winner,
            "trials": [trial.val for trial in done],
        }
        self.recipes.freeze(task, method.name, search, chosen)

    def is_settled(self, task: Task, method: Method) -> bool:
        """Whether a method has its recipe, or had trials and all failed."""
        if self.current(task, method) is not None:
            return True
        done, missing = self.done_trials(task, method)
        return bool(done) and not missing and best(done) is None

    def _settings(self, task: Task, method: Method) -> dict[str, Any]:
        """What is fixed for a method: its own settings over those of the base's recipe."""
        if self._base is None or self.study.base is None:
            return dict(method.settings)
        found = self._base.of(task, self.study.base[1])
        if not found:
            raise ValueError(
                f"study.base must be frozen for {task.name}, got no recipe of "
                f"{self.study.base[1]!r} in {self._base.path}; run {self.study.base[0]} first"
            )
        return {**found[-1]["settings"], **method.settings}

    def _seed(self, search: str) -> str:
        return f"{self.study.sampler_seed} {search}"


def _join(first: Method, second: Method) -> Method:
    """Both objectives, both methods' settings and spaces; what either fixes is not searched."""
    settings = {**first.settings, **second.settings}
    search = {**first.search, **second.search}
    return replace(
        first,
        name=f"{first.name} + {second.name}",
        settings={**settings, "objective": f"{first.objective}+{second.objective}"},
        search={name: choice for name, choice in search.items() if name not in settings},
    )
