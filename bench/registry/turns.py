"""One test is one turn of one provider at one case: rounds of turns interleave the providers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from gpu_compare import checked, reason, within
from gpu_timing import Step
from registry.cases import Spec

TURN_MS, MOST_CALLS = 40.0, 100
Prepared = tuple[dict[str, Step], dict[str, int]]


def calls_of_a_turn(steps: dict[str, Step]) -> dict[str, int]:
    """By side, as many as fill a turn."""
    calls = {}
    for side, step in steps.items():
        with within(side):
            once = fastest_of_three(step)
        calls[side] = max(1, min(MOST_CALLS, round(TURN_MS / max(once, 1e-3))))
    return calls


def fastest_of_three(step: Step) -> float:
    """Milliseconds of a call that no other process held up; one call where it fills a turn."""
    least, begin = math.inf, time.perf_counter()
    for _ in range(3):
        before = time.perf_counter()
        step()
        last = time.perf_counter()
        least = min(least, 1e3 * (last - before))
        if 1e3 * (last - begin) > TURN_MS:
            break
    return least


def prepare(spec: Spec, providers: Sequence[str], record: dict[str, Any]) -> Prepared:
    """The steps whose values are right, and their calls a turn; the record says what is wrong."""
    torch.compiler.reset()  # else the next width is compiled for any, and after some not at all
    case = spec.make()
    case.sides = {name: make for name, make in case.sides.items() if name in providers}
    try:
        steps, left_out = checked(case, "cpu")
    except SystemExit as wrong:  # ours differs from the truth
        steps, left_out = {}, {"abkd_fast": str(wrong)}
    except Exception as failure:  # ours fails: an older version that is called otherwise
        steps, left_out = {}, {"abkd_fast": reason(failure)}
    labels = {"label": spec.label(), "case": case.case}
    record["cases"][str(spec)] = labels | case.facts | case.cost.row()
    record["left_out"] += [
        {"spec": str(spec), "provider": name, "why": why} for name, why in left_out.items()
    ]
    return steps, calls_of_a_turn(steps)


@pytest.fixture(scope="session")
def cases() -> dict[Spec, Prepared]:
    """The case at hand: one at a time is held."""
    return {}


def time_turn(
    cases: dict[Spec, Prepared],
    spec: Spec,
    providers: tuple[str, ...],
    turn: int,
    provider: str,
    benchmark: Any,
    pytestconfig: pytest.Config,
) -> None:
    if spec not in cases:
        cases.clear()
        cases[spec] = prepare(spec, providers, pytestconfig.stash["record"])
    steps, calls = cases[spec]
    if provider not in steps:
        benchmark.skipped = True
        pytest.skip("wrong or failed; see left_out")
    benchmark.extra_info = {"spec": str(spec), "provider": provider, "turn": turn}
    with within(provider):
        benchmark.pedantic(steps[provider], rounds=calls[provider], warmup_rounds=1)
