"""The edges of all relations in one set of arrays, by relation and node that has edges in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd_fast._csr import index_dtype, lexsort


@dataclass(frozen=True)
class Stack:
    """P pairs (relation, node with edges in it), by relation, then node; and their E edges.

    A relation costs what it has: nodes without edges in it take no place.

    Attributes:
        ptr: [P + 1] where the edges of a pair begin.
        row: [P] node of the pair, a row of the result.
        col: [E] node at the other end, a row of the features.
        local: [E] number of the other end's pair within its relation, in the other direction.
        pairs: R + 1 numbers: where the pairs of a relation begin.
    """

    ptr: Tensor
    row: Tensor
    col: Tensor
    local: Tensor
    pairs: tuple[int, ...]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(ptr, row, col, local)."""
        return self.ptr, self.row, self.col, self.local

    def counts(self) -> list[int]:
        """Number of pairs of every relation."""
        return [stop - first for first, stop in zip(self.pairs, self.pairs[1:], strict=False)]

    def degree(self) -> Tensor:
        """[P] number of edges of a pair."""
        return self.ptr.diff()

    def edge_pair(self) -> Tensor:
        """[E] int64 pair of every edge."""
        return _spread(self.degree())

    def to(self, device: torch.device | str) -> Stack:
        """The same on another device."""
        ptr, row, col, local = (part.to(device) for part in self.tensors())
        return Stack(ptr, row, col, local, self.pairs)


def stack_edges(
    relations: Sequence[tuple[Tensor, Tensor]], num_dst: int, num_src: int
) -> tuple[Stack, Stack]:
    """Stacks of (source, target) edges [E_r] of every relation, and of the reverse direction."""
    total = sum(source.numel() for source, _ in relations)
    index = index_dtype(num_dst, num_src, total)
    forward, backward = _Builder(index), _Builder(index)
    for source, target in relations:
        order = lexsort(target, source)
        source, target = source[order], target[order]
        nodes, degree = torch.unique_consecutive(target, return_counts=True)
        pair = _spread(degree)
        perm = torch.argsort(source, stable=True)
        nodes_t, degree_t = torch.unique_consecutive(source[perm], return_counts=True)
        pair_t = torch.empty_like(perm).scatter_(0, perm, _spread(degree_t))
        forward.add(nodes, degree, source, pair_t)
        backward.add(nodes_t, degree_t, target[perm], pair[perm])
    return forward.stack(), backward.stack()


def _spread(degree: Tensor) -> Tensor:
    """[E] the index of the node that every edge belongs to."""
    return torch.arange(degree.numel(), device=degree.device).repeat_interleave(degree.long())


class _Builder:
    def __init__(self, index: torch.dtype) -> None:
        self._index = index
        self._parts: list[tuple[Tensor, ...]] = []
        self._pairs = [0]

    def add(self, nodes: Tensor, degree: Tensor, col: Tensor, local: Tensor) -> None:
        kept = (nodes.to(self._index), degree, col.to(self._index), local.to(self._index))
        self._parts.append(kept)
        self._pairs.append(self._pairs[-1] + nodes.numel())

    def stack(self) -> Stack:
        if not self._parts:
            none = torch.zeros(0, dtype=self._index)
            return Stack(torch.zeros(1, dtype=self._index), none, none, none, (0,))
        row, degree, col, local = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        ptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)]).to(self._index)
        return Stack(ptr, row, col, local, tuple(self._pairs))
