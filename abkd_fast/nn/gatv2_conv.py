"""Graph attention of Brody, Alon and Yahav."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.graph import CSRGraph
from abkd_fast.nn import _attention as shared
from abkd_fast.nn._attention import Features
from abkd_fast.nn.linear import linear


class GATv2Conv(shared.AttentionConv):
    r"""x'_i = sum_j alpha_ij W_l x_j, alpha_ij = softmax_j a . LeakyReLU(W_l x_j + W_r x_i).

    (arXiv 2105.14491, eq. 7; see :func:`abkd_fast.ops.edge_attention_v2`.) Arguments, parameter
    names and shapes, and default initialisation are those of ``torch_geometric.nn.GATv2Conv``, so
    state_dicts load in both directions. The graph's weights play no part, as in PyG.

    Args:
        in_channels: width of x, or (source width, destination width) with a matrix for each.
        out_channels: width of a head's output.
        heads: number of heads.
        concat: heads side by side; False averages them.
        negative_slope: of the leaky ReLU.
        dropout: probability of dropping a coefficient alpha in training.
        add_self_loops: every node gets one loop, in place of those it has.
        edge_dim: must be None: edge features mix into every feature of every edge here.
        fill_value: of PyG's edge features; plays no part without them.
        bias: add biases, to the output and to both maps.
        share_weights: W_r is W_l.
        residual: add a linear map of the destination's x.
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
        share_weights: bool = False,
        residual: bool = False,
    ) -> None:
        options = (concat, negative_slope, dropout, add_self_loops, fill_value)
        super().__init__(in_channels, out_channels, heads, *options)
        if edge_dim is not None:
            raise ValueError(
                f"edge_dim must be None, got {edge_dim}: GATv2 mixes edge features into all "
                "E x heads x out_channels terms; GATConv takes edge features"
            )
        self.share_weights, total = share_weights, heads * out_channels
        widths = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        self.lin_l = shared.glorot_linear(widths[0], total, bias)
        self.lin_r = self.lin_l if share_weights else shared.glorot_linear(widths[1], total, bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self._add_end(bias, residual)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights and vector, zero output bias."""
        self._reset((self.lin_l, self.lin_r), (self.att,))

    def forward(
        self,
        x: Features | tuple[Features, Features],
        graph: CSRGraph,
        seed: Tensor | None = None,
        layer: int = 0,
    ) -> Tensor:
        """[num_dst, heads * out_channels], or [num_dst, out_channels] where heads are averaged.

        Args:
            x: [N, in_channels] dense or sparse, or (source rows, destination rows) on a graph
                between two sets of nodes.
            graph: [num_dst, num_src].
            seed: of the coefficients' dropout; None draws one.
            layer: number of that dropout in a model.
        """
        source, destination = shared.rows_of(x)
        if destination is None:
            raise ValueError("x must hold the destinations' rows, got None: GATv2 scores need them")
        shared.check_sides(graph, source, destination)
        if self.add_self_loops:
            graph = shared.with_self_loops(graph)
        h = self._transform(source, self.lin_l)
        same = destination is source and self.share_weights
        out = ops.edge_attention_v2(
            graph,
            h,
            h if same else self._transform(destination, self.lin_r),
            self.att.squeeze(0),
            **self._dropout(seed, layer),
        )
        return self._finish(out, destination)

    def _transform(self, rows: Features, layer: nn.Linear) -> Tensor:
        """Rows of either side as [.., heads, out_channels]."""
        h = linear(rows, layer.weight, layer.bias, "none")
        return h.view(-1, self.heads, self.out_channels)
