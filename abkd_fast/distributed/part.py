"""What one process holds of the data and of the teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abkd_fast.data import GraphData
from abkd_fast.distributed.halo_graph import HaloGraph
from abkd_fast.distributed.world import World
from abkd_fast.graph import CSRGraph
from abkd_fast.ops import Moments
from abkd_fast.reorder import partition
from abkd_fast.subgraph import select_rows
from abkd_fast.teacher import TeacherCache


class PartData(GraphData):
    """Features, labels and masks of a rank's nodes, over a :class:`HaloGraph`.

    Attributes:
        whole: the data it is part of.
        nodes: [n] int64, the nodes it owns.
    """

    whole: GraphData
    nodes: Tensor

    @classmethod
    def of(cls, whole: GraphData, world: World) -> PartData:
        """This rank's part; METIS runs on rank 0 alone."""
        part = torch.empty(whole.num_nodes, dtype=torch.int64, device=whole.graph.device)
        if world.is_first:
            part = partition(whole.graph, world.size)
        graph = HaloGraph(whole.graph, world.broadcast_(part), world)
        rows = whole.rows(graph.nodes, graph)
        made = object.__new__(cls)
        made.__dict__.update(vars(rows), whole=whole, nodes=graph.nodes)
        if isinstance(made.x, Tensor):
            graph.keep_sources(made.x)
        return made

    @property
    def aggregated_x(self) -> Tensor | CSRGraph | None:
        """Its rows of the whole graph's A_hat x, None where that is None."""
        if "own_aggregated_x" not in self.__dict__:
            own = self.whole.aggregated_x
            if isinstance(own, CSRGraph):
                own = select_rows(own, self.nodes)
            elif own is not None:
                own = own[self.nodes]
            self.__dict__["own_aggregated_x"] = own
        found: Tensor | CSRGraph | None = self.__dict__["own_aggregated_x"]
        return found

    @property
    def edge_index(self) -> Tensor:
        """Refused: its columns are not its rows."""
        raise ValueError(_NO_EDGES.format("edge_index"))

    @property
    def adj_t(self) -> Tensor:
        """Refused as :attr:`edge_index`."""
        raise ValueError(_NO_EDGES.format("adj_t"))


_NO_EDGES = (
    "student must take the CSRGraph of its part, and cannot be given {}; use a model of "
    "abkd_fast.nn, or distribute batches instead"
)


class TeacherPart(TeacherCache):
    """Rows of a teacher, with the moments of all of its rows beside its own."""

    def __init__(self, whole: TeacherCache, nodes: Tensor) -> None:
        about: dict[str, Any] = {
            name: getattr(whole, name) for name in ("fingerprint", "parameters", "data", "device")
        }
        logits = None if whole.logits is None else whole.logits[nodes]
        super().__init__(whole.rows(nodes), whole.widths, logits, **about)
        self._of_whole = whole.moments if whole.widths else None

    @property
    def whole_moments(self) -> Moments:
        """Those over all nodes of the graph."""
        return self.moments if self._of_whole is None else self._of_whole
