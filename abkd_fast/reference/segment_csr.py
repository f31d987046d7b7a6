"""Segment reductions in plain torch: an spmm whose edge e reads row e.

``op_<name>`` implements ``torch.ops.abkd_fast.<name>`` where no kernel does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast.reference.spmm import op_spmm, op_spmm_extremum


def segment_csr(src: Tensor, indptr: Tensor, reduce: str = "sum") -> Tensor:
    """Reduce consecutive rows; see :func:`abkd_fast.ops.segment_csr`."""
    rows, indptr = src.unsqueeze(1) if src.dim() == 1 else src.flatten(1), indptr.long()
    if reduce in ("sum", "mean"):
        out = op_segment_csr(rows, indptr, reduce == "mean")
    else:
        out = op_segment_csr_extremum(rows, indptr, reduce == "max", False)[0]
    return out.view(indptr.numel() - 1, *src.shape[1:])


def op_segment_csr(src: Tensor, indptr: Tensor, mean: bool) -> Tensor:
    """out[i] = sum (or mean) of src[e] for indptr[i] <= e < indptr[i + 1]."""
    return op_spmm(*_all_rows(indptr, src.size(0)), None, src, mean)[1:-1].clone()


def op_segment_csr_extremum(
    src: Tensor, indptr: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) entry of every segment and its row; NaN beats every number."""
    graph = _all_rows(indptr, src.size(0))
    out, arg = op_spmm_extremum(*graph, None, src, maximum, winners)
    return out[1:-1].clone(), arg[1:-1].clone()


def op_segment_csr_expand(out: Tensor, indptr: Tensor, size: int) -> Tensor:
    """[size, F]: row i of ``out`` for every e in segment i, 0 for rows of no segment."""
    rowptr, _ = _all_rows(indptr, size)
    outside = out.new_zeros(1, out.size(1))
    segments = torch.cat([outside, out, outside])
    return segments.repeat_interleave(rowptr.diff(), dim=0, output_size=size)


def op_segment_csr_extremum_dsrc(arg: Tensor, dout: Tensor, indptr: Tensor, size: int) -> Tensor:
    """dsrc[arg[i, f], f] = dout[i, f], 0 elsewhere; arg = -1 stands for an empty segment."""
    dsrc = dout.new_zeros(size + 1, dout.size(1))
    return dsrc.scatter(0, arg.masked_fill(arg < 0, size), dout)[:size]


def _all_rows(indptr: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(rowptr, col) of the segments between one of the rows before them and one of those behind."""
    ends = indptr.new_zeros(1), indptr.new_full((1,), size)
    return torch.cat([ends[0], indptr, ends[1]]), torch.arange(size, device=indptr.device)
