"""Sparse-dense products in plain torch: the definition, the oracle in tests, the fallback.

``op_<name>`` implements ``torch.ops.abkd_fast.<name>`` where no kernel does. All of it is
differentiable torch, gathers [E, F] messages and accumulates in float32 (float64 for float64).
On CUDA, ``index_add`` adds in no fixed order unless torch is set to deterministic algorithms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.graph import CSRGraph


def spmm(graph: CSRGraph, x: Tensor, reduce: str = "sum") -> Tensor:
    """Aggregate neighbour features; see :func:`abkd_fast.ops.spmm`."""
    value = graph.value
    value = None if value is None else value.to(accumulation_dtype(x))
    if reduce in ("sum", "mean"):
        return op_spmm(graph.rowptr, graph.col, value, x, reduce == "mean")
    return op_spmm_extremum(graph.rowptr, graph.col, value, x, reduce == "max", False)[0]


def op_spmm(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, mean: bool) -> Tensor:
    """out[i] = sum_{e in row i} value[e] * x[col[e]], divided by the number of edges if mean."""
    messages = _messages(col, value, x)
    total = messages.new_zeros(rowptr.numel() - 1, x.size(1))
    total = total.index_add(0, _row(rowptr, col), messages)
    if mean:
        total = total / rowptr.diff().clamp(min=1).unsqueeze(1)
    return total.to(x.dtype)


def op_sddmm(rowptr: Tensor, col: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out[e] = <a[row e], b[col e]>, [E] in the accumulation dtype."""
    dtype = accumulation_dtype(a)
    return (a[_row(rowptr, col)].to(dtype) * b[col].to(dtype)).sum(1)


def op_spmm_extremum(
    rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) message of every row and its edge; NaN beats every number.

    Without ``winners`` the edges are [0, F].
    """
    num_dst, num_edges, width = rowptr.numel() - 1, col.numel(), x.size(1)
    messages = _messages(col, value, x)
    row = _row(rowptr, col)
    with torch.no_grad():
        index = row.unsqueeze(1).expand_as(messages)
        best = messages.new_zeros(num_dst, width).scatter_reduce(
            0, index, messages, "amax" if maximum else "amin", include_self=False
        )[row]
        won = (messages == best) | (messages.isnan() & best.isnan())
        edges = torch.arange(num_edges, device=col.device).unsqueeze(1)
        arg = torch.full((num_dst, width), num_edges, device=col.device).scatter_reduce(
            0, index, torch.where(won, edges, num_edges), "amin"
        )
    # Rows without edges read a message of zeros behind the last edge's.
    out = torch.cat([messages, messages.new_zeros(1, width)]).gather(0, arg)
    arg = arg.masked_fill(arg == num_edges, -1).to(col.dtype)
    return out.to(x.dtype), arg if winners else arg.new_empty(0, width)


def op_spmm_extremum_dx(
    rowptr_t: Tensor, col_t: Tensor, perm: Tensor, value: Tensor | None, arg: Tensor, dout: Tensor
) -> Tensor:
    """dx[j] = sum over edges e = perm[t] from j to i = col_t[t] that won of value[e] * dout[i]."""
    messages = _messages(col_t, None if value is None else value[perm], dout)
    messages = messages.masked_fill(arg[col_t] != perm.unsqueeze(1), 0)
    total = messages.new_zeros(rowptr_t.numel() - 1, dout.size(1))
    return total.index_add(0, _row(rowptr_t, col_t), messages).to(dout.dtype)


def op_spmm_extremum_dvalue(
    rowptr: Tensor, col: Tensor, x: Tensor, arg: Tensor, dout: Tensor
) -> Tensor:
    """dvalue[e] = sum over features that edge e won of dout[row e] * x[col e]."""
    dtype = accumulation_dtype(x)
    row = _row(rowptr, col)
    edges = torch.arange(col.numel(), device=col.device).unsqueeze(1)
    products = dout[row].to(dtype) * x[col].to(dtype)
    return products.masked_fill(arg[row] != edges, 0).sum(1)


def _row(rowptr: Tensor, col: Tensor) -> Tensor:
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return rows.repeat_interleave(rowptr.diff().long(), output_size=col.numel())


def _messages(col: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    gathered = x.index_select(0, col).to(accumulation_dtype(x))
    return gathered if value is None else value.unsqueeze(1) * gathered
