"""Dense linear layer in plain torch."""

from __future__ import annotations

from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    """act(x W^T + b); see :func:`abkd_fast.ops.linear`."""
    out = nn.functional.linear(x, weight, bias)
    return out.relu() if act == "relu" else out
