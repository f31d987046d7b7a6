"""The fused layer in plain torch: the definition, the oracle in tests, the fallback."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
        out = mixed @ weight if beta == 1 else (1 - beta) * mixed + beta * (mixed @ weight)
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
    drop = _dropper(p, seed, layer, step)
    aggregated = op_spmm(rowptr, col, value, drop(x), False)
    mixed = aggregated if x_0 is None else (1 - alpha) * aggregated + alpha * x_0
    out, sums = finish(mixed, weight, bias, None, 0.0, beta, relu)
    # An operator's results must not share memory.
    return out.clone() if out is mixed else out, sums, mixed if keep_mixed else x.new_empty(0)


def op_conv_backward(
    rowptr_t: Tensor | None,
    col_t: Tensor | None,
    value_t: Tensor | None,
    dout: Tensor,
    dsums: Tensor | None,
    out: Tensor | None,
    features: Tensor | None,
    weight: Tensor | None,
    alpha: float,
    beta: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
    aggregate_first: bool,
    want_x: bool,
    want_weight: bool,
    want_x_0: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dx_0); [0] where a gradient is not wanted."""
    drop = _dropper(p, seed, layer, step)
    dx, dweight, dx_0 = (dout.new_empty(0) for _ in range(3))
    dz = dout if dsums is None else dout + dsums
    dz = dz if out is None else dz.masked_fill(out <= 0, 0)
    folded_t = torch.eye(dz.size(1), dtype=dz.dtype, device=dz.device)
    if weight is not None:
        folded_t = beta * weight.t() if beta == 1 else beta * weight.t() + (1 - beta) * folded_t
    if aggregate_first:
        ds = dz @ folded_t
        if want_weight:
            assert features is not None
            dweight = beta * (features.t() @ dz)
        if want_x:
            assert rowptr_t is not None and col_t is not None
            dx = drop((1 - alpha) * op_spmm(rowptr_t, col_t, value_t, ds, False))
        dx_0 = alpha * ds if want_x_0 else dx_0
    elif want_x or want_weight:
        assert rowptr_t is not None and col_t is not None
        gathered = op_spmm(rowptr_t, col_t, value_t, dz, False)
        if want_weight:
            assert features is not None
            dweight = beta * (drop(features).t() @ gathered)
        dx = drop(gathered @ folded_t) if want_x else dx
    return dx, dweight, dz.sum(0), dx_0


def _dropper(p: float, seed: Tensor | None, layer: int, step: int) -> Callable[[Tensor], Tensor]:
    if seed is None or p == 0.0:
        return lambda x: x
    return lambda x: op_dropout(x, p, seed, layer, step)
