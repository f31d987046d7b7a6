"""Sparse-dense product: aggregate neighbour features with sum, mean, max or min."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from abkd_fast._autocast import narrowed
from abkd_fast._backend import register
from abkd_fast._checks import FLOATS, accumulation_dtype, check_choice, check_tensor
from abkd_fast.graph import CSRGraph
from abkd_fast.memory import pick
from abkd_fast.reference.spmm import (
    op_sddmm,
    op_spmm,
    op_spmm_extremum,
    op_spmm_extremum_dvalue,
    op_spmm_extremum_dx,
)

REDUCTIONS = ("sum", "mean", "max", "min")


@narrowed
def spmm(graph: CSRGraph, x: Tensor, reduce: str = "sum") -> Tensor:
    r"""Aggregate neighbour features over the incoming edges of every node.

    .. math:: out_i = \bigoplus_{e \in row(i)} value_e \, x_{col_e}

    with :math:`\bigoplus` the sum, the mean (the sum divided by the number of edges, whatever
    their weights), the maximum or the minimum. Rows without edges are 0. Differentiable in ``x``
    and ``graph.value``: sum and mean to any order, max and min once; the gradient of a maximum
    goes to the first edge that attains it. The transpose that the gradient of ``x`` needs is
    computed by the first call and kept by the graph; call ``graph.t()`` before
    ``torch.compile`` or timing. Deterministic: no atomics, and results do not depend on the number
    of threads.

    Args:
        graph: [num_dst, num_src] with E edges. Weights no wider than the accumulation dtype
            (so every cast is exact), or none: each edge counts 1.
        x: [num_src, F] float16/bfloat16/float32/float64, any strides.
        reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.

    Returns:
        [num_dst, F], dtype of x; accumulated in float32 (float64 for float64). Under autocast x
        is taken in its dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    value = check_operands(graph, x, reduce)
    rowptr, col = graph.rowptr, graph.col
    trains_value = value is not None and value.requires_grad
    differentiate = torch.is_grad_enabled() and (x.requires_grad or trains_value)
    if reduce in ("max", "min"):
        if not differentiate:
            arguments = (rowptr, col, value, x, reduce == "max", False)
            return torch.ops.abkd_fast.spmm_extremum(*arguments)[0]
        transpose = graph.transposed() if x.requires_grad else (None, None, None)
        return _SpmmExtremum.apply(rowptr, col, value, x, *transpose, reduce == "max")[0]
    if not differentiate:
        return torch.ops.abkd_fast.spmm(rowptr, col, value, x, reduce == "mean")
    rowptr_t = col_t = value_t = perm = None
    if x.requires_grad:
        rowptr_t, col_t, perm = graph.transposed()
        if value is not None and not trains_value:
            transposed_value = graph.t().value
            value_t = None if transposed_value is None else transposed_value.to(value.dtype)
    return _Spmm.apply(rowptr, col, value, x, rowptr_t, col_t, value_t, perm, reduce == "mean")


def check_operands(graph: CSRGraph, x: Tensor, reduce: str) -> Tensor | None:
    """Check the arguments; return the weights in the accumulation dtype."""
    if not isinstance(graph, CSRGraph):
        raise ValueError(
            f"graph must be a CSRGraph, got {type(graph).__name__}; "
            "build one with CSRGraph.from_edge_index() or another from_*() method"
        )
    check_tensor("x", x, dim=2, dtypes=FLOATS, device=graph.device)
    check_choice("reduce", reduce, REDUCTIONS)
    if x.size(0) != graph.num_src:
        reverse = x.size(0) == graph.num_dst
        fix = "pass graph.t() for the reverse direction" if reverse else "one row per source node"
        raise ValueError(f"x must be [num_src={graph.num_src}, F], got {list(x.shape)}; {fix}")
    value, dtype = graph.value, accumulation_dtype(x)
    if value is None:
        return None
    if value.dtype == torch.float64 and dtype == torch.float32:
        raise ValueError(
            f"graph.value must be float32 or narrower where x is {str(x.dtype)[6:]}, "
            "got float64; cast it with graph.to(dtype=torch.float32)"
        )
    return value if value.dtype == dtype else value.to(dtype)


class _Spmm(Function):
    """Sum or mean. Its gradients are again an spmm and an sddmm, so any order exists.

    ``value_t`` is the weights in the order of the transpose, where the caller has them;
    otherwise ``perm`` produces them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        value: Tensor | None,
        x: Tensor,
        rowptr_t: Tensor | None,
        col_t: Tensor | None,
        value_t: Tensor | None,
        perm: Tensor | None,
        mean: bool,
    ) -> Tensor:
        saved_x = x if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(rowptr, col, value, saved_x, rowptr_t, col_t, value_t, perm)
        ctx.mean = mean
        return torch.ops.abkd_fast.spmm(rowptr, col, value, x, mean)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        rowptr, col, value, x, rowptr_t, col_t, value_t, perm = ctx.saved_tensors
        dx = dvalue = None
        if ctx.mean:
            dout = (dout / rowptr.diff().clamp(min=1).unsqueeze(1)).to(dout.dtype)
        if ctx.needs_input_grad[3]:
            if value is not None and value_t is None:
                value_t = pick(value, perm)
            transpose = (rowptr, col, value, _inverse(perm))
            dx = differentiable_sum(rowptr_t, col_t, value_t, dout, *transpose)
        if ctx.needs_input_grad[2]:
            dvalue = _sddmm(rowptr, col, dout, x, rowptr_t, col_t, perm)
        return None, None, dvalue, dx, None, None, None, None, None


class _Sddmm(Function):
    """out[e] = <a[row e], b[col e]>."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        a: Tensor,
        b: Tensor,
        rowptr_t: Tensor | None,
        col_t: Tensor | None,
        perm: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(rowptr, col, a, b, rowptr_t, col_t, perm)
        return torch.ops.abkd_fast.sddmm(rowptr, col, a, b)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        rowptr, col, a, b, rowptr_t, col_t, perm = ctx.saved_tensors
        da = db = None
        if ctx.needs_input_grad[2]:
            da = differentiable_sum(rowptr, col, dout, b, rowptr_t, col_t, None, perm)
        if ctx.needs_input_grad[3]:
            dout_t = pick(dout, perm)
            db = differentiable_sum(rowptr_t, col_t, dout_t, a, rowptr, col, dout, _inverse(perm))
        return None, None, da, db, None, None, None


class _SpmmExtremum(Function):
    """Maximum or minimum, and the edge that attains it."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        value: Tensor | None,
        x: Tensor,
        rowptr_t: Tensor | None,
        col_t: Tensor | None,
        perm: Tensor | None,
        maximum: bool,
    ) -> tuple[Tensor, Tensor]:
        out, arg = torch.ops.abkd_fast.spmm_extremum(rowptr, col, value, x, maximum, True)
        ctx.mark_non_differentiable(arg)
        saved_x = x if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(rowptr, col, value, saved_x, rowptr_t, col_t, perm, arg)
        return out, arg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rowptr, col, value, x, rowptr_t, col_t, perm, arg = ctx.saved_tensors
        ops = torch.ops.abkd_fast
        dx = dvalue = None
        if ctx.needs_input_grad[3]:
            dx = ops.spmm_extremum_dx(rowptr_t, col_t, perm, value, arg, dout)
        if ctx.needs_input_grad[2]:
            dvalue = ops.spmm_extremum_dvalue(rowptr, col, x, arg, dout)
        return None, None, dvalue, dx, None, None, None, None


# In a first backward pass nothing asks for the gradient of a gradient: the plain op will do.


def differentiable_sum(
    rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, *transpose: Any
) -> Tensor:
    """A @ x; ``transpose`` is (rowptr, col, value, perm or None where value is not trained)."""
    if torch.is_grad_enabled():
        return _Spmm.apply(rowptr, col, value, x, *transpose, False)
    return torch.ops.abkd_fast.spmm(rowptr, col, value, x, False)


def _sddmm(rowptr: Tensor, col: Tensor, a: Tensor, b: Tensor, *transpose: Any) -> Tensor:
    if torch.is_grad_enabled():
        return _Sddmm.apply(rowptr, col, a, b, *transpose)
    return torch.ops.abkd_fast.sddmm(rowptr, col, a, b)


def _inverse(perm: Tensor | None) -> Tensor | None:
    """The inverse permutation where a second derivative may ask for it."""
    if perm is None or not torch.is_grad_enabled():
        return None
    return torch.empty_like(perm).scatter_(0, perm, torch.arange(len(perm), device=perm.device))


def _like_rows(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, mean: bool) -> Tensor:
    return x.new_empty(rowptr.numel() - 1, x.size(1))


def _like_edges(rowptr: Tensor, col: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(col.numel(), dtype=accumulation_dtype(a))


def _like_rows_and_winners(
    rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    rows, width = rowptr.numel() - 1, x.size(1)
    return x.new_empty(rows, width), col.new_empty(rows if winners else 0, width)


def _like_sources(
    rowptr_t: Tensor, col_t: Tensor, perm: Tensor, value: Tensor | None, arg: Tensor, dout: Tensor
) -> Tensor:
    return dout.new_empty(rowptr_t.numel() - 1, dout.size(1))


def _like_values(rowptr: Tensor, col: Tensor, x: Tensor, arg: Tensor, dout: Tensor) -> Tensor:
    return x.new_empty(col.numel(), dtype=accumulation_dtype(x))


register("spmm", op_spmm, _like_rows)
register("sddmm", op_sddmm, _like_edges)
register("spmm_extremum", op_spmm_extremum, _like_rows_and_winners)
register("spmm_extremum_dx", op_spmm_extremum_dx, _like_sources)
register("spmm_extremum_dvalue", op_spmm_extremum_dvalue, _like_values)
