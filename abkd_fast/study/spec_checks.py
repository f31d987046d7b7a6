"""What must hold across a whole study file: equal budgets, and settings that distill takes."""

from __future__ import annotations

from abkd_fast.study.flags import Value
from abkd_fast.study.spec import Range, Study

# What defines a task: every method runs on the same.
_TASKS = ("student", "teacher_options", "teacher_train", "data", "root", "read", "inductive")


def check_budgets(study: Study) -> None:
    """Every method gets the same trials, seeds and epochs unless the file says why not."""
    for method in study.methods.values():
        differing = [name for name in method.budget if method.budget[name] != getattr(study, name)]
        epochs = ("train.epochs", "train.patience")
        differing += [name for name in epochs if name in (*method.settings, *method.search)]
        if differing and method.unequal is None:
            raise ValueError(
                f"[methods.{method.name}] must have the budget of every other method, got "
                f'another {", ".join(differing)}; leave it out, or say why with unequal = "..."'
            )
        if study.budget(method)[0] == 0 and method.search:
            names = ", ".join(method.search)
            raise ValueError(
                f"[methods.{method.name}] must search nothing with trials = 0, got {names}"
            )
        for start in study.start:
            for name in start.keys() & method.search.keys():
                _check_start(name, start[name], method.search[name])
    rule = study.best_with
    if rule and any(study.budget(study.methods[n])[0] == 0 for n in (rule.method, *rule.among)):
        raise ValueError("[best_with] must choose among methods with trials, got trials = 0")


def _check_start(name: str, value: Value, choice: Range | list[Value]) -> None:
    if isinstance(choice, Range):
        inside = not isinstance(value, str) and choice.low <= value <= choice.high
    else:
        inside = value in choice
    if not inside:
        raise ValueError(f"[[start]] must lie in the search, got {name} = {value!r} of {choice}")


def check_methods(study: Study) -> None:
    """No method has another student, teacher or data than the task it is compared on."""
    for task in study.tasks:
        if "student" in task.settings:
            raise ValueError(
                f"[datasets.{task.dataset}] must name its students in students = [...], got a "
                f"setting student = {task.settings['student']!r}"
            )
    for method in study.methods.values():
        for name in (*method.settings, *method.search):
            if name.split(".")[0] in _TASKS:
                raise ValueError(
                    f"[methods.{method.name}] must leave students, teachers and data to "
                    f"[datasets], got {name}; it belongs to [settings] or [datasets.NAME.settings]"
                )


def check_runs(study: Study) -> None:
    """Every setting and every bound of the search is one that distill takes."""
    for task in study.tasks:
        for method in study.methods.values():
            corners: list[dict[str, Value]] = [{}]
            for name, choice in method.search.items():
                ends = [choice.low, choice.high] if isinstance(choice, Range) else choice
                corners += [{name: value} for value in ends]
            for corner in corners:
                try:
                    task.config({**method.settings, **corner})
                except ValueError as error:
                    where = f"[methods.{method.name}] on [datasets.{task.dataset}]"
                    raise ValueError(f"{where}: {error}") from None
