"""Graph convolution of Kipf & Welling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abkd_fast.graph import CSRGraph
from abkd_fast.nn.linear import Linear
from abkd_fast.ops import spmm


class GCNConv(nn.Module):
    r"""X' = A_hat X W^T + b with A_hat = D^-1/2 (A + I) D^-1/2.   (arXiv 1609.02907, eq. 2)

    The narrower side is aggregated: A_hat (X W^T) or (A_hat X) W^T. Parameter names and default
    initialisation are those of ``torch_geometric.nn.GCNConv``.

    Args:
        in_channels: width of x.
        out_channels: width of the output.
        normalize: use A_hat of the graph; False takes the graph's own weights.
        bias: add a bias.
    """

    def __init__(
        self, in_channels: int, out_channels: int, normalize: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.normalize = normalize
        self.lin = Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, zero bias."""
        nn.init.xavier_uniform_(self.lin.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor | CSRGraph, graph: CSRGraph) -> Tensor:
        """X [N, in_channels] dense or sparse; returns [N, out_channels]."""
        graph = graph.gcn_norm() if self.normalize else graph
        if isinstance(x, Tensor) and self.in_channels < self.out_channels:
            out = self.lin(spmm(graph, x))
        else:
            out = spmm(graph, self.lin(x))
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        """Widths."""
        return f"{self.in_channels}, {self.out_channels}"
