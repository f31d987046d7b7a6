"""GATv2's attention in plain torch: the definition, the oracle in tests, the fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.graph import CSRGraph
from abkd_fast.reference.dropout import dropout
from abkd_fast.reference.edge_attention import (
    edge_rows,
    mask_of,
    row_softmax,
    row_sum,
    softmax_gradient,
    statistics,
)


def edge_attention_v2(
    graph: CSRGraph,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    *,
    negative_slope: float = 0.2,
    p: float = 0.0,
    seed: int | Tensor = 0,
    layer: int = 0,
    step: int = 0,
) -> Tensor:
    """Differentiable by autograd; see :func:`abkd_fast.ops.edge_attention_v2`."""
    dtype = accumulation_dtype(x)
    row, col = graph.row(), graph.col.long()
    score = _score(x.to(dtype)[col] + x_dst.to(dtype)[row], att.to(dtype), negative_slope)
    alpha = dropout(row_softmax(score, row, graph.num_dst), p, seed, layer, step)
    return row_sum(alpha.unsqueeze(-1) * x.to(dtype)[col], row, graph.num_dst).to(x.dtype)


def op_edge_attention_v2(
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    negative_slope: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """(out [M, H, C], stats [M, 2, H])."""
    rows = rowptr.numel() - 1
    row, source = edge_rows(rowptr, col)
    wide = x.to(att.dtype)
    score = _score(wide[source] + x_dst.to(att.dtype)[row], att, negative_slope)
    stats = statistics(score, row, rows)
    alpha = (score - stats[row, 0]).exp() * stats[row, 1]
    alpha = alpha * mask_of(alpha, p, seed, layer, step)
    return row_sum(alpha.unsqueeze(-1) * wide[source], row, rows).to(x.dtype), stats


def op_edge_attention_v2_backward(
    rowptr: Tensor,
    col: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    perm: Tensor,
    dout: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    stats: Tensor,
    negative_slope: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dx_dst, datt)."""
    dtype, rows = att.dtype, rowptr.numel() - 1
    row, source = edge_rows(rowptr, col)
    wide, dout = x.to(dtype), dout.to(dtype)
    mixed = wide[source] + x_dst.to(dtype)[row]
    score = _score(mixed, att, negative_slope)
    alpha = row_softmax(score, row, rows)
    mask = mask_of(alpha, p, seed, layer, step)
    dalpha = mask * (dout[row] * wide[source]).sum(-1)
    dscore = softmax_gradient(alpha, dalpha, score, row, rows).unsqueeze(-1)
    datt = (dscore * torch.nn.functional.leaky_relu(mixed, negative_slope)).sum(0)
    dmixed = dscore * att
    dmixed = torch.where(mixed > 0, dmixed, negative_slope * dmixed)
    dx = row_sum((alpha * mask).unsqueeze(-1) * dout[row] + dmixed, source, x.size(0))
    return dx.to(x.dtype), row_sum(dmixed, row, rows).to(x.dtype), datt


def _score(mixed: Tensor, att: Tensor, negative_slope: float) -> Tensor:
    return (torch.nn.functional.leaky_relu(mixed, negative_slope) * att).sum(-1)
