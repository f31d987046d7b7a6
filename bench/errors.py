"""How far the sides of a benchmark are apart: looked at before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def largest(errors: Iterable[float]) -> float:
    """The largest error; infinity where one is not a number, which max() would pass over."""
    found = [error if math.isfinite(error) else math.inf for error in errors]
    return max(found, default=0.0)


def relative(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Largest difference of any tensor, in norm and float64, relative to the expected one's."""
    return largest(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in zip(found, expected, strict=True)
    )
