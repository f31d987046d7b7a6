"""PyG's layers whose ``forward`` computes with our ops.

Each is a subclass that :func:`abkd_fast.accelerate` gives to an existing layer as its class: the
object, its parameters, hooks and mode stay what they are. Where a call asks for what our ops do
not do, PyG's own forward serves it, with a warning that says why.

A new layer is a subclass of :class:`Accelerated` and of PyG's class with a ``forward``, and a line
in ``ACCELERATED``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from abkd_fast import ops
from abkd_fast._pyg_attention import GATConv, GATv2Conv
from abkd_fast._pyg_features import sparse_form
from abkd_fast._pyg_graphs import adjacency, normalised, pattern
from abkd_fast._pyg_layer import Accelerated, fused, lazy, notice
from abkd_fast._pyg_relational import RGCNConv
from abkd_fast.graph import CSRGraph
from abkd_fast.memory import transposed
from abkd_fast.nn.linear import linear
from abkd_fast.nn.sage_conv import sage

_REDUCTIONS = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max", "min": "min"}


def _gcn_graph(conv: Any, x: Tensor, edges: Any, weight: Tensor | None) -> CSRGraph:
    """A_hat, or the graph itself; ``cached`` layers keep what they saw first, where PyG does."""
    improved, loops = getattr(conv, "improved", False), conv.add_self_loops
    size, rules = x.size(0), (improved, loops, conv.flow, x.dtype)
    if conv.normalize:
        if isinstance(edges, CSRGraph) or not conv.cached:
            return normalised(edges, size, weight, *rules)
        if isinstance(edges, Tensor):
            if conv._cached_edge_index is None:
                conv._cached_edge_index = gcn_norm(edges, weight, size, *rules)
            edges, weight = conv._cached_edge_index
        else:
            if conv._cached_adj_t is None:
                conv._cached_adj_t = gcn_norm(edges, weight, size, *rules)
            edges = conv._cached_adj_t
    return adjacency(edges, (size, size), weight, conv.flow, x.dtype)


class GCNConv(Accelerated, pyg.GCNConv):
    """``torch_geometric.nn.GCNConv`` by ``ops.conv``, aggregated on the narrower side."""

    def forward(self, x: Any, edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        """As PyG's; ``edge_index`` may be a CSRGraph too."""
        if lazy(self):
            return super().forward(x, edge_index, edge_weight)
        if why := self.call_obstacle(x, edge_index, edge_weight):
            notice(self, why, edge_index)
            return super().forward(x, edge_index, edge_weight)
        graph = _gcn_graph(self, x, edge_index, edge_weight)
        if not fused(self.lin) or self.lin.bias is not None:
            return ops.conv(graph, self.lin(x), None, self.bias)[0]
        x = sparse_form(x)
        if isinstance(x, CSRGraph):
            return ops.conv(graph, linear(x, self.lin.weight, None, "none"), None, self.bias)[0]
        return ops.conv(graph, x, transposed(self.lin.weight), self.bias)[0]


class GCN2Conv(Accelerated, pyg.GCN2Conv):
    """``torch_geometric.nn.GCN2Conv`` by ``ops.conv``."""

    def forward(
        self, x: Any, x_0: Tensor, edge_index: Any, edge_weight: Tensor | None = None
    ) -> Tensor:
        """As PyG's; ``edge_index`` may be a CSRGraph too."""
        if why := self.call_obstacle(x, edge_index, edge_weight):
            notice(self, why, edge_index)
            return super().forward(x, x_0, edge_index, edge_weight)
        graph = _gcn_graph(self, x, edge_index, edge_weight)
        x_0, alpha, beta = x_0[: x.size(0)], self.alpha, self.beta
        if self.weight2 is None:
            return ops.conv(graph, x, self.weight1, x_0=x_0, alpha=alpha, beta=beta)[0]
        mixed, x_0 = (1 - alpha) * ops.spmm(graph, x), alpha * x_0
        out = torch.addmm(mixed, mixed, self.weight1, beta=1 - beta, alpha=beta)
        return out + torch.addmm(x_0, x_0, self.weight2, beta=1 - beta, alpha=beta)


class SAGEConv(Accelerated, pyg.SAGEConv):
    """``torch_geometric.nn.SAGEConv`` by ``ops.conv`` and ``ops.spmm``."""

    reductions = tuple(_REDUCTIONS)

    def forward(self, x: Any, edge_index: Any, size: Any = None) -> Tensor:
        """As PyG's; ``edge_index`` may be a CSRGraph too."""
        if lazy(self):
            return super().forward(x, edge_index, size)
        source, root = x if isinstance(x, (tuple, list)) else (x, x)
        if why := self.pair_obstacle(source, root, edge_index, size):
            notice(self, why, edge_index)
            return super().forward(x, edge_index, size)
        num_dst = root.size(0) if root is not None else (size or (0, None))[1] or source.size(0)
        if hasattr(edge_index, "csr"):
            edge_index = pattern(edge_index)  # PyG ignores these weights too
        graph = adjacency(edge_index, (source.size(0), num_dst), None, self.flow, source.dtype)
        if self.project:
            source = self.lin(source).relu()
        out = self._aggregated(graph, source, root if self.root_weight else None)
        return F.normalize(out, dim=-1) if self.normalize else out

    def _aggregated(self, graph: CSRGraph, source: Tensor, root: Tensor | None) -> Tensor:
        aggr = _REDUCTIONS[self.aggr]
        if not fused(self.lin_l) or (root is not None and not fused(self.lin_r)):
            out = self.lin_l(ops.spmm(graph, source, aggr))
            return out if root is None else out + self.lin_r(root)
        weights = (self.lin_l.weight, self.lin_l.bias)
        x = sparse_form(source) if aggr in ("sum", "mean") else source
        if root is None:
            return sage(graph, x, None, *weights, None, aggr)
        return sage(graph, x, x if root is source else root, *weights, self.lin_r.weight, aggr)


ACCELERATED: dict[type, type[Accelerated]] = {
    pyg.GCNConv: GCNConv,
    pyg.GCN2Conv: GCN2Conv,
    pyg.SAGEConv: SAGEConv,
    pyg.RGCNConv: RGCNConv,
    pyg.GATConv: GATConv,
    pyg.GATv2Conv: GATv2Conv,
}


def why_not(layer: nn.Module) -> str:
    """Why a message-passing layer is not an accelerated one; empty where it is."""
    if type(layer) in ACCELERATED.values():
        return ""
    if type(layer) in ACCELERATED:
        return ACCELERATED[type(layer)].obstacle(layer) or "accelerate() did not see it"
    for original in ACCELERATED:
        if isinstance(layer, original):
            return f"it is a subclass of {original.__name__}, which may compute something else"
    return "we have no such layer"
