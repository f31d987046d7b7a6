"""Maximum and minimum over the edges of rows, and the edges that attain them.

NaN beats every number and the first edge wins a tie. The minimum is the maximum of negated
messages.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, int64

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.launch import RowBlocks, row_blocks, row_candidates, tl_dtype
from abkd_fast.kernels.rows import chunk_size, edge_ranges, hub_of_chunk
from abkd_fast.kernels.tuning import tuned


@triton.jit
def first_best(best, edge, none, axis: tl.constexpr):
    """The best of an axis and the least edge that attains it; ``none`` marks places without one."""
    nan = best != best
    any_nan = tl.max(nan.to(tl.int32), axis) > 0
    top = tl.max(tl.where(nan, float("-inf"), best), axis)
    equal = tl.where(tl.expand_dims(any_nan, axis), nan, best == tl.expand_dims(top, axis))
    return tl.where(any_nan, float("nan"), top), tl.min(tl.where(equal, edge, none), axis)


@triton.jit
def best_edges(
    start, stop, col_ptr, value_ptr, x_ptr, width, features, sign, none,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """(largest sign * value[e] * x[col[e], f], its edge) of ranges; two of [BLOCK_R, BLOCK_F].

    Without columns, edge e reads row e. A range without edges gives (-inf, ``none``).
    """
    nowhere = 2147483647  # edges are counted from the start of the range: they fit 32 bits
    best = tl.full([BLOCK_R, BLOCK_E, BLOCK_F], float("-inf"), ACC)
    winner = tl.full([BLOCK_R, BLOCK_E, BLOCK_F], nowhere, tl.int32)
    lane = tl.arange(0, BLOCK_E)
    count = (stop - start).to(tl.int32)
    for done in range(0, tl.max(count, 0), BLOCK_E):
        place = done + lane  # [BLOCK_E]
        edge = start[:, None] + place[None, :]
        live = place[None, :] < count[:, None]
        source = edge
        if col_ptr is not None:
            source = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
        mask = live[:, :, None] & (features < width)[None, None, :]
        offset = source[:, :, None] * width + features[None, None, :]
        message = sign * tl.load(x_ptr + offset, mask=mask, other=0).to(ACC)
        if value_ptr is not None:
            message *= tl.load(value_ptr + edge, mask=live, other=0)[:, :, None]
        # Whatever comes first beats nothing, also -inf.
        beats = (message > best) | ((message != message) & (best == best)) | (winner == nowhere)
        best = tl.where(mask & beats, message, best)
        winner = tl.where(mask & beats, place[None, :, None], winner)
    best, winner = first_best(best, winner, nowhere, 1)
    return best, tl.where(winner == nowhere, none, start[:, None] + winner)


@triton.jit
def spmm_extremum_kernel(
    rowptr_ptr, col_ptr, value_ptr, x_ptr, out_ptr, arg_ptr, partial_ptr, partial_arg_ptr,
    rows, edges, width,
    MAXIMUM: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R rows, or a chunk of a hub, and BLOCK_F features.

    out [rows, width] in its dtype, arg [rows, width]; partial [2 * chunks, width] in ACC and
    partial_arg in int64 are of negated messages where the minimum is wanted.
    """
    sign = 1.0 if MAXIMUM else -1.0
    none = tl.zeros([], tl.int64) + edges
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    row, start, stop, owned, place = edge_ranges(rowptr_ptr, rows, edges, CHUNK, BLOCK_R)
    best, winner = best_edges(
        start, stop, col_ptr, value_ptr, x_ptr, width, features, sign, none,
        ACC, BLOCK_R, BLOCK_E, BLOCK_F,
    )  # fmt: skip
    wanted = features < width
    if CHUNK > 0:
        if place >= 0:
            part, part_winner = first_best(best, winner, none, 0)
            tl.store(partial_ptr + place * width + features, part, mask=wanted)
            tl.store(partial_arg_ptr + place * width + features, part_winner, mask=wanted)
    empty = (start == stop)[:, None]
    offset = row[:, None] * width + features[None, :]
    mask = owned[:, None] & wanted[None, :]
    tl.store(out_ptr + offset, tl.where(empty, 0.0, sign * best), mask=mask)
    if arg_ptr is not None:
        tl.store(arg_ptr + offset, tl.where(empty, -1, winner), mask=mask)


@triton.jit
def extremum_hubs_kernel(
    rowptr_ptr, partial_ptr, partial_arg_ptr, out_ptr, arg_ptr, rows, edges, width,
    MAXIMUM: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program finds the best of the partial results of the hub that starts in its chunk."""
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    row, _, place, stop = hub_of_chunk(rowptr_ptr, rows, edges, CHUNK)
    if row >= 0:
        none = tl.zeros([], tl.int64) + edges
        wanted = features < width
        lane = tl.arange(0, BLOCK_R)
        best = tl.full([BLOCK_R, BLOCK_F], float("-inf"), ACC)
        winner = tl.zeros([BLOCK_R, BLOCK_F], tl.int64) + none
        for begin in range(tl.program_id(0).to(tl.int64), stop, BLOCK_R):
            chunk = begin + lane
            places = tl.where(chunk == tl.program_id(0), place, 2 * chunk)
            mask = (chunk < stop)[:, None] & wanted[None, :]
            offset = places[:, None] * width + features[None, :]
            other = tl.load(partial_ptr + offset, mask=mask, other=float("-inf"))
            edge = tl.load(partial_arg_ptr + offset, mask=mask, other=0)
            # Later chunks hold later edges: a tie stays where it is.
            beats = (other > best) | ((other != other) & (best == best)) | (winner == none)
            best = tl.where(mask & beats, other, best)
            winner = tl.where(mask & beats, edge, winner)
        result, edge = first_best(best, winner, none, 0)
        sign = 1.0 if MAXIMUM else -1.0
        tl.store(out_ptr + row * width + features, sign * result, mask=wanted)
        if arg_ptr is not None:
            tl.store(arg_ptr + row * width + features, edge, mask=wanted)


def extremum_of_rows(
    rowptr: Tensor,
    col: Tensor | None,
    value: Tensor | None,
    x: Tensor,
    maximum: bool,
    winners: bool,
) -> tuple[Tensor, Tensor]:
    """(extremum, winning edges) of every row, [num_rows, F]; without ``winners`` [0, F] edges."""
    rows, width = rowptr.numel() - 1, x.size(1)
    edges = x.size(0) if col is None else col.numel()
    out = x.new_empty(rows, width)
    arg = rowptr.new_empty(rows if winners else 0, width)
    if out.numel() == 0:
        return out, arg
    x, kept = x.contiguous(), arg if winners else None

    def run(blocks: tuple[int, ...]) -> None:
        _launch((rowptr, col, value, x, out, kept), edges, RowBlocks(*blocks), maximum)

    default = row_blocks(x, edges / rows, chunk_size(rows, edges))
    run(tuned("spmm_extremum", x, edges / rows, default, row_candidates(default), run))
    return out, arg


def _launch(
    operands: tuple[Tensor | None, ...], edges: int, block: RowBlocks, maximum: bool
) -> None:
    rowptr, _, _, x, out, arg = operands
    assert rowptr is not None and x is not None and out is not None
    (rows, width), chunk, acc = out.shape, block.chunk, accumulation_dtype(x)
    chunks = triton.cdiv(edges, chunk) if chunk else 0
    partial = x.new_empty(2 * chunks, width, dtype=acc) if chunk else None
    partial_arg = rowptr.new_empty(2 * chunks, width, dtype=int64) if chunk else None
    tiles = triton.cdiv(width, block.features)
    constants = {"MAXIMUM": maximum, "CHUNK": chunk, "ACC": tl_dtype(acc)}
    spmm_extremum_kernel[(2 * chunks + triton.cdiv(rows, block.rows), tiles)](
        *operands, partial, partial_arg, rows, edges, width, **constants,
        BLOCK_R=block.rows, BLOCK_E=block.edges, BLOCK_F=block.features, num_warps=block.warps,
    )  # fmt: skip
    if chunk:
        extremum_hubs_kernel[(chunks, tiles)](
            rowptr, partial, partial_arg, out, arg, rows, edges, width, **constants,
            BLOCK_R=block.rows, BLOCK_F=block.features, num_warps=block.warps,
        )  # fmt: skip


def spmm_extremum(
    rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) message of every row and its edge; NaN beats every number."""
    return extremum_of_rows(rowptr, col, value, x, maximum, winners)
