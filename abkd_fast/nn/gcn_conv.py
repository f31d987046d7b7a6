"""Graph convolution of Kipf & Welling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.column_sums import attach_column_sums
from abkd_fast.graph import CSRGraph
from abkd_fast.memory import transposed
from abkd_fast.nn.linear import Linear, dropout, linear


class GCNConv(nn.Module):
    r"""X' = act(A_hat X W^T + b), A_hat = D^-1/2 (A + I) D^-1/2.   (arXiv 1609.02907, eq. 2)

    The narrower side is aggregated: A_hat (X W^T) or (A_hat X) W^T. Parameter names and default
    initialisation are those of ``torch_geometric.nn.GCNConv``.

    Args:
        in_channels: width of x.
        out_channels: width of the output.
        normalize: use A_hat of the graph; False takes the graph's own weights.
        bias: add a bias.
        act: "none" or "relu".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        normalize: bool = True,
        bias: bool = True,
        act: str = "none",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.normalize, self.act = normalize, act
        self.lin = Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, zero bias."""
        nn.init.xavier_uniform_(self.lin.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor | CSRGraph,
        graph: CSRGraph,
        p: float = 0.0,
        seed: Tensor | None = None,
        layer: int = 0,
        aggregated_x: Tensor | CSRGraph | None = None,
    ) -> Tensor:
        """X [N, in_channels] dense or sparse; returns [N, out_channels].

        ``p``, ``seed`` and ``layer`` drop elements of X (see :func:`abkd_fast.ops.dropout`).
        ``aggregated_x`` [N, in_channels] is A_hat X where the caller knows it, dense or sparse:
        (A_hat X) W^T is computed from it where p is 0 and the layer normalises.
        """
        if aggregated_x is not None and p == 0.0 and self.normalize:
            return self._transform(aggregated_x, graph)
        graph = graph.gcn_norm() if self.normalize else graph
        narrows = graph.is_part and self.out_channels < self.in_channels  # fewer columns to send
        if isinstance(x, Tensor) and not narrows:
            x, p = graph.sources(x, p, seed, layer)
            weight = transposed(self.lin.weight)
            out, sums = ops.conv(
                graph, x, weight, self.bias, act=self.act, p=p, seed=seed, layer=layer
            )
        else:
            transformed = self.lin(dropout(x, p, p > 0.0, seed, layer))
            transformed, _ = graph.sources(transformed)
            out, sums = ops.conv(graph, transformed, None, self.bias, act=self.act)
        return attach_column_sums(out, sums)

    def _transform(self, aggregated_x: Tensor | CSRGraph, graph: CSRGraph) -> Tensor:
        """What follows the aggregation."""
        rows = aggregated_x.shape[0]
        if rows != graph.num_dst:
            raise ValueError(f"aggregated_x must have N={graph.num_dst} rows, got {rows}")
        return linear(aggregated_x, self.lin.weight, self.bias, self.act)

    def extra_repr(self) -> str:
        """Widths and activation."""
        act = "" if self.act == "none" else f", act={self.act}"
        return f"{self.in_channels}, {self.out_channels}{act}"
