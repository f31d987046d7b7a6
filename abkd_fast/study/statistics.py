"""Paired tests over seeds, with the corrections that many comparisons need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """One method against another at the same seeds.

    Attributes:
        method: the one.
        against: the other.
        n: seeds that both have.
        difference: mean of method - against.
        low: lower end of the 95 % BCa bootstrap interval of that mean.
        high: its upper end.
        t_p: p of the paired t-test, two-sided.
        wilcoxon_p: p of the signed-rank test, two-sided.
        t_holm: t_p after Holm's correction within the comparisons against the same method.
        wilcoxon_holm: wilcoxon_p likewise.
    """

    method: str
    against: str
    n: int
    difference: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float
    t_holm: float
    wilcoxon_holm: float


def compare(
    against: str, base: dict[int, float], others: dict[str, dict[int, float]]
) -> list[Comparison]:
    """Every other method against one, at the seeds that both have; one family of tests.

    Args:
        against: name of the method compared with.
        base: seed -> its figure.
        others: method -> seed -> figure. A method with fewer than two common seeds is left out.
    """
    found = []
    for name, values in others.items():
        seeds = sorted(values.keys() & base.keys())
        if len(seeds) > 1:
            differences = [values[seed] - base[seed] for seed in seeds]
            t_p, wilcoxon_p = paired_tests(differences)
            low, high = interval(differences)
            mean = float(np.mean(differences))
            found.append((name, len(seeds), mean, low, high, t_p, wilcoxon_p))
    t_holm, wilcoxon_holm = holm([row[5] for row in found]), holm([row[6] for row in found])
    return [
        Comparison(row[0], against, *row[1:], t_holm=t, wilcoxon_holm=w)
        for row, t, w in zip(found, t_holm, wilcoxon_holm, strict=True)
    ]


def paired_tests(differences: Sequence[float]) -> tuple[float, float]:
    """p of the paired t-test and of Wilcoxon's signed-rank test, two-sided; 1 without difference.

    The t-test looks at how differences vary: where all are equal it says nothing, and its p is 1.
    Accuracies are counts over a test set: differences are rounded to 1e-9, so that equal counts
    tie in the ranks as they should.
    """
    from scipy import stats

    values = np.round(np.asarray(differences, float), 9)
    if not values.any():
        return 1.0, 1.0
    wilcoxon = float(stats.wilcoxon(values).pvalue)
    if np.ptp(values) == 0:
        return 1.0, wilcoxon
    return float(stats.ttest_1samp(values, 0.0).pvalue), wilcoxon


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """BCa bootstrap interval of the mean; the value itself where all are equal.

    9,999 resamples, always the same ones.
    """
    from scipy import stats

    array = np.asarray(values, float)
    if np.ptp(array) < 1e-9:
        return float(np.mean(array)), float(np.mean(array))
    found = stats.bootstrap(
        (array,), np.mean, confidence_level=level, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: max over j <= i of (m - j) p_(j), at most 1, p_(0) smallest."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
