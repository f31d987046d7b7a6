"""Where the time of a step goes, by torch.profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

GROUPS = {
    "aten::_fused_adam_": "Adam",
    "aten::mm": "dense products",
    "aten::addmm": "dense products",
}


def breakdown(step: Callable[[], Any], calls: int = 20) -> dict[str, float]:
    """Milliseconds a call inside each of our ops, dense products, Adam and torch's other ops.

    What the medians of unprofiled calls have beyond that is Python and autograd.
    """
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            step()
    spent: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.key.startswith("abkd_fast::"):
            spent[event.key.removeprefix("abkd_fast::")] += event.self_cpu_time_total
        elif event.key.startswith("aten::"):
            spent[GROUPS.get(event.key, "other torch ops")] += event.self_cpu_time_total
    return {name: 1e-3 * spent[name] / calls for name in sorted(spent)}
