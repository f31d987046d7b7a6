"""The GCNII layer: initial residual and identity mapping."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.column_sums import attach_column_sums
from abkd_fast.graph import CSRGraph


class GCN2Conv(nn.Module):
    r"""S = (1 - a) A_hat X + a X_0;  X' = act((1 - b) S + b S W), b = log(theta / layer + 1).

    (Chen et al., arXiv 2007.02133, eq. 5; ``shared_weights=True``.) Parameter names are those of
    ``torch_geometric.nn.GCN2Conv``; W is drawn from U(-1/sqrt(channels), 1/sqrt(channels)) as in
    the authors' code.

    Args:
        channels: width of x, x_0 and the output.
        alpha: a, strength of the initial residual.
        theta: identity-mapping hyper-parameter (lambda in the paper); None switches it off (b=1).
        layer: depth l >= 1 of this layer, needed with theta.
        normalize: use A_hat of the graph; False takes the graph's own weights.
        act: "none" or "relu".
    """

    def __init__(
        self,
        channels: int,
        alpha: float,
        theta: float | None = None,
        layer: int | None = None,
        normalize: bool = True,
        act: str = "none",
    ) -> None:
        super().__init__()
        if theta is not None and (layer is None or layer < 1):
            raise ValueError(f"layer must be >= 1 when theta is given, got {layer}")
        self.channels, self.alpha, self.normalize, self.act = channels, alpha, normalize, act
        self.beta = 1.0 if theta is None else math.log(theta / (layer or 1) + 1.0)
        self.weight1 = nn.Parameter(torch.empty(channels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weight, bound 1/sqrt(channels)."""
        bound = self.channels**-0.5
        nn.init.uniform_(self.weight1, -bound, bound)

    def forward(
        self,
        x: Tensor,
        x_0: Tensor,
        graph: CSRGraph,
        p: float = 0.0,
        seed: Tensor | None = None,
        layer: int = 0,
        beta: float | None = None,
    ) -> Tensor:
        """X and x_0 [N, channels]; returns [N, channels].

        ``p``, ``seed`` and ``layer`` drop elements of X (see :func:`abkd_fast.ops.dropout`).
        ``beta`` stands for b where the layer is applied at another depth than its own.
        """
        graph = graph.gcn_norm() if self.normalize else graph
        x, p = graph.sources(x, p, seed, layer)
        out, sums = ops.conv(
            graph,
            x,
            self.weight1,
            x_0=x_0,
            alpha=self.alpha,
            beta=self.beta if beta is None else beta,
            act=self.act,
            p=p,
            seed=seed,
            layer=layer,
        )
        return attach_column_sums(out, sums)

    def extra_repr(self) -> str:
        """Width, mixing factors and activation."""
        act = "" if self.act == "none" else f", act={self.act}"
        return f"{self.channels}, alpha={self.alpha}, beta={self.beta:.4f}{act}"
