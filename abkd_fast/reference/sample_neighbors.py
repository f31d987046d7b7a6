"""Layer-wise neighbour sampling in plain torch: the same draws as the kernel's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abkd_fast.reference.dropout import philox

_WORD = 0xFFFFFFFF


def op_sample_neighbors(
    rowptr: Tensor,
    col: Tensor,
    nodes: Tensor,
    num_neighbors: Sequence[int],
    replace: bool,
    seed: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(nodes, rowptr, col, edges) of the sample; see :func:`abkd_fast.ops.sample_neighbors`."""
    found, degrees, edges, local = nodes, [], [nodes.new_empty(0)], [nodes.new_empty(0)]
    rows = 0
    for hop, limit in enumerate(num_neighbors):
        frontier = found[rows:]
        rows = found.numel()
        first, degree = rowptr[frontier].long(), rowptr.diff()[frontier].long()
        counts, chosen = _chosen(frontier, degree, limit, replace, seed.reshape(()), hop, step)
        degrees.append(counts)
        edges.append(first.repeat_interleave(counts) + chosen)
        found, positions = _positions(found, col[edges[-1]].long())
        local.append(positions)
    counts = torch.cat([*degrees, nodes.new_zeros(found.numel() - rows)])
    local_rowptr = torch.cat([nodes.new_zeros(1), counts.cumsum(0)]).to(rowptr.dtype)
    return found, local_rowptr, torch.cat(local).to(col.dtype), torch.cat(edges)


def _chosen(
    rows: Tensor, degree: Tensor, limit: int, replace: bool, seed: Tensor, hop: int, step: int
) -> tuple[Tensor, Tensor]:
    """(how many [R], which [sum]) edges of every row are kept, counted from the row's first."""
    drawn = torch.full_like(degree > 0, limit >= 0)
    drawn &= degree > (0 if replace else limit)
    counts = torch.where(drawn, limit, degree)
    start = counts.cumsum(0) - counts
    chosen = torch.arange(int(counts.sum()), device=rows.device)
    chosen -= start.repeat_interleave(counts)
    if bool(drawn.any()) and limit > 0:
        words = _words(rows[drawn], limit, seed, hop, step)
        picked = _floyd(words, degree[drawn], replace).sort(dim=1).values
        places = start[drawn][:, None] + torch.arange(limit, device=rows.device)
        chosen[places] = picked
    return counts, chosen


def _words(rows: Tensor, count: int, seed: Tensor, hop: int, step: int) -> Tensor:
    """[R, count] random words of 32 bits, those of row v from counter v * ceil(count / 4) on."""
    counters = -(-count // 4)
    number = rows[:, None] * counters + torch.arange(counters, device=rows.device)
    fixed = [torch.full_like(number, hop), torch.full_like(number, step)]
    counter = torch.stack([number & _WORD, (number >> 32) & _WORD, *fixed], dim=-1)
    key = torch.stack([seed & _WORD, (seed >> 32) & _WORD]).to(rows.device)
    return philox(counter, key).flatten(1)[:, :count]


def _floyd(words: Tensor, degree: Tensor, replace: bool) -> Tensor:
    """[R, count] edges; distinct in a row unless ``replace`` (Bentley, Floyd, CACM 1987)."""
    count = words.size(1)
    if replace:
        return (words * degree[:, None]) >> 32
    chosen = torch.full_like(words, -1)
    for i in range(count):
        limit = degree - count + i + 1
        drawn = (words[:, i] * limit) >> 32
        taken = (chosen == drawn[:, None]).any(1)
        chosen[:, i] = torch.where(taken, limit - 1, drawn)
    return chosen


def _positions(known: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """(known and new nodes in order of their first appearance, position of every source)."""
    both = torch.cat([known, sources])
    unique, inverse = both.unique(return_inverse=True)
    order = torch.arange(both.numel(), device=both.device)
    first = order.new_full((unique.numel(),), both.numel())
    first = first.scatter_reduce(0, inverse, order, "amin")
    by_appearance = first.argsort()
    rank = torch.empty_like(by_appearance)
    rank[by_appearance] = torch.arange(unique.numel(), device=both.device)
    return unique[by_appearance], rank[inverse[known.numel() :]]
