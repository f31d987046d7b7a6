"""Segment reduction: sum, mean, maximum or minimum of consecutive rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from abkd_fast._backend import register
from abkd_fast._checks import FLOATS, INDICES, check_choice, check_tensor
from abkd_fast.ops.spmm import REDUCTIONS
from abkd_fast.reference.segment_csr import (
    op_segment_csr,
    op_segment_csr_expand,
    op_segment_csr_extremum,
    op_segment_csr_extremum_dsrc,
)


def segment_csr(src: Tensor, indptr: Tensor, reduce: str = "sum") -> Tensor:
    r"""Reduce the rows of ``src`` within every segment, as ``torch_scatter.segment_csr`` does.

    .. math:: out_i = \bigoplus_{e = indptr_i}^{indptr_{i+1} - 1} src_e

    with :math:`\bigoplus` the sum, the mean, the maximum or the minimum. Empty segments are 0,
    whatever the reduction; rows before the first pointer or behind the last belong to no segment.
    Differentiable in ``src``: sum and mean to any order, max and min once; the gradient of a
    maximum goes to the first row that attains it. Deterministic, and independent of the number of
    threads. (Vocabulary: Fey, Lenssen: Fast graph representation learning with PyTorch
    Geometric, 2019.)

    Args:
        src: [E, ...] float16/bfloat16/float32/float64, one dimension or more, any strides.
        indptr: [num_segments + 1] int32/int64; never decreases, in [0, E].
        reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.

    Returns:
        [num_segments, ...], dtype of src; accumulated in float32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes, devices or pointers do not fit.
    """
    _check(src, indptr, reduce)
    rows, indptr = src.unsqueeze(1) if src.dim() == 1 else src.flatten(1), indptr.long()
    differentiate = torch.is_grad_enabled() and src.requires_grad
    ops = torch.ops.abkd_fast
    if reduce in ("max", "min"):
        if differentiate:
            out = _SegmentExtremum.apply(rows, indptr, reduce == "max")[0]
        else:
            out = ops.segment_csr_extremum(rows, indptr, reduce == "max", False)[0]
    elif differentiate:
        out = _Segment.apply(rows, indptr, reduce == "mean")
    else:
        out = ops.segment_csr(rows, indptr, reduce == "mean")
    return out.view(indptr.numel() - 1, *src.shape[1:])


def _check(src: Tensor, indptr: Tensor, reduce: str) -> None:
    check_tensor("src", src, dtypes=FLOATS)
    check_tensor("indptr", indptr, dim=1, dtypes=INDICES, device=src.device)
    check_choice("reduce", reduce, REDUCTIONS)
    if src.dim() == 0:
        raise ValueError("src must have 1 dimension or more, got shape []; add one: src.view(1)")
    if indptr.numel() == 0:
        raise ValueError("indptr must hold num_segments + 1 entries, got 0; no segments are [0]")
    # The kernels check too. A compiled graph, or another device, is not made to wait for values.
    if torch.compiler.is_compiling() or indptr.device.type != "cpu":
        return
    first, last = int(indptr[0]), int(indptr[-1])
    if first < 0 or last > src.size(0):
        raise ValueError(
            f"indptr must lie in [0, E={src.size(0)}], got values from {first} to {last}; "
            "E is src.size(0)"
        )
    drops = indptr[1:] < indptr[:-1]
    if bool(drops.any()):
        i = int(drops.nonzero()[0])
        raise ValueError(
            f"indptr must not decrease, got indptr[{i}]={int(indptr[i])} > "
            f"indptr[{i + 1}]={int(indptr[i + 1])}; sort the rows of src by segment"
        )


class _Segment(Function):
    """Sum or mean. Its gradient is an expansion, whose gradient is a sum: any order exists."""

    @staticmethod
    def forward(ctx: Any, src: Tensor, indptr: Tensor, mean: bool) -> Tensor:
        ctx.save_for_backward(indptr)
        ctx.size, ctx.mean = src.size(0), mean
        return torch.ops.abkd_fast.segment_csr(src, indptr, mean)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (indptr,) = ctx.saved_tensors
        if ctx.mean:
            dout = (dout / indptr.diff().clamp(min=1).unsqueeze(1)).to(dout.dtype)
        if torch.is_grad_enabled():
            return _Expand.apply(dout, indptr, ctx.size), None, None
        return torch.ops.abkd_fast.segment_csr_expand(dout, indptr, ctx.size), None, None


class _Expand(Function):
    """Every row of a segment becomes the segment's row of ``out``."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, indptr: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(indptr)
        return torch.ops.abkd_fast.segment_csr_expand(out, indptr, size)

    @staticmethod
    def backward(ctx: Any, drows: Tensor) -> tuple[Tensor | None, ...]:
        (indptr,) = ctx.saved_tensors
        return _Segment.apply(drows, indptr, False), None, None


class _SegmentExtremum(Function):
    """Maximum or minimum, and the row that attains it."""

    @staticmethod
    def forward(ctx: Any, src: Tensor, indptr: Tensor, maximum: bool) -> tuple[Tensor, Tensor]:
        out, arg = torch.ops.abkd_fast.segment_csr_extremum(src, indptr, maximum, True)
        ctx.mark_non_differentiable(arg)
        ctx.save_for_backward(indptr, arg)
        ctx.size = src.size(0)
        return out, arg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        indptr, arg = ctx.saved_tensors
        dsrc = torch.ops.abkd_fast.segment_csr_extremum_dsrc(arg, dout, indptr, ctx.size)
        return dsrc, None, None


def _like_segments(src: Tensor, indptr: Tensor, mean: bool) -> Tensor:
    return src.new_empty(indptr.numel() - 1, src.size(1))


def _like_segments_and_winners(
    src: Tensor, indptr: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    rows, width = indptr.numel() - 1, src.size(1)
    return src.new_empty(rows, width), indptr.new_empty(rows if winners else 0, width)


def _like_rows(out: Tensor, indptr: Tensor, size: int) -> Tensor:
    return out.new_empty(size, out.size(1))


def _like_winning_rows(arg: Tensor, dout: Tensor, indptr: Tensor, size: int) -> Tensor:
    return dout.new_empty(size, dout.size(1))


register("segment_csr", op_segment_csr, _like_segments)
register("segment_csr_extremum", op_segment_csr_extremum, _like_segments_and_winners)
register("segment_csr_expand", op_segment_csr_expand, _like_rows)
register("segment_csr_extremum_dsrc", op_segment_csr_extremum_dsrc, _like_winning_rows)
