"""Class scores of whole graphs: hidden states of the nodes, pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._checks import check_choice
from abkd_fast.graph import CSRGraph
from abkd_fast.nn.linear import Linear, dropout
from abkd_fast.nn.models import ModelSpec, _Model


class GraphClassifier(_Model):
    """Node model, ReLU, mean or sum over each graph's nodes, Linear; dropout before the last.

    The hidden states are the node model's own and its activated output, one row a node.

    Args:
        encoder: called as ``encoder(x, graph)``; returns [N, hidden_channels].
        hidden_channels: width of what it returns.
        out_channels: number of classes, or of yes-or-no questions.
        pool: "mean" or "sum".
        dropout: probability before the last map.
    """

    def __init__(
        self,
        encoder: nn.Module,
        hidden_channels: int,
        out_channels: int,
        pool: str = "mean",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(dropout)
        check_choice("pool", pool, ("mean", "sum"))
        self.encoder, self.act, self.pool = encoder, nn.ReLU(), pool
        self.lin = Linear(hidden_channels, out_channels)
        inner = getattr(encoder, "hidden_layers", ())
        self.hidden_layers = (*(f"encoder.{path}" for path in inner), "act")

    def extra_repr(self) -> str:
        """Pooling and dropout."""
        return f"pool={self.pool!r}, {super().extra_repr()}"

    def forward(self, x: Tensor | CSRGraph, graph: CSRGraph, graph_ptr: Tensor) -> Tensor:
        """Class scores [G, out_channels] of the graphs whose nodes ``graph_ptr`` [G + 1] bounds."""
        p, seed = self._draw()
        pooled = ops.segment_csr(self.act(self.encoder(x, graph)), graph_ptr, self.pool)
        return self.lin(dropout(pooled, p, p > 0.0, seed))


def graph_classifier(
    model: Callable[..., nn.Module],
    spec: ModelSpec,
    in_channels: int,
    out_channels: int,
    pool: object,
    options: Mapping[str, Any],
) -> GraphClassifier:
    """A classifier of graphs around a ``model`` of the depth and width of ``spec``."""
    width = spec.hidden_channels
    encoder = model(in_channels, width, spec.num_layers, width, **options)
    return GraphClassifier(encoder, width, out_channels, str(pool), options.get("dropout", 0.5))
