"""Baselines of latency: PyG's models over a whole graph, and over the neighbourhood of a node.

The adjacency is normalised once, so that a node's scores are those of a full pass: PyG's
neighbourhoods have no degrees of the nodes at their border.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GCN2Conv, GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import k_hop_subgraph

Scores = Callable[[Tensor], Tensor]


class GCN(nn.Module):
    """Stack of GCNConv on a normalised adjacency; parameter names of abkd_fast.nn.GCN."""

    def __init__(self, in_channels: int, width: int, num_layers: int, out_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *[width] * (num_layers - 1), out_channels]
        self.convs = nn.ModuleList(
            GCNConv(a, b, normalize=False) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor, adj_t: object, weight: Tensor | None = None) -> Tensor:
        """``adj_t``: edge_index with its ``weight``, or a sparse matrix."""
        for conv in self.convs[:-1]:
            x = conv(x, adj_t, weight).relu()
        return self.convs[-1](x, adj_t, weight)


class GCNII(nn.Module):
    """As PyG's own example, on a normalised adjacency; parameter names of abkd_fast.nn.GCNII."""

    def __init__(self, in_channels: int, width: int, num_layers: int, out_channels: int) -> None:
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(in_channels, width), nn.Linear(width, out_channels)])
        self.convs = nn.ModuleList(
            GCN2Conv(width, 0.1, 0.5, layer, normalize=False) for layer in range(1, num_layers + 1)
        )

    def forward(self, x: Tensor, adj_t: object, weight: Tensor | None = None) -> Tensor:
        """``adj_t``: edge_index with its ``weight``, or a sparse matrix."""
        h = h_0 = self.lins[0](F.dropout(x, 0.5, self.training)).relu()
        for conv in self.convs:
            h = conv(F.dropout(h, 0.5, self.training), h_0, adj_t, weight).relu()
        return self.lins[1](F.dropout(h, 0.5, self.training))


MODELS = {"gcn": GCN, "gcnii": GCNII}


def normalised(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """(edge_index with loops, weight), as GCNConv(cached=True) keeps them."""
    return gcn_norm(edge_index, num_nodes=num_nodes)


def by_subgraph(model: nn.Module, x: Tensor, edges: tuple[Tensor, Tensor], hops: int) -> Scores:
    """``torch_geometric.utils.k_hop_subgraph`` for every query."""
    edge_index, weight = edges

    def scores(nodes: Tensor) -> Tensor:
        subset, local, rows, kept = k_hop_subgraph(
            nodes, hops, edge_index, relabel_nodes=True, num_nodes=x.size(0)
        )
        return model(x[subset], local, weight[kept])[rows]

    return torch.inference_mode()(scores)


def by_loader(model: nn.Module, x: Tensor, edges: tuple[Tensor, Tensor], hops: int) -> Scores:
    """One ``NeighborLoader`` with all neighbours, kept and asked for the nodes of a query."""
    edge_index, weight = edges
    graph = Data(x=x, edge_index=edge_index, edge_attr=weight)
    loader = NeighborLoader(graph, [-1] * hops, batch_size=1)

    def scores(nodes: Tensor) -> Tensor:
        part = loader(nodes)
        return model(part.x, part.edge_index, part.edge_attr)[: nodes.numel()]

    return torch.inference_mode()(scores)
