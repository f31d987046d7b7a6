"""Times of single calls, and the quantiles that so many of them can tell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

QUANTILES = (0.5, 0.9, 0.95, 0.99)
RISK = 0.01


@cache
def samples_needed(quantile: float) -> int:
    """Least n of independent samples of which, to 99 %, two or more lie above the quantile.

    The smallest n with P(Binomial(n, 1 - q) <= 1) <= 0.01: 64 for p90, 130 for p95, 662 for p99.
    With fewer, the largest sample or two decide. The median is always given.

    Args:
        quantile: q in (0, 1).
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
    if quantile <= 0.5:
        return 1
    above = 1.0 - quantile
    count = 2
    while quantile ** (count - 1) * (quantile + count * above) > RISK:
        count += 1
    return count


def label(quantile: float) -> str:
    """``p99`` for 0.99."""
    return f"p{100 * quantile:g}"


@dataclass(frozen=True)
class Measurement:
    """The calls of one subject, in ns; everything that is no steady state stands apart.

    Attributes:
        name: the subject.
        samples: ns of every call after the warm-up, in the order they were made.
        cold: ns of the first call, None where it was not made here.
        compile: ns of the call that compiled or captured, None where nothing did.
        warmup: number of calls between the first one and the samples.
        cold_cache: ns of calls that each followed a sweep of the caches, empty where none did.
        interrupted: of every sample, whether the system took the processor away meanwhile
            (involuntary context switches of the process); empty where it does not count them.
        result: what the last call returned.
    """

    name: str
    samples: tuple[int, ...]
    cold: int | None = None
    compile: int | None = None
    warmup: int = 0
    cold_cache: tuple[int, ...] = ()
    interrupted: tuple[bool, ...] = ()
    result: Any = None

    @property
    def count(self) -> int:
        """Number of samples n."""
        return len(self.samples)

    def quantile(self, quantile: float) -> float | None:
        """The quantile in ms, None with fewer samples than :func:`samples_needed`."""
        if self.count < samples_needed(quantile):
            return None
        return 1e-6 * float(np.quantile(self.samples, quantile))

    @property
    def p50(self) -> float:
        """The median in ms."""
        return 1e-6 * float(np.median(self.samples))

    @property
    def min(self) -> float:
        """The fastest call in ms."""
        return 1e-6 * min(self.samples)

    @property
    def iqr(self) -> float:
        """p75 - p25 in ms."""
        first, third = np.quantile(self.samples, [0.25, 0.75])
        return 1e-6 * float(third - first)

    @property
    def undisturbed(self) -> tuple[int, ...]:
        """The samples that were not interrupted."""
        pairs = zip(self.samples, self.interrupted or [False] * self.count, strict=True)
        return tuple(spent for spent, interrupted in pairs if not interrupted)

    def left_out(self) -> dict[str, str]:
        """Why a quantile is missing."""
        return {
            label(q): f"needs {samples_needed(q)} samples, has {self.count}"
            for q in QUANTILES
            if self.count < samples_needed(q)
        }

    def row(self, samples: bool = True) -> dict[str, Any]:
        """As the JSON file has it: times in ms, the raw samples in ns."""
        row: dict[str, Any] = {label(q): self.quantile(q) for q in QUANTILES}
        row |= {"min": self.min, "iqr": self.iqr, "n": self.count, "left_out": self.left_out()}
        row |= {"cold": _ms(self.cold), "compile": _ms(self.compile), "warmup": self.warmup}
        row["interrupted"] = self.count - len(self.undisturbed)
        row["undisturbed_p50"] = _median(self.undisturbed)
        row["cold_cache"] = _median(self.cold_cache)
        return row | ({"samples_ns": list(self.samples)} if samples else {})

    def __str__(self) -> str:
        """One line."""
        parts = [f"{label(q)} {v:.4g} ms" for q in QUANTILES if (v := self.quantile(q)) is not None]
        parts += [f"min {self.min:.4g} ms", f"IQR {self.iqr:.4g} ms", f"n {self.count}"]
        return f"{self.name}: " + ", ".join(parts)


def _median(times: tuple[int, ...]) -> float | None:
    return 1e-6 * float(np.median(times)) if times else None


def _ms(time: int | None) -> float | None:
    return None if time is None else 1e-6 * time
