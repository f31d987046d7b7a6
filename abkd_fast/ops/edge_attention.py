"""Attention over the neighbours of every node (GAT): scores, softmax, dropout, weighted sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast import reference
from abkd_fast._activations import keep
from abkd_fast._backend import register
from abkd_fast._checks import FLOATS, accumulation_dtype, check_tensor
from abkd_fast._csr import Structure
from abkd_fast.graph import CSRGraph
from abkd_fast.ops.dropout import check_dropout, seed_tensor
from abkd_fast.reference.edge_attention import op_edge_attention, op_edge_attention_backward


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
    seed: int | Tensor | None = None,
    layer: int = 0,
    step: int = 0,
) -> Tensor:
    r"""GAT's attention, all heads in one pass over the graph.

    .. math::
        e_{ij} = LeakyReLU(\langle a_{src}, x_j \rangle + \langle a_{dst}, x^{dst}_i \rangle
        + s_{ij}), \qquad out_i = \sum_j drop(softmax_j(e_{ij})) \, x_j

    The softmax runs over the edges of row i, its maximum subtracted; rows without edges are 0.
    (Velickovic et al., arXiv 1710.10903, eq. 3 to 5.) Nothing of size E x H x C exists, and of
    the E x H coefficients only those of a block of rows at a time: the backward forms them again
    from the maximum and the sum of every row, in one pass over the graph and one over its
    transpose, which is computed by the first call and kept. Differentiable in x, att_src,
    att_dst, x_dst and score_edge; second derivatives go through plain torch. Deterministic, and
    independent of the number of threads. The graph's weights play no part.

    Args:
        graph: [num_dst, num_src].
        x: [num_src, H, C] float16/bfloat16/float32/float64: H heads of C features.
        att_src: [H, C], dtype of x.
        att_dst: [H, C], dtype of x; None: scores depend on the source alone.
        x_dst: [num_dst, H, C], dtype of x; None: x, whose rows are the destinations' too.
        score_edge: [E, H] what every edge adds to its scores, in the graph's order, dtype of x.
        negative_slope: of the leaky ReLU.
        p: probability of dropping a coefficient; seed, layer, step as in ``ops.dropout``, with
            coefficients numbered as the elements of [E, H].
        seed: needed where p > 0.
        layer: number of this dropout in the model.
        step: number of the training step.

    Returns:
        [num_dst, H, C], dtype of x; accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes or options do not fit.
    """
    heads, width = check_features(graph, x)
    check_rows("att_src", att_src, [heads, width], x)
    if att_dst is not None:
        check_rows("att_dst", att_dst, [heads, width], x)
        if x_dst is None and graph.num_dst != graph.num_src:
            raise ValueError(
                f"x_dst must be given where the graph is not square, got shape {graph.shape}"
            )
    if x_dst is not None:
        if att_dst is None:
            raise ValueError("att_dst must be given where x_dst is, got None")
        check_rows("x_dst", x_dst, [graph.num_dst, heads, width], x)
    if score_edge is not None:
        check_rows("score_edge", score_edge, [graph.num_edges, heads], x)
    key = attention_seed(p, seed, layer, step)
    if x_dst is x:
        x_dst = None
    dtype = accumulation_dtype(x)
    tensors = (x, x_dst, att_src, att_dst, score_edge)
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    vectors = (None if t is None else t.to(dtype) for t in tensors[2:])
    options = (negative_slope, p, key, layer, step)
    if not trained:
        arguments = (graph.rowptr, graph.col, x, x_dst, *vectors, *options)
        return torch.ops.abkd_fast.edge_attention(*arguments)[0]
    edges = (graph.rowptr, graph.col, *graph.transposed())
    return _EdgeAttention.apply(*edges, x, x_dst, *vectors, *options)


def check_features(graph: CSRGraph, x: Tensor) -> tuple[int, int]:
    """Check graph and x [num_src, H, C]; return H and C."""
    if not isinstance(graph, CSRGraph):
        raise ValueError(
            f"graph must be a CSRGraph, got {type(graph).__name__}; "
            "build one with CSRGraph.from_edge_index() or another from_*() method"
        )
    check_tensor("x", x, dim=3, dtypes=FLOATS, device=graph.device)
    if x.size(0) != graph.num_src or x.size(1) == 0:
        raise ValueError(
            f"x must be [num_src={graph.num_src}, H >= 1, C], got {list(x.shape)}; "
            "one row per source node, reshaped to its heads"
        )
    return x.size(1), x.size(2)


def check_rows(name: str, tensor: Tensor, shape: list[int], x: Tensor) -> None:
    """Raise ValueError unless the tensor has the shape, and dtype and device of x."""
    check_tensor(name, tensor, dtypes=(x.dtype,), device=x.device)
    if list(tensor.shape) != shape:
        raise ValueError(f"{name} must be {shape}, got {list(tensor.shape)}")


def attention_seed(p: float, seed: int | Tensor | None, layer: int, step: int) -> Tensor | None:
    """The checked dropout's seed, or None where nothing is dropped."""
    check_dropout(p, layer, step)
    if p > 0.0 and seed is None:
        raise ValueError("seed must be given where p > 0, got None; draw_seed() makes one")
    return None if seed is None or p == 0.0 else seed_tensor(seed)


class _EdgeAttention(Function):
    """Keeps the inputs, scores of the nodes, and maximum and sum of every row."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        rowptr_t: Tensor,
        col_t: Tensor,
        perm: Tensor,
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
    ) -> Tensor:
        tensors = (x, x_dst, att_src, att_dst, score_edge)
        ctx.options = (negative_slope, p, layer, step)
        out, *kept = torch.ops.abkd_fast.edge_attention(
            rowptr, col, *tensors, negative_slope, p, seed, layer, step
        )
        keep(*tensors[2:], *kept)  # what goes into exponents
        ctx.save_for_backward(rowptr, col, rowptr_t, col_t, perm, *tensors, seed, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        *edges, x, x_dst, att_src, att_dst, score_edge, seed, stats, src, dst = ctx.saved_tensors
        negative_slope, p, layer, step = ctx.options
        tensors = (x, x_dst, att_src, att_dst, score_edge)
        wanted = ctx.needs_input_grad[5:10]
        if torch.is_grad_enabled():
            names = ("x", "x_dst", "att_src", "att_dst", "score_edge")
            given = dict(zip(names, tensors, strict=True))
            given |= {"negative_slope": negative_slope, "p": p, "layer": layer, "step": step}
            given |= {"seed": 0 if seed is None else seed}
            graph = CSRGraph(Structure(edges[0], edges[1], x.size(0)), None)
            out = reference.edge_attention(graph, **given)
            gradients = differentiable_gradients(out, tensors, wanted, dout)
        else:
            rest = (stats, src, dst, negative_slope, p, seed, layer, step, wanted[4])
            gradients = torch.ops.abkd_fast.edge_attention_backward(*edges, dout, *tensors, *rest)
        kept = (g if want else None for g, want in zip(gradients, wanted, strict=True))
        return (*(None,) * 5, *kept, *(None,) * 5)


def differentiable_gradients(
    out: Tensor, tensors: tuple[Tensor | None, ...], wanted: tuple[bool, ...], dout: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, of ``out`` in differentiable torch."""
    inputs = [t for t, want in zip(tensors, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(out, inputs, dout, create_graph=True))
    return [next(found) if want else None for want in wanted]


def _like_outputs(
    rowptr: Tensor, col: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, (sources, heads, width) = rowptr.numel() - 1, x.shape
    scores = x.new_empty(0, dtype=accumulation_dtype(x))
    out, stats = x.new_empty(rows, heads, width), scores.new_empty(rows, 2, heads)
    return out, stats, scores.new_empty(sources, heads), scores.new_empty(rows, heads)


def _like_gradients(
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
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    want_edge = rest[-1]
    scores = att_src.new_empty(0)
    other = x_dst is not None and att_dst is not None
    return (
        x.new_empty(x.shape),
        x.new_empty(dout.shape if other else (0,)),
        scores.new_empty(att_src.shape),
        scores.new_empty(att_src.shape if att_dst is not None else (0,)),
        scores.new_empty((col.numel(), x.size(1)) if want_edge else (0,)),
    )


register("edge_attention", op_edge_attention, _like_outputs)
register("edge_attention_backward", op_edge_attention_backward, _like_gradients)
