"""Sums over the edges of rows: spmm, the gradient of an extremum, sums of segments."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.launch import RowBlocks, row_blocks, row_candidates, tl_dtype
from abkd_fast.kernels.rows import chunk_size, edge_ranges, hub_of_chunk
from abkd_fast.kernels.tuning import tuned


@triton.jit
def sum_edges(
    start, stop, col_ptr, value_ptr, perm_ptr, arg_ptr, x_ptr, width, features,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """sum_e value[e] * x[col[e], f] over BLOCK_R ranges of edges; [BLOCK_R, BLOCK_F] in ACC.

    Without columns, edge e reads row e. With ``perm``, edge t is edge perm[t] of the matrix whose
    winners ``arg`` [rows of x, width] holds, and counts where it won.
    """
    total = tl.zeros([BLOCK_R, BLOCK_E, BLOCK_F], ACC)
    lane = tl.arange(0, BLOCK_E)
    longest = tl.max(stop - start, 0)
    for done in range(0, longest, BLOCK_E):
        edge = start[:, None] + done + lane[None, :]  # [BLOCK_R, BLOCK_E]
        live = edge < stop[:, None]
        source = edge
        if col_ptr is not None:
            source = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
        if perm_ptr is not None:
            edge = tl.load(perm_ptr + edge, mask=live, other=0)
        offset = source[:, :, None] * width + features[None, None, :]
        mask = live[:, :, None] & (features < width)[None, None, :]
        message = tl.load(x_ptr + offset, mask=mask, other=0).to(ACC)
        if value_ptr is not None:
            message *= tl.load(value_ptr + edge, mask=live, other=0)[:, :, None]
        if perm_ptr is not None:
            winner = tl.load(arg_ptr + offset, mask=mask, other=-1)
            message = tl.where(winner == edge[:, :, None], message, 0)
        total += message
    return tl.sum(total, 1)


@triton.jit
def spmm_kernel(
    rowptr_ptr, col_ptr, value_ptr, perm_ptr, arg_ptr, x_ptr, out_ptr, partial_ptr,
    rows, edges, width,
    MEAN: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R rows, or a chunk of a hub, and BLOCK_F features.

    out [rows, width] in its dtype; partial [2 * chunks, width] in ACC.
    """
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    row, start, stop, owned, place = edge_ranges(rowptr_ptr, rows, edges, CHUNK, BLOCK_R)
    total = sum_edges(
        start, stop, col_ptr, value_ptr, perm_ptr, arg_ptr, x_ptr, width, features,
        ACC, BLOCK_R, BLOCK_E, BLOCK_F,
    )  # fmt: skip
    wanted = features < width
    if CHUNK > 0:
        if place >= 0:
            tl.store(partial_ptr + place * width + features, tl.sum(total, 0), mask=wanted)
    if MEAN:
        total /= tl.maximum(stop - start, 1)[:, None].to(ACC)
    offset = row[:, None] * width + features[None, :]
    tl.store(out_ptr + offset, total, mask=owned[:, None] & wanted[None, :])


@triton.jit
def spmm_hubs_kernel(
    rowptr_ptr, partial_ptr, out_ptr, rows, edges, width,
    MEAN: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program adds the partial sums of the hub that starts in its chunk, BLOCK_R at a time."""
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    row, count, place, stop = hub_of_chunk(rowptr_ptr, rows, edges, CHUNK)
    if row >= 0:
        wanted = features < width
        total = tl.zeros([BLOCK_R, BLOCK_F], ACC)
        lane = tl.arange(0, BLOCK_R)
        for begin in range(tl.program_id(0).to(tl.int64), stop, BLOCK_R):
            chunk = begin + lane
            places = tl.where(chunk == tl.program_id(0), place, 2 * chunk)
            mask = (chunk < stop)[:, None] & wanted[None, :]
            offset = places[:, None] * width + features[None, :]
            total += tl.load(partial_ptr + offset, mask=mask, other=0)
        result = tl.sum(total, 0)
        if MEAN:
            result /= count.to(ACC)
        tl.store(out_ptr + row * width + features, result, mask=wanted)


def sum_rows(
    rowptr: Tensor,
    col: Tensor | None,
    value: Tensor | None,
    x: Tensor,
    mean: bool = False,
    perm: Tensor | None = None,
    arg: Tensor | None = None,
) -> Tensor:
    """[num_rows, F] sums over the edges of every row; see :func:`sum_edges`."""
    rows, width = rowptr.numel() - 1, x.size(1)
    edges = x.size(0) if col is None else col.numel()
    out = x.new_empty(rows, width)
    if out.numel() > 0:
        x, operands = x.contiguous(), (rowptr, col, value, perm, arg)

        def run(blocks: tuple[int, ...]) -> None:
            block = RowBlocks(*blocks)
            programs = triton.cdiv(rows, block.rows)
            _launch(operands, x, out, edges, block, mean, programs)

        op = "spmm" if perm is None else "spmm_extremum_dx"
        default = row_blocks(x, edges / rows, chunk_size(rows, edges))
        run(tuned(op, x, edges / rows, default, row_candidates(default), run))
    return out


def sum_hubs(
    rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor
) -> tuple[Tensor | None, int]:
    """The sums of hubs alone and what makes a hub: (None, 0) where no row can be one.

    Of [num_rows, F] only the rows of more edges than the second result are written.
    """
    rows = rowptr.numel() - 1
    chunk = chunk_size(rows, col.numel())
    if chunk == 0 or x.size(1) == 0:
        return None, 0
    out = x.new_empty(rows, x.size(1))
    block = row_blocks(x, chunk, chunk)
    _launch((rowptr, col, value, None, None), x, out, col.numel(), block, False, 0)
    return out, chunk


def _launch(
    operands: tuple[Tensor | None, ...],
    x: Tensor,
    out: Tensor,
    edges: int,
    block: RowBlocks,
    mean: bool,
    row_programs: int,
) -> None:
    """Launch for the rows and the chunks of hubs; operands from rowptr to arg, as the kernel's."""
    (rows, width), chunk = out.shape, block.chunk
    acc = accumulation_dtype(x)
    chunks = triton.cdiv(edges, chunk) if chunk else 0
    partial = x.new_empty(2 * chunks, width, dtype=acc) if chunk else None
    tiles = triton.cdiv(width, block.features)
    constants = {"MEAN": mean, "CHUNK": chunk, "ACC": tl_dtype(acc)}
    spmm_kernel[(2 * chunks + row_programs, tiles)](
        *operands, x, out, partial, rows, edges, width, **constants,
        BLOCK_R=block.rows, BLOCK_E=block.edges, BLOCK_F=block.features, num_warps=block.warps,
    )  # fmt: skip
    if chunk:
        spmm_hubs_kernel[(chunks, tiles)](
            operands[0], partial, out, rows, edges, width, **constants,
            BLOCK_R=block.rows, BLOCK_F=block.features, num_warps=block.warps,
        )  # fmt: skip


def spmm(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, mean: bool) -> Tensor:
    """out[i] = sum_{e in row i} value[e] * x[col[e]], divided by the number of edges if mean."""
    return sum_rows(rowptr, col, value, x, mean)


def spmm_extremum_dx(
    rowptr_t: Tensor, col_t: Tensor, perm: Tensor, value: Tensor | None, arg: Tensor, dout: Tensor
) -> Tensor:
    """dx[j] = sum over edges e = perm[t] from j to i = col_t[t] that won of value[e] * dout[i]."""
    return sum_rows(rowptr_t, col_t, value, dout, perm=perm, arg=arg.contiguous())
