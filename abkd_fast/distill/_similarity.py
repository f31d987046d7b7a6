"""Similarities that structure objectives take between nodes, and their settings."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from abkd_fast._checks import check_choice
from abkd_fast.reference.neighbor_kl import KERNELS, unit_rows


class Kernel(TypedDict):
    """Options of ``ops.neighbor_kl``."""

    kernel: str
    c: float
    power: int


def check_kernel(kernel: str, c: float, power: int) -> Kernel:
    """The options, or ValueError."""
    check_choice("kernel", kernel, KERNELS)
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"power must be an integer >= 1, got {power}")
    return {"kernel": kernel, "c": float(c), "power": power}


def similarity_matrix(x: Tensor, kernel: str, c: float, power: int) -> Tensor:
    """k(x_v, x_u) [B, B] of all pairs of rows; see :func:`abkd_fast.ops.neighbor_kl`."""
    if kernel == "cosine":
        x = unit_rows(x)
        return x @ x.t()
    if kernel == "poly":
        return (x @ x.t() + c) ** power
    x = x - x.detach().mean(0)  # a common offset would make the expanded square cancel
    square = x.square().sum(1)
    distance = (square[:, None] + square - 2.0 * (x @ x.t())).clamp_min(0.0)
    return distance if kernel == "l2" else torch.exp(-0.5 * distance)
