"""How rows of a CSR matrix are shared out over programs.

A block of programs owns whole rows. A row of more than ``chunk`` edges is a hub: it is left to
programs that own one chunk of edges each, counted from edge 0 of the matrix whatever the rows. A
chunk holds the end of at most one hub and the start of at most one other, so its two partial
results have fixed places, and a second kernel adds those of a hub in order. Nothing is read back
to the host, no atomics are used, and the order of all additions depends on the graph alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


def chunk_size(rows: int, edges: int) -> int:
    """Edges above which a row is split; 0 where no row can have that many.

    In a large matrix sixteen times the mean degree, so that few rows are split and partial results
    take no more than an eighth of the output; within limits, below which splitting costs more than
    it evens out and above which one row would keep a program busy after the others are done. A
    small matrix has few programs: there, rows are split early.
    """
    chunk = 256
    if edges >= 2**20:
        chunk = min(max(triton.next_power_of_2(16 * edges // max(rows, 1)), 256), 1024)
    return chunk if edges > chunk else 0


@triton.jit
def find_row(rowptr_ptr, rows, edge):
    """The row of an edge, by bisection: the first that ends behind it; ``rows`` if none does."""
    low = tl.zeros([], tl.int64)
    high = low + rows
    while low < high:
        middle = (low + high) // 2
        before = tl.load(rowptr_ptr + middle + 1) <= edge
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def find_rows(rowptr_ptr, rows, edges, first, last, BLOCK: tl.constexpr):
    """The rows [BLOCK] of ascending edges, of which ``first`` and ``last`` are the outermost."""
    low = find_row(rowptr_ptr, rows, first)
    span = find_row(rowptr_ptr, rows, last) - low
    lows = tl.zeros([BLOCK], tl.int64) + low
    highs = lows + span
    while span > 0:
        middle = (lows + highs) // 2
        stop = tl.load(rowptr_ptr + middle + 1, mask=middle < rows, other=0)
        before = (stop <= edges) & (middle < highs)
        lows = tl.where(before, middle + 1, lows)
        highs = tl.where(before, highs, middle)
        span = span // 2
    return lows


@triton.jit
def load_row(rowptr_ptr, rows, row):
    """(first edge, edge behind the last) of rows; (0, 0) behind the last row."""
    live = row < rows
    start = tl.load(rowptr_ptr + row, mask=live, other=0).to(tl.int64)
    stop = tl.load(rowptr_ptr + row + 1, mask=live, other=0).to(tl.int64)
    return start, stop


@triton.jit
def find_hub(rowptr_ptr, rows, edge, CHUNK: tl.constexpr):
    """(row, first edge, edge behind the last) of the hub that an edge is in; else no edges."""
    row = find_row(rowptr_ptr, rows, edge)
    start, stop = load_row(rowptr_ptr, rows, row)
    hub = (stop - start > CHUNK) & (start <= edge)
    return row, start, tl.where(hub, stop, start)


@triton.jit
def edge_ranges(rowptr_ptr, rows, edges, CHUNK: tl.constexpr, BLOCK_R: tl.constexpr):
    """What this program owns.

    Returns:
        (row, start, stop, owned) of [BLOCK_R] ranges of edges, and the place among the partial
        results, or -1. Where the place is -1 each range is a row; only ``owned`` rows are written.
        Otherwise all ranges together are one chunk's part of one hub.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_R)
    place = tl.full([], -1, tl.int64)
    first_block = tl.zeros([], tl.int64)
    if CHUNK > 0:
        first_block += 2 * tl.cdiv(edges, CHUNK)
    row = (program - first_block) * BLOCK_R + lane
    owned = (row >= 0) & (row < rows)
    start, stop = load_row(rowptr_ptr, rows, tl.where(owned, row, rows))
    if CHUNK > 0:
        hub = stop - start > CHUNK
        stop = tl.where(hub, start, stop)
        owned = owned & (hub == 0)
        if program < first_block:
            place = program
            first = program // 2 * CHUNK
            last = tl.minimum(first + CHUNK, tl.zeros([], tl.int64) + edges)
            late = program % 2  # the hub that starts in this chunk, behind its first edge
            edge = tl.where(late == 1, last - 1, first)
            _, hub_start, hub_stop = find_hub(rowptr_ptr, rows, edge, CHUNK)
            hub_stop = tl.where((late == 1) & (hub_start <= first), hub_start, hub_stop)
            begin = tl.maximum(first, hub_start)
            count = tl.maximum(tl.minimum(last, hub_stop) - begin, 0)
            share = tl.cdiv(count, BLOCK_R)
            start = begin + tl.minimum(lane * share, count)
            stop = begin + tl.minimum((lane + 1) * share, count)
    return row, start, stop, owned, place


@triton.jit
def hub_of_chunk(rowptr_ptr, rows, edges, CHUNK: tl.constexpr):
    """The hub that starts in this program's chunk.

    Returns:
        (row, number of its edges, place of its first partial result, chunk behind its last); the
        row is -1 if there is none. The other results are in places 2 c of the chunks c between.
    """
    chunk = tl.program_id(0).to(tl.int64)
    first = chunk * CHUNK
    last = tl.minimum(first + CHUNK, tl.zeros([], tl.int64) + edges)
    row, start, stop = find_hub(rowptr_ptr, rows, last - 1, CHUNK)
    begins = (stop > start) & (start >= first)
    place = 2 * chunk + (start > first).to(tl.int64)
    return tl.where(begins, row, -1), stop - start, place, tl.cdiv(stop, CHUNK)
