"""HaloGraph: the rows of a graph that one process owns, with columns for what it borrows."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast import ops
from abkd_fast._activations import keep
from abkd_fast._csr import Structure, index_dtype
from abkd_fast.distributed.exchange import Exchange
from abkd_fast.distributed.world import World
from abkd_fast.graph import CSRGraph
from abkd_fast.subgraph import select_rows


class HaloGraph(CSRGraph):
    """Rows of a whole graph: [n, n + h], the last h columns are nodes of other ranks.

    Row and column i < n stand for ``nodes[i]``; rows are whole, so degrees are those of the whole
    graph, and :meth:`gcn_norm` and :meth:`row_norm` are the rows of the whole graph's. Layers of
    :mod:`abkd_fast.nn` ask :meth:`sources` for the features of all n + h columns.

    Args:
        whole: [N, N], on every rank the same.
        part: [N] int64, the rank that owns each node, as :func:`abkd_fast.partition` gives.
        world: the processes, as many as parts.

    Raises:
        ValueError: the graph is not square, or a rank would own no node.
    """

    is_part = True

    def __init__(self, whole: CSRGraph, part: Tensor, world: World) -> None:
        if whole.num_dst != whole.num_src or part.shape != (whole.num_dst,):
            raise ValueError(
                f"part must be [N] for a square graph, got {list(part.shape)} for {whole.shape}"
            )
        sizes = torch.bincount(part, minlength=world.size)
        if sizes.numel() != world.size or not bool((sizes > 0).all()):
            raise ValueError(
                f"part must give each of {world.size} ranks a node, got sizes {sizes.tolist()}; "
                "start fewer processes"
            )
        self.nodes = (part == world.rank).nonzero().flatten()
        self._plan, halo = _plan(whole, part, self.nodes, world)
        self._whole = whole
        self._columns = whole.col.new_full((whole.num_dst,), -1)
        known = torch.cat([self.nodes, halo])
        self._columns[known] = torch.arange(
            known.numel(), dtype=whole.col.dtype, device=whole.device
        )
        self._width = known.numel()
        self._fixed: tuple[Tensor, Tensor] | None = None
        super().__init__(*self._part_of(whole))

    def _part_of(self, whole: CSRGraph) -> tuple[Structure, Tensor | None]:
        """Its own rows of a graph over the same nodes."""
        rows = select_rows(whole, self.nodes)
        index = index_dtype(rows.num_dst, self._width, rows.num_edges)
        col = self._columns[rows.col.long()].to(index)
        return Structure(rows.rowptr.to(index), col, self._width), rows.value

    def _derive(self, name: str, whole: CSRGraph) -> CSRGraph:
        if name not in self._derived:
            derived = object.__new__(HaloGraph)
            derived.__dict__.update(self.__dict__)
            CSRGraph.__init__(derived, *self._part_of(whole))
            self._derived[name] = derived
        return self._derived[name]

    def gcn_norm(self) -> CSRGraph:
        """The rows of the whole graph's; computed once."""
        return self._derive("gcn_norm", self._whole.gcn_norm())

    def row_norm(self) -> CSRGraph:
        """The rows of the whole graph's; computed once."""
        return self._derive("row_norm", self._whole.row_norm())

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CSRGraph:
        """Itself; another device or dtype is refused."""
        if super().to(device, dtype) is not self:
            raise ValueError(
                f"HaloGraph must stay on {self.device} as it is, got {device}, {dtype}; move the "
                "whole graph before it is split"
            )
        return self

    def keep_sources(self, x: Tensor) -> None:
        """Fetch the borrowed rows of features ``x`` [n, F] once, because they never change."""
        self._fixed = x, self._plan.with_halo(x)
        for derived in self._derived.values():
            derived.__dict__["_fixed"] = self._fixed

    def sources(
        self, x: Tensor, p: float = 0.0, seed: Tensor | None = None, layer: int = 0
    ) -> tuple[Tensor, float]:
        """x [n, d] with the borrowed rows below, [n + h, d]; 0.0: nothing is left to drop.

        The owner of a row drops its elements, so all ranks read the same.
        """
        if p > 0.0 and seed is not None:
            x = ops.dropout(x, p, seed, layer)
        elif self._fixed is not None and self._fixed[0] is x:
            keep(self._fixed[1])
            return self._fixed[1], 0.0
        return self._plan.with_halo(x), 0.0


def _plan(whole: CSRGraph, part: Tensor, nodes: Tensor, world: World) -> tuple[Exchange, Tensor]:
    """What the ranks send each other, and the nodes that this one borrows, by owner and number.

    All ranks read it off the whole graph, so nothing has to be agreed upon.
    """
    row, col = whole.row(), whole.col.long()
    crossing = part[row] != part[col]
    # One number for "rank wants node"; sorted by rank, then node.
    wanted = (part[row[crossing]] * whole.num_dst + col[crossing]).unique()
    reader, node = wanted // whole.num_dst, wanted % whole.num_dst
    owner = part[node]
    mine, borrowed = owner == world.rank, reader == world.rank
    position = torch.full((whole.num_dst,), -1, device=whole.device)
    position[nodes] = torch.arange(nodes.numel(), device=whole.device)
    halo = node[borrowed]
    order = owner[borrowed].argsort(stable=True)
    sent = torch.bincount(reader[mine], minlength=world.size).tolist()
    received = torch.bincount(owner[borrowed], minlength=world.size).tolist()
    return Exchange(world, position[node[mine]], sent, received), halo[order]
