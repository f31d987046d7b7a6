"""Segment reductions: rows of a matrix whose edge e reads row e; and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from abkd_fast.kernels.launch import edge_blocks
from abkd_fast.kernels.rows import find_rows, load_row
from abkd_fast.kernels.spmm import sum_rows
from abkd_fast.kernels.spmm_extremum import extremum_of_rows


@triton.jit
def expand_kernel(
    indptr_ptr, out_ptr, arg_ptr, rows_ptr, segments, size, width,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_E rows of the result: the row of ``out`` of their segment.

    With winners ``arg`` [segments, width] only where they won; 0 in rows of no segment.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_E
    last = tl.minimum(first + BLOCK_E, tl.zeros([], tl.int64) + size) - 1
    edge = first + tl.arange(0, BLOCK_E)
    live = edge <= last
    segment = find_rows(indptr_ptr, segments, tl.minimum(edge, last), first, last, BLOCK_E)
    start, _ = load_row(indptr_ptr, segments, segment)
    inside = live & (segment < segments) & (start <= edge)
    feature = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    wanted = (feature < width)[None, :]
    source = segment[:, None] * width + feature[None, :]
    mask = inside[:, None] & wanted
    if arg_ptr is not None:
        mask = mask & (tl.load(arg_ptr + source, mask=mask, other=-1) == edge[:, None])
    row = tl.load(out_ptr + source, mask=mask, other=0)
    target = edge[:, None] * width + feature[None, :]
    tl.store(rows_ptr + target, row, mask=live[:, None] & wanted)


def _expand(out: Tensor, arg: Tensor | None, indptr: Tensor, size: int) -> Tensor:
    width = out.size(1)
    result = out.new_empty(size, width)
    if result.numel() == 0:
        return result
    block = edge_blocks(out)
    grid = (triton.cdiv(size, block.edges), triton.cdiv(width, block.features))
    expand_kernel[grid](
        indptr.contiguous(), out.contiguous(), arg, result, indptr.numel() - 1, size, width,
        BLOCK_E=block.edges, BLOCK_F=block.features, num_warps=block.warps,
    )  # fmt: skip
    return result


def segment_csr(src: Tensor, indptr: Tensor, mean: bool) -> Tensor:
    """out[i] = sum (or mean) of src[e] for indptr[i] <= e < indptr[i + 1]."""
    return sum_rows(indptr.contiguous(), None, None, src, mean)


def segment_csr_extremum(
    src: Tensor, indptr: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) entry of every segment and its row; NaN beats every number."""
    return extremum_of_rows(indptr.contiguous(), None, None, src, maximum, winners)


def segment_csr_expand(out: Tensor, indptr: Tensor, size: int) -> Tensor:
    """[size, F]: row i of ``out`` for every e in segment i, 0 for rows of no segment."""
    return _expand(out, None, indptr, size)


def segment_csr_extremum_dsrc(arg: Tensor, dout: Tensor, indptr: Tensor, size: int) -> Tensor:
    """dsrc[arg[i, f], f] = dout[i, f], 0 elsewhere; arg = -1 stands for an empty segment."""
    return _expand(dout, arg.contiguous(), indptr, size)
