"""Edge attention in plain torch: the definition, the oracle in tests, the fallback.

All of it gathers [E, H, C] messages and accumulates in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.graph import CSRGraph
from abkd_fast.reference.dropout import dropout, op_dropout


def edge_attention(
    graph: CSRGraph,
    x: Tensor,
    att_src: Tensor,
    att_dst: Tensor | None = None,
    *,
    x_dst: Tensor | None = None,
    score_edge: Tensor | None = None,
    negative_slope: float = 0.2,
    p: float = 0.0,
    seed: int | Tensor = 0,
    layer: int = 0,
    step: int = 0,
) -> Tensor:
    """GAT's attention, differentiable by autograd; see :func:`abkd_fast.ops.edge_attention`."""
    dtype = accumulation_dtype(x)
    row, col = graph.row(), graph.col.long()
    score = node_scores(x, att_src)[col]
    if att_dst is not None:
        score = score + node_scores(x if x_dst is None else x_dst, att_dst)[row]
    if score_edge is not None:
        score = score + score_edge.to(dtype)
    score = torch.nn.functional.leaky_relu(score, negative_slope)
    alpha = dropout(row_softmax(score, row, graph.num_dst), p, seed, layer, step)
    return row_sum(alpha.unsqueeze(-1) * x.to(dtype)[col], row, graph.num_dst).to(x.dtype)


def node_scores(x: Tensor, att: Tensor) -> Tensor:
    """<x, att> of every node and head, [N, H] in the accumulation dtype."""
    dtype = accumulation_dtype(x)
    return (x.to(dtype) * att.to(dtype)).sum(-1)


def row_max(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """Largest score [rows, H] of every row; 0 where it has no edges."""
    index = row.unsqueeze(1).expand_as(score)
    most = score.detach().new_zeros(rows, score.size(1))
    return most.scatter_reduce(0, index, score.detach(), "amax", include_self=False)


def row_sum(messages: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum of the messages [E, ...] of every row."""
    return messages.new_zeros(rows, *messages.shape[1:]).index_add(0, row, messages)


def row_softmax(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """Softmax over the edges of every row, [E, H]."""
    weight = (score - row_max(score, row, rows)[row]).exp()
    return weight / row_sum(weight, row, rows)[row]


def softmax_gradient(
    alpha: Tensor, dalpha: Tensor, score: Tensor, row: Tensor, rows: int
) -> Tensor:
    """Gradient of a score whose softmax is alpha, in the order in which autograd forms it."""
    weight = (score - row_max(score, row, rows)[row]).exp()
    total = row_sum(weight, row, rows)[row]
    dtotal = row_sum(-dalpha * (alpha / total), row, rows)
    return weight * (dalpha / total + dtotal[row])


def edge_rows(rowptr: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Destination and source of every edge, int64."""
    rows = torch.arange(rowptr.numel() - 1, device=rowptr.device)
    return rows.repeat_interleave(rowptr.diff().long(), output_size=col.numel()), col.long()


def statistics(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """Largest score and 1 / sum of exponentials, [rows, 2, H]; 0 where a row has no edges."""
    most = row_max(score, row, rows)
    total = row_sum((score - most[row]).exp(), row, rows)
    empty = torch.bincount(row, minlength=rows).eq(0).unsqueeze(1)
    return torch.stack([most, total.reciprocal().masked_fill(empty, 0.0)], dim=1)


def mask_of(alpha: Tensor, p: float, seed: Tensor | None, layer: int, step: int) -> Tensor:
    """What dropout multiplies every element of alpha with."""
    ones = torch.ones_like(alpha)
    return ones if seed is None or p == 0.0 else op_dropout(ones, p, seed, layer, step)


def op_edge_attention(
    rowptr: Tensor,
    col: Tensor,
    x: Tensor,
    x_dst: Tensor | None,
    att_src: Tensor,
    att_dst: Tensor | None,
    score_edge: Tensor | None,
    negative_slope: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out [M, H, C], stats [M, 2, H], score_src [N, H], score_dst [M, H])."""
    rows = rowptr.numel() - 1
    row, source = edge_rows(rowptr, col)
    score_src = node_scores(x, att_src)
    score_dst = score_src.new_zeros(rows, x.size(1))
    if att_dst is not None:
        score_dst = node_scores(x if x_dst is None else x_dst, att_dst)
    score = _edge_scores(row, source, score_src, score_dst, score_edge)
    score = torch.nn.functional.leaky_relu(score, negative_slope)
    stats = statistics(score, row, rows)
    alpha = (score - stats[row, 0]).exp() * stats[row, 1]
    alpha = alpha * mask_of(alpha, p, seed, layer, step)
    out = row_sum(alpha.unsqueeze(-1) * x[source].to(alpha.dtype), row, rows).to(x.dtype)
    return out, stats, score_src, score_dst


def op_edge_attention_backward(
    rowptr: Tensor,
    col: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    perm: Tensor,
    dout: Tensor,
    x: Tensor,
    x_dst: Tensor | None,
    att_src: Tensor,
    att_dst: Tensor | None,
    score_edge: Tensor | None,
    stats: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    negative_slope: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
    want_edge: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dx_dst, datt_src, datt_dst, dscore_edge); [0] where there is none."""
    dtype, rows = accumulation_dtype(x), rowptr.numel() - 1
    row, source = edge_rows(rowptr, col)
    score = _edge_scores(row, source, score_src, score_dst, score_edge)
    sloped = torch.nn.functional.leaky_relu(score, negative_slope)
    alpha = row_softmax(sloped, row, rows)
    mask = mask_of(alpha, p, seed, layer, step)
    wide, dout = x.to(dtype), dout.to(dtype)
    dalpha = mask * (dout[row] * wide[source]).sum(-1)
    dsloped = softmax_gradient(alpha, dalpha, sloped, row, rows)
    dscore = torch.where(score > 0, dsloped, negative_slope * dsloped)
    dscore_src, dscore_dst = row_sum(dscore, source, x.size(0)), row_sum(dscore, row, rows)
    dx = row_sum((alpha * mask).unsqueeze(-1) * dout[row], source, x.size(0))
    dx = dx + dscore_src.unsqueeze(-1) * att_src
    datt_src = (dscore_src.unsqueeze(-1) * wide).sum(0)
    dx_dst, datt_dst = x.new_empty(0), alpha.new_empty(0)
    if att_dst is not None:
        own = dscore_dst.unsqueeze(-1) * att_dst
        datt_dst = (dscore_dst.unsqueeze(-1) * (wide if x_dst is None else x_dst.to(dtype))).sum(0)
        if x_dst is None:
            dx = dx + own
        else:
            dx_dst = own.to(x.dtype)
    return dx.to(x.dtype), dx_dst, datt_src, datt_dst, dscore if want_edge else dscore.new_empty(0)


def _edge_scores(
    row: Tensor, source: Tensor, score_src: Tensor, score_dst: Tensor, score_edge: Tensor | None
) -> Tensor:
    score = score_src[source] + score_dst[row]
    return score if score_edge is None else score + score_edge
