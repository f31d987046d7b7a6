"""What objectives compute for every edge of a graph; nothing of size E x d is ever there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from abkd_fast.graph import CSRGraph
from abkd_fast.ops.spmm import _Sddmm

_COLUMNS = 8  # of the states, gathered at a time


def edge_dots(graph: CSRGraph, a: Tensor, b: Tensor) -> Tensor:
    """<a_v, b_u> [E] for the edges (v, u) of a graph [N, N]; a and b are [N, d]."""
    a, b = a.contiguous(), b.contiguous()
    return _Sddmm.apply(graph.rowptr, graph.col, a, b, *graph.transposed())


def edge_distances(graph: CSRGraph, x: Tensor) -> Tensor:
    """|x_v - x_u|_1 [E] for the edges (v, u) of a graph [N, N]; x is [N, d]."""
    return _Distances.apply(x, graph)


class _Distances(Function):
    """L1 distances, a few columns after the other; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: CSRGraph) -> Tensor:
        ctx.save_for_backward(x)
        ctx.graph = graph
        rows, cols = graph.row(), graph.col.long()
        out = x.new_zeros(graph.num_edges)
        for part in x.split(_COLUMNS, dim=1):
            out += (part[rows] - part[cols]).abs_().sum(1)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        (x,), graph = ctx.saved_tensors, ctx.graph
        rows, cols = graph.row(), graph.col.long()
        rowptr_t, _, perm = graph.transposed()
        total, dout = torch.ops.abkd_fast.segment_csr, dout[:, None]
        parts = []
        for part in x.split(_COLUMNS, dim=1):
            signs = (part[rows] - part[cols]).sign_() * dout
            there = total(signs, graph.rowptr.long(), False)
            parts.append(there - total(signs[perm], rowptr_t.long(), False))
        return torch.cat(parts, dim=1), None
