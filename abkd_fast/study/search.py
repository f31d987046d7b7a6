"""Choosing a recipe by Optuna, from validation figures of finished trials alone.

Nothing of Optuna's is kept on disk: its study is made anew from the records of the trials, and the
sampler is seeded for each trial by itself. So the same records are followed by the same trial,
however often the study was killed in between.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abkd_fast.study.flags import Value
from abkd_fast.study.spec import Range, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_STARTUP = 4  # trials that are drawn at random before the sampler learns from the others


@dataclass(frozen=True)
class Trial:
    """Settings of one trial, and the validation figures of its seeds; None where one failed."""

    settings: Mapping[str, Value]
    values: Sequence[float] | None

    @property
    def val(self) -> float | None:
        """Mean over its seeds."""
        return None if self.values is None else sum(self.values) / len(self.values)


def next_settings(
    space: Space, start: Sequence[Mapping[str, Value]], done: Sequence[Trial], seed: str
) -> dict[str, Value]:
    """What the next trial runs with; follows from the arguments alone.

    Args:
        space: flag -> choices or range.
        start: settings to try first; what is not in the space is left out, what it lacks is drawn.
        done: all earlier trials, in order.
        seed: text that the sampler's seed is made from.
    """
    optuna = _optuna()
    # names in order, so that the order in the file does not matter
    spaces: dict[str, BaseDistribution] = {
        name: _distribution(space[name]) for name in sorted(space)
    }
    number = len(done)
    mixed = hashlib.sha256(f"{seed} {number}".encode()).digest()
    sampler = optuna.samplers.TPESampler(
        seed=int.from_bytes(mixed[:4], "big"), n_startup_trials=max(_STARTUP, len(start))
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    failed, complete = optuna.trial.TrialState.FAIL, optuna.trial.TrialState.COMPLETE
    for trial in done:
        study.add_trial(
            optuna.trial.create_trial(
                state=failed if trial.val is None else complete,
                value=trial.val,
                params={name: trial.settings[name] for name in spaces},
                distributions=spaces,
            )
        )
    fixed: dict[str, Value] = {}
    if number < len(start):
        fixed = {name: value for name, value in start[number].items() if name in spaces}
        study.enqueue_trial(fixed)
    asked: dict[str, Any] = study.ask(spaces).params
    return {name: _short(value, space[name]) for name, value in asked.items()} | fixed


def _short(value: Value, choice: Range | list[Value]) -> Value:
    """A drawn number to three digits, still inside its range: recipes are read by people."""
    if not isinstance(choice, Range):
        return value
    return min(max(float(f"{value:.3g}"), choice.low), choice.high)


def best(trials: Sequence[Trial]) -> int | None:
    """The trial with the best mean validation figure, the first of equals; None: all failed."""
    values = [(-1e9 if trial.val is None else trial.val) for trial in trials]
    if all(trial.val is None for trial in trials):
        return None
    return values.index(max(values))


def _distribution(choice: Range | list[Value]) -> BaseDistribution:
    optuna = _optuna()
    if isinstance(choice, Range):
        found: BaseDistribution = optuna.distributions.FloatDistribution(
            choice.low, choice.high, log=choice.log
        )
        return found
    return optuna.distributions.CategoricalDistribution(choice)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "optuna must be installed to search settings, got none; pip install optuna tabulate"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
