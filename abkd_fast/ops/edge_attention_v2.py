"""GATv2's attention over the neighbours of every node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast import reference
from abkd_fast._activations import keep
from abkd_fast._backend import register
from abkd_fast._checks import accumulation_dtype
from abkd_fast._csr import Structure
from abkd_fast.graph import CSRGraph
from abkd_fast.ops.edge_attention import (
    attention_seed,
    check_features,
    check_rows,
    differentiable_gradients,
)
from abkd_fast.reference.edge_attention_v2 import (
    op_edge_attention_v2,
    op_edge_attention_v2_backward,
)


def edge_attention_v2(
    graph: CSRGraph,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    *,
    negative_slope: float = 0.2,
    p: float = 0.0,
    seed: int | Tensor | None = None,
    layer: int = 0,
    step: int = 0,
) -> Tensor:
    r"""GATv2's attention, all heads in one pass over the graph.

    .. math::
        e_{ij} = \langle a, LeakyReLU(x_j + x^{dst}_i) \rangle, \qquad
        out_i = \sum_j drop(softmax_j(e_{ij})) \, x_j

    (Brody, Alon, Yahav, arXiv 2105.14491, eq. 7.) Memory, passes, dropout and determinism as in
    :func:`abkd_fast.ops.edge_attention`, but that the backward's first pass leaves two numbers an
    edge and head for its second. Differentiable in x, x_dst and att; second derivatives go
    through plain torch.

    Args:
        graph: [num_dst, num_src].
        x: [num_src, H, C] float16/bfloat16/float32/float64: H heads of C features.
        x_dst: [num_dst, H, C], dtype of x; may be x.
        att: [H, C], dtype of x.
        negative_slope: of the leaky ReLU.
        p: probability of dropping a coefficient.
        seed: needed where p > 0.
        layer: number of this dropout in the model.
        step: number of the training step.

    Returns:
        [num_dst, H, C], dtype of x; accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or options do not fit.
    """
    heads, width = check_features(graph, x)
    check_rows("x_dst", x_dst, [graph.num_dst, heads, width], x)
    check_rows("att", att, [heads, width], x)
    key = attention_seed(p, seed, layer, step)
    if x_dst is x:
        x_dst = x.view_as(x)  # torch.compile wants distinct arguments
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (x, x_dst, att))
    att = att.to(accumulation_dtype(x))
    options = (negative_slope, p, key, layer, step)
    if not trained:
        arguments = (graph.rowptr, graph.col, x, x_dst, att, *options)
        return torch.ops.abkd_fast.edge_attention_v2(*arguments)[0]
    edges = (graph.rowptr, graph.col, *graph.transposed())
    return _EdgeAttentionV2.apply(*edges, x, x_dst, att, *options)


class _EdgeAttentionV2(Function):
    """Keeps the inputs, and maximum and sum of every row."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        rowptr_t: Tensor,
        col_t: Tensor,
        perm: Tensor,
        x: Tensor,
        x_dst: Tensor,
        att: Tensor,
        negative_slope: float,
        p: float,
        seed: Tensor | None,
        layer: int,
        step: int,
    ) -> Tensor:
        ctx.options = (negative_slope, p, layer, step)
        out, stats = torch.ops.abkd_fast.edge_attention_v2(
            rowptr, col, x, x_dst, att, negative_slope, p, seed, layer, step
        )
        keep(x, x_dst, att, stats)  # scores are formed again: what goes into exponents
        ctx.save_for_backward(rowptr, col, rowptr_t, col_t, perm, x, x_dst, att, seed, stats)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *edges, x, x_dst, att, seed, stats = ctx.saved_tensors
        negative_slope, p, layer, step = ctx.options
        wanted = ctx.needs_input_grad[5:8]
        if torch.is_grad_enabled():
            graph = CSRGraph(Structure(edges[0], edges[1], x.size(0)), None)
            options = {"negative_slope": negative_slope, "p": p, "layer": layer, "step": step}
            options |= {"seed": 0 if seed is None else seed}
            out = reference.edge_attention_v2(graph, x, x_dst, att, **options)
            gradients = differentiable_gradients(out, (x, x_dst, att), wanted, dout)
        else:
            gradients = torch.ops.abkd_fast.edge_attention_v2_backward(
                *edges, dout, x, x_dst, att, stats, negative_slope, p, seed, layer, step
            )
        kept = (g if want else None for g, want in zip(gradients, wanted, strict=True))
        return (*(None,) * 5, *kept, *(None,) * 5)


def _like_outputs(rowptr: Tensor, col: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows, (_, heads, width) = rowptr.numel() - 1, x.shape
    stats = x.new_empty(rows, 2, heads, dtype=accumulation_dtype(x))
    return x.new_empty(rows, heads, width), stats


def _like_gradients(
    rowptr: Tensor,
    col: Tensor,
    rowptr_t: Tensor,
    col_t: Tensor,
    perm: Tensor,
    dout: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x_dst.shape), att.new_empty(att.shape)


register("edge_attention_v2", op_edge_attention_v2, _like_outputs)
register("edge_attention_v2_backward", op_edge_attention_v2_backward, _like_gradients)
