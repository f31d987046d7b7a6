"""PyG's attention layers by ``ops.edge_attention*``; see :mod:`abkd_fast._pyg_convs`."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor

from abkd_fast import ops
from abkd_fast._pyg_features import sparse_form
from abkd_fast._pyg_graphs import adjacency, is_edge_index, pattern, sorted_edges
from abkd_fast._pyg_layer import Accelerated, fused, lazy, notice
from abkd_fast.graph import CSRGraph
from abkd_fast.nn import _attention as shared
from abkd_fast.nn.linear import linear
from abkd_fast.ops.dropout import draw_seed


class _Attention(Accelerated):
    """What both layers share: the dropout's options, the graph, the end of the layer."""

    @classmethod
    def obstacle(cls, conv: Any) -> str | None:
        """Why a layer of PyG's class cannot be replaced, or None."""
        if not 0.0 <= conv.dropout < 1.0:
            return f"dropout={conv.dropout} is not in [0, 1)"
        return super().obstacle(conv)

    def _why_not(self, x: Any, edges: Any, size: Any, weights: bool | None) -> str | None:
        if weights:
            return "the attention weights are asked for, which are never formed at once"
        return self.pair_obstacle(*_sides(x), edges, size)

    def _attended(
        self, graph: CSRGraph, residual: Tensor | None, op: Any, *args: Any, **kw: Any
    ) -> Tensor:
        """The layer's output of one of the two ops."""
        p = self.dropout if self.training else 0.0
        seed = draw_seed() if p > 0.0 else None
        out = op(graph, *args, negative_slope=self.negative_slope, p=p, seed=seed, **kw)
        return shared.finish(out, self.concat, residual, self.bias)

    def _residual(self, destination: Tensor | None) -> Tensor | None:
        return None if self.res is None or destination is None else _mapped(self.res, destination)

    def _heads(self, lin: Any, rows: Tensor) -> Tensor:
        """Rows of one side as [.., heads, out_channels]."""
        return _mapped(lin, rows).view(-1, self.heads, self.out_channels)


class GATConv(_Attention, pyg.GATConv):
    """``torch_geometric.nn.GATConv`` by ``ops.edge_attention``."""

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """As PyG's; ``edge_index`` may be a CSRGraph too."""
        arguments = (x, edge_index, edge_attr, size, return_attention_weights)
        if lazy(self):
            return super().forward(*arguments)
        why = self._why_not(x, edge_index, size, return_attention_weights)
        if why := why or self._attr_obstacle(x, edge_index, edge_attr):
            notice(self, why, edge_index)
            return super().forward(*arguments)
        source, destination = _sides(x)
        sizes = (source.size(0), _count(source, destination, size))
        score_edge = None
        if edge_attr is not None and self.lin_edge is not None:
            score_edge = self._edge_scores(edge_index, edge_attr, sizes)
        graph = _graph(edge_index, sizes, self.flow, self.add_self_loops)
        h = self._heads(self.lin_src if self.lin is None else self.lin, source)
        h_dst = None
        if self.lin is not None and destination is source:
            h_dst = h
        elif destination is not None:
            h_dst = self._heads(self.lin_dst if self.lin is None else self.lin, destination)
        return self._attended(
            graph,
            self._residual(destination),
            ops.edge_attention,
            h,
            self.att_src.squeeze(0),
            None if h_dst is None else self.att_dst.squeeze(0),
            x_dst=h_dst,
            score_edge=score_edge,
        )

    def _attr_obstacle(self, x: Any, edges: Any, edge_attr: Any) -> str | None:
        if self.lin_edge is None:
            return None
        if not is_edge_index(edges) and not isinstance(edges, CSRGraph):
            return "edge_dim is given with a sparse matrix"
        if edge_attr is None:
            return None
        if self.flow != "source_to_target":
            return f"flow is {self.flow} with edge_attr"
        if not fused(self.lin_edge):
            return "hooks watch the map of the edge features"
        dtype = _sides(x)[0].dtype
        count = edges.num_edges if isinstance(edges, CSRGraph) else edges.size(1)
        shapes = ((count,), (count, self.lin_edge.in_channels))
        if edge_attr.shape not in shapes[self.lin_edge.in_channels != 1 :]:
            return f"edge_attr is {list(edge_attr.shape)}"
        return None if edge_attr.dtype == dtype else f"edge_attr is {edge_attr.dtype}, x is {dtype}"

    @torch.compiler.disable
    def _edge_scores(self, edges: Any, edge_attr: Tensor, sizes: tuple[int, int]) -> Tensor:
        """<a_edge, W_edge e> of every edge in the graph's order, loops included, [E', heads]."""
        edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        graph = edges
        if not isinstance(edges, CSRGraph):
            graph, order = sorted_edges(edges, sizes, self.flow)
            edge_attr = edge_attr[order]
        if self.add_self_loops:
            edge_attr = shared.loop_features(graph, edge_attr, self.fill_value)
        weight = self.lin_edge.weight.view(self.heads, self.out_channels, -1)
        return edge_attr @ (weight * self.att_edge.squeeze(0).unsqueeze(-1)).sum(1).t()


class GATv2Conv(_Attention, pyg.GATv2Conv):
    """``torch_geometric.nn.GATv2Conv`` by ``ops.edge_attention_v2``."""

    @classmethod
    def obstacle(cls, conv: Any) -> str | None:
        """Why a layer of PyG's class cannot be replaced, or None."""
        if conv.edge_dim is not None:
            return f"edge_dim={conv.edge_dim} mixes edge features into every feature of every edge"
        return super().obstacle(conv)

    def forward(
        self,
        x: Any,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """As PyG's; ``edge_index`` may be a CSRGraph too."""
        arguments = (x, edge_index, edge_attr, return_attention_weights)
        if lazy(self):
            return super().forward(*arguments)
        why = self._why_not(x, edge_index, None, return_attention_weights)
        if edge_attr is not None:
            why = "edge_attr is given where edge_dim is None"
        elif _sides(x)[1] is None:
            why = "x is a pair without features of the destinations"
        if why is not None:
            notice(self, why, edge_index)
            return super().forward(*arguments)
        source, destination = _sides(x)
        sizes = (source.size(0), destination.size(0))
        graph = _graph(edge_index, sizes, self.flow, self.add_self_loops)
        h, same = self._heads(self.lin_l, source), destination is source and self.share_weights
        h_dst = h if same else self._heads(self.lin_r, destination)
        residual, att = self._residual(destination), self.att.squeeze(0)
        return self._attended(graph, residual, ops.edge_attention_v2, h, h_dst, att)


def _sides(x: Any) -> tuple[Any, Any]:
    """(source rows, destination rows) of what PyG's layers take."""
    source, destination = x if isinstance(x, (tuple, list)) else (x, x)
    return source, destination


def _mapped(lin: Any, rows: Tensor) -> Tensor:
    """The rows through a linear layer; sparse ones as such, unless somebody listens."""
    return linear(sparse_form(rows), lin.weight, lin.bias, "none") if fused(lin) else lin(rows)


def _count(source: Tensor, destination: Tensor | None, size: Any) -> int:
    """Number of destinations."""
    if destination is not None:
        return destination.size(0)
    return (size or (0, None))[1] or source.size(0)


@torch.compiler.disable
def _graph(edges: Any, sizes: tuple[int, int], flow: str, add_self_loops: bool) -> CSRGraph:
    """The edges that the attention runs over, kept as those of the other layers."""
    if hasattr(edges, "csr"):
        graph = pattern(edges)
    elif is_edge_index(edges):
        graph = sorted_edges(edges, sizes, flow)[0]
    else:
        graph = adjacency(edges, sizes, None, flow)
    graph = shared.with_self_loops(graph) if add_self_loops else graph
    if torch.is_grad_enabled():
        graph.transposed()
    return graph
