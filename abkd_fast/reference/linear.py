"""Dense linear layer in plain torch."""

from __future__ import annotations

from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    """act(x W^T + b); see :func:`abkd_fast.ops.linear`."""
    out = nn.functional.linear(x, weight, bias)
    return out.relu() if act == "relu" else out


def op_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """act(x W^T + b)."""
    return linear(x, weight, bias, "relu" if relu else "none")


def op_linear_backward(
    dout: Tensor, out: Tensor | None, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight^T, dbias); [0] where a gradient is not wanted."""
    dout = dout if out is None else dout.masked_fill(out <= 0, 0)
    dx = dout @ weight if want_x else dout.new_empty(0)
    return dx, x.t() @ dout if want_weight else dout.new_empty(0), dout.sum(0)
