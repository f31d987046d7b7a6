"""What became of an objective's map over layer pairs, and of the distance that it weighs."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TERMS = ("abkd", "stride")  # S mean(A D) as the log has it
HEAD = ("method", "entropy", "share of student layers", "A D at the end", "of its start", "P")
NOTE = [
    "Maps over layer pairs and what they weigh, means over the seeds. *Entropy* of a map's row at",
    "the kept epoch: 1 is the uniform map, 0 a single student layer. *A D*: the weighted distance",
    "in the last epoch, and over the first's; *P*: norm of the trained subspace, last over first.",
]


def map_rows(traces: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[str]]:
    """A row for every method whose runs have a map, in the order of :data:`HEAD`."""
    rows = []
    for method, runs in traces.items():
        mapped = [run for run in runs if "attention" in run]
        term = next((name for name in TERMS if mapped and name in mapped[0]), None)
        if term is None:
            continue
        rows.append(
            [
                method,
                f"{statistics.fmean(entropy(run['attention']) for run in mapped):.2f}",
                " ".join(f"{part:.2f}" for part in _shares(mapped)),
                f"{statistics.fmean(run[term][-1] for run in mapped):.2g}",
                _change(mapped, term),
                _change(mapped, _subspace(mapped[0])),
            ]
        )
    return rows


def entropy(attention: Sequence[Sequence[float]]) -> float:
    """Mean over rows of -sum_j a_j log a_j / log S, with a the row scaled to sum 1; 1 for S = 1."""
    found = []
    for row in attention:
        total = sum(row)
        parts = [value / total for value in row if value > 0 and total > 0]
        found.append(-sum(p * math.log(p) for p in parts) / math.log(len(row)) if row[1:] else 1.0)
    return statistics.fmean(found)


def _subspace(run: dict[str, Any]) -> str:
    """Name of P's norm, which a sum of objectives puts behind the number of its term."""
    return next((name for name in run if re.fullmatch(r"norm\.(.+\.)?subspace", name)), "")


def _shares(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Of the map's mass, what every student layer has, mean over runs."""
    shares = []
    for run in runs:
        columns = [sum(column) for column in zip(*run["attention"], strict=True)]
        shares.append([column / sum(columns) for column in columns])
    return [statistics.fmean(parts) for parts in zip(*shares, strict=True)]


def _change(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Geometric mean over runs of last over first."""
    ratios = [run[name][-1] / run[name][0] for run in runs if name in run and run[name][0] > 0]
    usable = [ratio for ratio in ratios if ratio > 0]
    return f"{statistics.geometric_mean(usable):.2g}" if usable else "–"
