"""Edge attention of GAT and GATv2: scores of nodes, the passes over edges, sums over nodes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels._edge_attention_passes import (
    Pass,
    attend_dst_kernel,
    attend_kernel,
    attend_src_kernel,
)  # fmt: skip
from abkd_fast.kernels.launch import attention_blocks, tl_dtype


@triton.jit
def node_scores_kernel(
    x_ptr, att_ptr, out_ptr, count, heads, width,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = <x, att> of ``count`` heads of nodes."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for first in range(0, width, BLOCK_C):
        features = first + tl.arange(0, BLOCK_C)
        mask = (row < count)[:, None] & (features < width)[None, :]
        x = tl.load(x_ptr + row[:, None] * width + features[None, :], mask=mask, other=0).to(ACC)
        att = (row % heads)[:, None] * width + features[None, :]
        total += x * tl.load(att_ptr + att, mask=mask, other=0)
    tl.store(out_ptr + row, tl.sum(total, 1), mask=row < count)


@triton.jit
def weighted_sums_kernel(
    weight_ptr, x_ptr, partial_ptr, rows, share, heads, width,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """partial [programs, H, C]: sum of weight [rows, H] * x [rows, H, C] over ``share`` rows."""
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    features = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    end = tl.minimum((split + 1) * share, tl.zeros([], tl.int64) + rows)
    total = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for begin in range(split * share, end, BLOCK_R):
        row = begin + tl.arange(0, BLOCK_R).to(tl.int64)
        weight = tl.load(weight_ptr + row * heads + head, mask=row < end, other=0)
        mask = (row < end)[:, None] & (features < width)[None, :]
        offset = (row[:, None] * heads + head) * width + features[None, :]
        total += weight[:, None] * tl.load(x_ptr + offset, mask=mask, other=0).to(ACC)
    part = (split * heads + head) * width + features
    tl.store(partial_ptr + part, tl.sum(total, 0), mask=features < width)


def _node_scores(x: Tensor, att: Tensor) -> Tensor:
    """<x, att> of every node and head, [N, H] in the accumulation dtype."""
    out = x.new_empty(x.shape[:2], dtype=att.dtype)
    block = attention_blocks(x)
    rows = block.rows * block.edges
    if out.numel() > 0:
        node_scores_kernel[(triton.cdiv(out.numel(), rows),)](
            x, att, out, out.numel(), x.size(1), x.size(2),
            ACC=tl_dtype(att.dtype), BLOCK_R=rows, BLOCK_C=block.features, num_warps=block.warps,
        )  # fmt: skip
    return out


def _weighted_sums(weight: Tensor, x: Tensor) -> Tensor:
    """sum_n weight[n, h] * x[n, h, c], in parts whose number depends on the shapes alone."""
    (nodes, heads, width), block = x.shape, attention_blocks(x)
    rows, tiles = block.rows * block.edges, triton.cdiv(width, block.features)
    share = _share(nodes, rows, heads * tiles)
    partial = weight.new_empty(triton.cdiv(nodes, share), heads, width)
    if partial.numel() > 0:
        weighted_sums_kernel[(partial.size(0), heads, tiles)](
            weight, x, partial, nodes, share, heads, width, ACC=tl_dtype(weight.dtype),
            BLOCK_R=rows, BLOCK_C=block.features, num_warps=block.warps,
        )  # fmt: skip
    return partial.sum(0)


def _share(rows: int, block: int, beside: int) -> int:
    """Rows of a program that adds over rows, a multiple of ``block``."""
    most = max(4096 // max(beside, 1), 1)
    return triton.cdiv(max(triton.cdiv(rows, most), 1), block) * block


def edge_attention(
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
    rows, x, att_src = rowptr.numel() - 1, x.contiguous(), att_src.contiguous()
    score_src = _node_scores(x, att_src)
    score_dst = score_src.new_zeros(rows, x.size(1))
    if att_dst is not None:
        score_dst = _node_scores(x if x_dst is None else x_dst.contiguous(), att_dst.contiguous())
    out = x.new_empty(rows, *x.shape[1:])
    stats = score_src.new_empty(rows, 2, x.size(1))
    launch = Pass.of(x, negative_slope, p, seed, layer, step)
    if rows > 0:
        attend_kernel[launch.grid(launch.blocks(rows))](
            rowptr, col, x, None, None, score_src, score_dst,
            None if score_edge is None else score_edge.contiguous(), out, stats,
            rows, launch.heads, launch.width, *launch.numbers, **launch.options,
        )  # fmt: skip
    return out, stats, score_src, score_dst


def edge_attention_backward(
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
    rows, (sources, heads, width) = rowptr.numel() - 1, x.shape
    x, dout, att_src = x.contiguous(), dout.contiguous(), att_src.contiguous()
    score_edge = None if score_edge is None else score_edge.contiguous()
    dx, dscore_src = x.new_empty(x.shape), score_src.new_empty(sources, heads)
    inner, dscore_dst = score_src.new_empty(rows, heads), score_src.new_empty(rows, heads)
    dedge = score_src.new_empty((col.numel(), heads) if want_edge else (0,))
    launch = Pass.of(x, negative_slope, p, seed, layer, step)
    sizes = (heads, width, *launch.numbers)
    if rows > 0:
        attend_dst_kernel[(launch.blocks(rows), heads, 1)](
            rowptr, col, x, None, None, score_src, score_dst, score_edge, dout, stats,
            inner, dscore_dst, None, rows, *sizes, **launch.options,
        )  # fmt: skip
    shared = att_dst is not None and x_dst is None
    att_dst = None if att_dst is None else att_dst.contiguous()
    if sources > 0:
        attend_src_kernel[launch.grid(launch.blocks(sources))](
            rowptr_t, col_t, perm, x, None, att_src, att_dst if shared else None,
            score_src, score_dst, score_edge, dout, stats, inner, dscore_dst,
            dx, dscore_src, dedge if want_edge else None, None,
            sources, launch.block.rows, *sizes, **launch.options,
        )  # fmt: skip
    dx_dst, datt_dst = x.new_empty(0), score_src.new_empty(0)
    if att_dst is not None:
        datt_dst = _weighted_sums(dscore_dst, x if x_dst is None else x_dst.contiguous())
        if x_dst is not None:
            dx_dst = (dscore_dst.unsqueeze(2) * att_dst).to(x.dtype)
    return dx, dx_dst, _weighted_sums(dscore_src, x), datt_dst, dedge


def edge_attention_v2(
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
    rows, x, x_dst = rowptr.numel() - 1, x.contiguous(), x_dst.contiguous()
    out = x.new_empty(rows, *x.shape[1:])
    stats = x.new_empty(rows, 2, x.size(1), dtype=accumulation_dtype(x))
    launch = Pass.of(x, negative_slope, p, seed, layer, step)
    if rows > 0:
        attend_kernel[launch.grid(launch.blocks(rows))](
            rowptr, col, x, x_dst, att.contiguous(), None, None, None, out, stats,
            rows, launch.heads, launch.width, *launch.numbers, **launch.options,
        )  # fmt: skip
    return out, stats


def edge_attention_v2_backward(
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
    rows, (sources, heads, width) = rowptr.numel() - 1, x.shape
    x, x_dst, dout, att = x.contiguous(), x_dst.contiguous(), dout.contiguous(), att.contiguous()
    dx, dx_dst = x.new_empty(x.shape), x_dst.new_empty(x_dst.shape)
    inner = stats.new_empty(rows, heads)
    launch = Pass.of(x, negative_slope, p, seed, layer, step)
    sizes = (heads, width, *launch.numbers)
    if rows > 0:
        attend_dst_kernel[launch.grid(launch.blocks(rows))](
            rowptr, col, x, x_dst, att, None, None, None, dout, stats, inner, None, dx_dst,
            rows, *sizes, **launch.options,
        )  # fmt: skip
    tiles = heads * launch.grid(1)[2]
    share = _share(sources, launch.block.rows, tiles)
    programs = triton.cdiv(sources, share)
    datt = stats.new_empty(programs, heads, width)
    if sources > 0:
        attend_src_kernel[launch.grid(programs)](
            rowptr_t, col_t, perm, x, x_dst, att, None, None, None, None, dout, stats, inner,
            None, dx, None, None, datt, sources, share, *sizes, **launch.options,
        )  # fmt: skip
    return dx, dx_dst, datt.sum(0)
