"""From a wanted compression to a student's depth and width."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from abkd_fast.metrics import count_parameters
from abkd_fast.nn import ModelSpec

_SHALLOWEST = 2  # a stack of one layer has no hidden state to align


def parse_ratio(text: str) -> float:
    """60 of ``60x`` or ``60``.

    Raises:
        ValueError: not a number above 1.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)x?", text.strip().lower())
    if match is None or float(match[1]) <= 1:
        raise ValueError(f"compression must be a ratio above 1, such as 60x, got {text!r}")
    return float(match[1])


def parameters(
    spec: ModelSpec, in_channels: int, out_channels: int, options: Mapping[str, Any]
) -> int:
    """Parameter count of a model, without making its weights."""
    with torch.device("meta"):
        return count_parameters(spec.build(in_channels, out_channels, **options))


def choose_student(
    ratio: float, teacher_parameters: int, largest: ModelSpec, size: Callable[[ModelSpec], int]
) -> tuple[ModelSpec, int]:
    """The largest student that is at least ``ratio`` times smaller than the teacher.

    Candidates are of one family, 2, 4, 8, ... layers deep and 1, 2, 3, ... wide, up to the depth
    and width of ``largest``. Of those with teacher_parameters >= ratio * parameters the one with
    most parameters is taken; of equals the shallowest.

    Args:
        ratio: wanted compression.
        teacher_parameters: parameter count of the teacher.
        largest: family of the candidates, and the deepest and widest of them (the teacher's).
        size: parameter count of a candidate; must grow with the width.

    Returns:
        The student and its parameter count.

    Raises:
        ValueError: no candidate is small enough; names the range that can be reached.
    """
    best: tuple[int, int, ModelSpec] | None = None
    sizes = []
    for depth in _depths(largest.num_layers):

        def fits(width: int, depth: int = depth) -> bool:
            spec = ModelSpec(largest.family, depth, width)
            return ratio * size(spec) <= teacher_parameters

        width = _widest(fits, largest.hidden_channels)
        for candidate in {1, width, largest.hidden_channels} - {0}:
            spec = ModelSpec(largest.family, depth, candidate)
            count = size(spec)
            sizes.append(count)
            if fits(candidate) and (best is None or (count, -depth) > best[:2]):
                best = count, -depth, spec
    if best is None:
        low, high = (teacher_parameters / size for size in (max(sizes), min(sizes)))
        raise ValueError(
            f"compression must lie in [{max(low, 1):.1f}x, {high:.1f}x] for {largest.family} "
            f"students of a teacher with {teacher_parameters:,} parameters on these data, got "
            f"{ratio:g}x"
        )
    return best[2], best[0]


def _depths(deepest: int) -> list[int]:
    depths = [_SHALLOWEST]
    while depths[-1] * 2 <= deepest:
        depths.append(depths[-1] * 2)
    return depths


def _widest(fits: Callable[[int], bool], largest: int) -> int:
    """Largest width that fits, 0 for none."""
    low, high = 0, largest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
