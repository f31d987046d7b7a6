"""Graph attention of Brody, Alon and Yahav."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.graph import CSRGraph
from abkd_fast.nn import _attention as shared
from abkd_fast.nn._attention import Features
from abkd_fast.nn.linear import linear
from abkd_fast.ops.dropout import draw_seed


class GATv2Conv(nn.Module):
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
        super().__init__()
        shared.check_options(heads, out_channels, dropout, fill_value)
        if edge_dim is not None:
            raise ValueError(
                f"edge_dim must be None, got {edge_dim}: GATv2 mixes edge features into all "
                "E x heads x out_channels terms; GATConv takes edge features"
            )
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.negative_slope, self.dropout = concat, negative_slope, dropout
        self.add_self_loops, self.share_weights = add_self_loops, share_weights
        total, width = heads * out_channels, out_channels * (heads if concat else 1)
        widths = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        self.lin_l = shared.glorot_linear(widths[0], total, bias)
        self.lin_r = self.lin_l if share_weights else shared.glorot_linear(widths[1], total, bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.res = shared.glorot_linear(widths[1], width) if residual else None
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights and vector, zero output bias."""
        for layer in (self.lin_l, self.lin_r, self.res):
            if layer is not None:
                shared.reset_linear(layer)
        shared.glorot(self.att)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

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
        p = self.dropout if self.training else 0.0
        out = ops.edge_attention_v2(
            graph,
            h,
            h if same else self._transform(destination, self.lin_r),
            self.att.squeeze(0),
            negative_slope=self.negative_slope,
            p=p,
            seed=draw_seed() if seed is None and p > 0.0 else seed,
            layer=layer,
        )
        residual = None
        if self.res is not None:
            residual = linear(destination, self.res.weight, None, "none")
        return shared.finish(out, self.concat, residual, self.bias)

    def _transform(self, rows: Features, layer: nn.Linear) -> Tensor:
        """Rows of either side as [.., heads, out_channels]."""
        h = linear(rows, layer.weight, layer.bias, "none")
        return h.view(-1, self.heads, self.out_channels)

    def extra_repr(self) -> str:
        """Widths and heads."""
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"
