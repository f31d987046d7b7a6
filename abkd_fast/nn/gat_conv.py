"""Graph attention of Velickovic et al."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.graph import CSRGraph
from abkd_fast.nn import _attention as shared
from abkd_fast.nn._attention import Features


class GATConv(shared.AttentionConv):
    r"""x'_i = sum_j alpha_ij W x_j, alpha_ij = softmax_j LeakyReLU(a_dst . W x_i + a_src . W x_j).

    (arXiv 1710.10903, eq. 1 to 6; see :func:`abkd_fast.ops.edge_attention`.) Arguments, parameter
    names and shapes, and default initialisation are those of ``torch_geometric.nn.GATConv``, so
    state_dicts load in both directions. The graph's weights play no part, as in PyG.

    Args:
        in_channels: width of x, or (source width, destination width) with a matrix for each.
        out_channels: width of a head's output.
        heads: number of heads.
        concat: heads side by side; False averages them.
        negative_slope: of the leaky ReLU.
        dropout: probability of dropping a coefficient alpha in training.
        add_self_loops: every node gets one loop, in place of those it has.
        edge_dim: width of edge features, which add to the scores; None: none.
        fill_value: edge features of the added loops: a number, a tensor, or how those of a node's
            other edges are reduced ("mean", "add", "min", "max", "mul").
        bias: add a bias.
        residual: add a linear map of the destination's x.
        use_att_dst: False leaves a_dst out: scores depend on the source alone. Not in PyG.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        residual: bool = False,
        use_att_dst: bool = True,
    ) -> None:
        options = (concat, negative_slope, dropout, add_self_loops, fill_value)
        super().__init__(in_channels, out_channels, heads, *options)
        self.edge_dim, self.fill_value = edge_dim, fill_value
        total = heads * out_channels
        self.lin = self.lin_src = self.lin_dst = None
        if isinstance(in_channels, int):
            self.lin = shared.glorot_linear(in_channels, total)
        else:
            self.lin_src = shared.glorot_linear(in_channels[0], total)
            if use_att_dst:
                self.lin_dst = shared.glorot_linear(in_channels[1], total)
        shape = (1, heads, out_channels)
        self.att_src = nn.Parameter(torch.empty(shape))
        self.att_dst = nn.Parameter(torch.empty(shape)) if use_att_dst else None
        self.lin_edge = None if edge_dim is None else shared.glorot_linear(edge_dim, total)
        self.att_edge = None if edge_dim is None else nn.Parameter(torch.empty(shape))
        self._add_end(bias, residual)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights and vectors, zero bias."""
        self._reset(
            (self.lin, self.lin_src, self.lin_dst, self.lin_edge),
            (self.att_src, self.att_dst, self.att_edge),
        )

    def forward(
        self,
        x: Features | tuple[Features, Features | None],
        graph: CSRGraph,
        edge_attr: Tensor | None = None,
        seed: Tensor | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[num_dst, heads * out_channels], or [num_dst, out_channels] where heads are averaged.

        Args:
            x: [N, in_channels] dense or sparse, or (source rows, destination rows) on a graph
                between two sets of nodes; the second may be None: no a_dst.
            graph: [num_dst, num_src].
            edge_attr: [E, edge_dim] or [E], in the graph's order; with ``edge_dim``.
            seed: of the coefficients' dropout; None draws one.
            layer: number of that dropout in a model.
        """
        source, destination = shared.rows_of(x)
        shared.check_sides(graph, source, destination)
        score_edge = None
        if edge_attr is not None:
            score_edge = self._edge_scores(graph, edge_attr)
        if self.add_self_loops:
            graph = shared.with_self_loops(graph)
        h, h_dst = self._transform(source, destination)
        out = ops.edge_attention(
            graph,
            h,
            self.att_src.squeeze(0),
            None if self.att_dst is None or h_dst is None else self.att_dst.squeeze(0),
            x_dst=None if self.att_dst is None else h_dst,
            score_edge=score_edge,
            **self._dropout(seed, layer),
        )
        del h, h_dst  # as large as out
        return self._finish(out, destination)

    def _transform(
        self, source: Features, destination: Features | None
    ) -> tuple[Tensor, Tensor | None]:
        """W x of the sources and of the destinations, [.., heads, out_channels]."""
        size = (self.heads, self.out_channels)
        first = self.lin if self.lin is not None else self.lin_src
        assert first is not None
        h = shared.transform(source, first.weight, *size)
        if destination is None or self.att_dst is None:
            return h, None
        if self.lin is not None and destination is source:
            return h, h
        second = self.lin if self.lin is not None else self.lin_dst
        assert second is not None
        return h, shared.transform(destination, second.weight, *size)

    def _edge_scores(self, graph: CSRGraph, edge_attr: Tensor) -> Tensor:
        """<a_edge, W_edge e> of every edge, loops included, [E', heads]."""
        if self.lin_edge is None or self.att_edge is None:
            raise ValueError("edge_attr must be left out where edge_dim is None")
        edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        if list(edge_attr.shape) != [graph.num_edges, self.lin_edge.in_features]:
            raise ValueError(
                f"edge_attr must be [E={graph.num_edges}, edge_dim={self.lin_edge.in_features}], "
                f"got {list(edge_attr.shape)}; its order is the graph's"
            )
        if self.add_self_loops:
            edge_attr = shared.loop_features(graph, edge_attr, self.fill_value)
        # The vector goes into the weight: [E, heads * out_channels] never exists.
        weight = self.lin_edge.weight.view(self.heads, self.out_channels, -1)
        return edge_attr @ (weight * self.att_edge.squeeze(0).unsqueeze(-1)).sum(1).t()
