"""Dot products along edges: sddmm and the gradient of an extremum's weights."""

from __future__ import annotations

import triton
import triton.language as tl
from abkd_fast.kernels.launch import edge_blocks, tl_dtype
from abkd_fast.kernels.rows import find_rows
from torch import Tensor

from abkd_fast._checks import accumulation_dtype


@triton.jit
def sddmm_kernel(
    rowptr_ptr, col_ptr, a_ptr, b_ptr, arg_ptr, out_ptr, rows, edges, width,
    ACC: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_E edges: out[e] = <a[row e], b[col e]>, over the features e won."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_E
    last = tl.minimum(first + BLOCK_E, tl.zeros([], tl.int64) + edges) - 1
    edge = first + tl.arange(0, BLOCK_E)
    live = edge <= last
    row = find_rows(rowptr_ptr, rows, tl.minimum(edge, last), first, last, BLOCK_E)
    source = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_E, BLOCK_F], ACC)
    for begin in range(0, width, BLOCK_F):
        feature = begin + tl.arange(0, BLOCK_F)
        mask = live[:, None] & (feature < width)[None, :]
        left = row[:, None] * width + feature[None, :]
        if arg_ptr is not None:
            winner = tl.load(arg_ptr + left, mask=mask, other=-1)
            mask = mask & (winner == edge[:, None])
        a = tl.load(a_ptr + left, mask=mask, other=0).to(ACC)
        b = tl.load(b_ptr + source[:, None] * width + feature[None, :], mask=mask, other=0)
        total += a * b.to(ACC)
    tl.store(out_ptr + edge, tl.sum(total, 1), mask=live)


def _products(rowptr: Tensor, col: Tensor, a: Tensor, b: Tensor, arg: Tensor | None) -> Tensor:
    rows, edges, width = rowptr.numel() - 1, col.numel(), a.size(1)
    acc = accumulation_dtype(a)
    out = a.new_empty(edges, dtype=acc)
    if edges == 0:
        return out
    block = edge_blocks(a)
    sddmm_kernel[(triton.cdiv(edges, block.edges),)](
        rowptr, col, a.contiguous(), b.contiguous(), arg, out, rows, edges, width,
        ACC=tl_dtype(acc), BLOCK_E=block.edges, BLOCK_F=block.features, num_warps=block.warps,
    )  # fmt: skip
    return out


def sddmm(rowptr: Tensor, col: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out[e] = <a[row e], b[col e]>, [E] in the accumulation dtype."""
    return _products(rowptr, col, a, b, None)


def spmm_extremum_dvalue(
    rowptr: Tensor, col: Tensor, x: Tensor, arg: Tensor, dout: Tensor
) -> Tensor:
    """dvalue[e] = sum over features that edge e won of dout[row e] * x[col e]."""
    return _products(rowptr, col, dout, x, arg.contiguous())
