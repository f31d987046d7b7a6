"""PyG's R-GCN layer, computed with ``ops.relational``; see :mod:`abkd_fast._pyg_convs`."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor

from abkd_fast import ops
from abkd_fast._pyg_graphs import KEPT, is_edge_index
from abkd_fast._pyg_layer import Accelerated, notice
from abkd_fast.relational_graph import RelationalGraph


class RGCNConv(Accelerated, pyg.RGCNConv):
    """``torch_geometric.nn.RGCNConv`` by ``ops.relational``."""

    reductions = ("mean", "add", "sum")

    def forward(self, x: Any, edge_index: Any, edge_type: Tensor | None = None) -> Tensor:
        """As PyG's; ``edge_index`` may be a RelationalGraph too."""
        source, root = x if isinstance(x, tuple) else (x, None)
        if why := self._why_not(x, source, root, edge_index, edge_type):
            notice(self, why, edge_index)
            return super().forward(x, edge_index, edge_type)
        num_src = self.in_channels_l if source is None else source.size(0)
        sizes = (num_src, num_src if root is None else root.size(0))
        graph = _relations(edge_index, edge_type, sizes, self.num_relations, self.flow)
        return ops.relational(
            graph,
            source,
            self.weight,
            self.root,
            self.bias,
            x_root=None if self.root is None else root,
            comp=self.comp,
            aggr="mean" if self.aggr == "mean" else "sum",
        )

    def _why_not(
        self, x: Any, source: Any, root: Any, edges: Any, edge_type: Tensor | None
    ) -> str | None:
        if isinstance(x, tuple) and source is None:
            return "x is a pair without features of the sources"
        if root is not None and self.flow != "source_to_target":
            return f"flow is {self.flow} with a pair of x"
        if source is None and self.num_blocks is not None:
            return "num_blocks is given without features"
        typed = is_edge_index(edges) and edge_type is not None
        if not typed and not isinstance(edges, RelationalGraph):
            return "edge_index is not [2, E] with an edge_type"
        rows = [part for part in (source, root) if part is not None] or [self.weight[0]]
        return next(filter(None, map(self.features_obstacle, rows)), None)


@torch.compiler.disable
def _relations(
    edges: Any, edge_type: Any, sizes: tuple[int, int], num_relations: int, flow: str
) -> RelationalGraph:
    """The graph of an edge_index and its types, kept as those of the other layers."""
    if isinstance(edges, RelationalGraph):
        return edges
    index = edges if flow == "source_to_target" else edges.flip(0)
    make = functools.partial(RelationalGraph.from_edge_type, index, edge_type, sizes, num_relations)
    return KEPT.get((edges, edge_type), ("relations", sizes, num_relations, flow), make)
