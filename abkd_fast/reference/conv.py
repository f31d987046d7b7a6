"""The fused layer in plain torch: the definition, the oracle in tests, the fallback."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from abkd_fast._conv_chain import Mask, drop, gradients, transform
from abkd_fast.graph import CSRGraph
from abkd_fast.reference.dropout import dropout, op_dropout
from abkd_fast.reference.spmm import op_spmm, spmm


def conv(
    graph: CSRGraph,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    x_0: Tensor | None = None,
    alpha: float = 0.0,
    beta: float = 1.0,
    act: str = "none",
    p: float = 0.0,
    seed: int | Tensor = 0,
    layer: int = 0,
    step: int = 0,
) -> tuple[Tensor, Tensor]:
    """One layer, differentiable by autograd; see :func:`abkd_fast.ops.conv`."""
    x = dropout(x, p, seed, layer, step)
    return finish(spmm(graph, x), weight, bias, x_0, alpha, beta, act == "relu")


def finish(
    aggregated: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_0: Tensor | None,
    alpha: float,
    beta: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """What follows the aggregation, in differentiable torch."""
    mixed = aggregated if x_0 is None else (1 - alpha) * aggregated + alpha * x_0
    out = mixed
    if weight is not None:
        out = transform(mixed, weight, beta)
    out = out if bias is None else out + bias
    out = out.relu() if relu else out
    return out, out.sum(0)


def op_conv(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_0: Tensor | None,
    alpha: float,
    beta: float,
    relu: bool,
    aggregate_first: bool,
    keep_mixed: bool,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, column sums, mixed [N, in] or [0])."""
    aggregated = op_spmm(rowptr, col, value, drop(op_dropout, x, (p, seed, layer, step)), False)
    mixed = aggregated if x_0 is None else (1 - alpha) * aggregated + alpha * x_0
    out, sums = finish(mixed, weight, bias, None, 0.0, beta, relu)
    # An operator's results must not share memory.
    return out.clone() if out is mixed else out, sums, mixed if keep_mixed else x.new_empty(0)


def op_conv_backward(
    rowptr_t: Tensor | None, col_t: Tensor | None, value_t: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dx_0); [0] where a gradient is not wanted."""

    def gather(x: Tensor, scale: float, mask: Mask) -> Tensor:
        assert rowptr_t is not None and col_t is not None
        return drop(op_dropout, scale * op_spmm(rowptr_t, col_t, value_t, x, False), mask)

    return gradients(gather, op_dropout, *rest)
