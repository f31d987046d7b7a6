"""Whole models. ``forward(x, graph)`` returns class scores [N, out_channels].

``hidden_layers`` names the modules whose outputs are the hidden states that distillation aligns:
every message-passing layer's output, after the activation that the layer applies itself. Class
scores are not among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from abkd_fast.graph import CSRGraph
from abkd_fast.nn.gat import GAT
from abkd_fast.nn.gcn2_conv import GCN2Conv
from abkd_fast.nn.gcn_conv import GCNConv
from abkd_fast.nn.linear import Linear, dropout
from abkd_fast.nn.norm import BatchNorm
from abkd_fast.nn.rgcn import RGCN
from abkd_fast.nn.sage_conv import SAGEConv
from abkd_fast.ops.dropout import draw_seed


class _Model(nn.Module):
    """A model with dropout, whose masks come from one seed a forward."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def extra_repr(self) -> str:
        """Dropout."""
        return f"dropout={self.dropout}"

    def _draw(self) -> tuple[float, Tensor | None]:
        """Probability and seed of this forward; no seed where nothing is dropped."""
        if not self.training or self.dropout == 0.0:
            return 0.0, None
        return self.dropout, draw_seed()


class _Stack(_Model):
    """``num_layers`` layers of one kind; ReLU after all but the last, dropout before each.

    ``norm="batch_norm"`` puts batch normalisation before every ReLU. ``options`` are the layer's.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        norm: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dropout)
        if norm not in (None, "batch_norm"):
            raise ValueError(f"norm must be None or batch_norm, got {norm!r}")
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        hidden = num_layers - 1
        acts = ["none" if norm else "relu"] * hidden + ["none"]
        layers = zip(widths[:-1], widths[1:], acts, strict=True)
        stack = (self._layer(*layer, **options) for layer in layers)
        setattr(self, self._name, nn.ModuleList(stack))
        norms = [BatchNorm(hidden_channels) for _ in range(hidden)] if norm else []
        self.norms = nn.ModuleList(norms)
        self.hidden_layers = tuple(f"{'norms' if norm else self._name}.{i}" for i in range(hidden))

    def _norm(self, layer: int, h: Tensor) -> Tensor:
        """The hidden state of ``layer`` from what the layer gave."""
        return self.norms[layer](h) if len(self.norms) else h

    _name: str  # of the list of layers
    _layer: Callable[..., nn.Module]


class GCN(_Stack):
    """Stack of ``num_layers`` GCNConv, ReLU and dropout between them (arXiv 1609.02907)."""

    convs: nn.ModuleList
    _name = "convs"

    @staticmethod
    def _layer(in_channels: int, out_channels: int, act: str, **options: Any) -> nn.Module:
        return GCNConv(in_channels, out_channels, act=act, **options)

    def forward(
        self,
        x: Tensor | CSRGraph,
        graph: CSRGraph,
        aggregated_x: Tensor | CSRGraph | None = None,
    ) -> Tensor:
        """X [N, in_channels] dense or sparse; ``aggregated_x``: A_hat X where it is known.

        It saves the first layer's aggregation where nothing is dropped, and changes nothing else.
        """
        p, seed = self._draw()
        first, *rest = self.convs
        h = first(x, graph, p, seed, 0, aggregated_x)
        for layer, conv in enumerate(rest, start=1):
            h = conv(self._norm(layer - 1, h), graph, p, seed, layer)
        return h


class GraphSAGE(_Stack):
    """Stack of ``num_layers`` SAGEConv, ReLU and dropout between them (arXiv 1706.02216).

    Options of the layers, ``aggr="max"`` among them, are those of :class:`SAGEConv`.
    """

    convs: nn.ModuleList
    _name = "convs"

    @staticmethod
    def _layer(in_channels: int, out_channels: int, act: str, **options: Any) -> nn.Module:
        return SAGEConv(in_channels, out_channels, act=act, **options)

    def forward(self, x: Tensor | CSRGraph, graph: CSRGraph) -> Tensor:
        """X [N, in_channels] dense or sparse."""
        p, seed = self._draw()
        h = self.convs[0](x, graph, p, seed)
        for layer, conv in enumerate(self.convs[1:], start=1):
            h = conv(self._norm(layer - 1, h), graph, p, seed, layer)
        return h


class GCNII(_Model):
    """Linear + ReLU, ``num_layers`` GCN2Conv with ReLU, Linear; dropout before each.

    (Chen et al., arXiv 2007.02133.) ``init="uniform"`` is the authors' initialisation;
    ``init="xavier"`` draws every weight Glorot-uniform and starts the input bias at 0.1, which
    keeps the ReLUs of a very narrow student alive.

    Args:
        in_channels: width of x.
        hidden_channels: width of every hidden layer.
        num_layers: number of GCN2Conv layers.
        out_channels: number of classes.
        dropout: probability before every convolution and both linears.
        alpha: strength of the initial residual.
        theta: identity mapping (lambda in the paper).
        init: "uniform" or "xavier".
        shared: one layer's weight at every depth, for students as in MustaD (PLoS ONE 16(8)
            e0256187): (in + classes) h + h^2 + h + classes parameters whatever num_layers is.
    """

    hidden_layers = ("convs.*",)

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.5,
        alpha: float = 0.1,
        theta: float = 0.5,
        init: str = "uniform",
        shared: bool = False,
    ) -> None:
        super().__init__(dropout)
        if init not in ("uniform", "xavier"):
            raise ValueError(f"init must be uniform or xavier, got {init!r}")
        self.lins = nn.ModuleList(
            [
                Linear(in_channels, hidden_channels, act="relu"),
                Linear(hidden_channels, out_channels),
            ]
        )
        self.convs = nn.ModuleList(
            GCN2Conv(hidden_channels, alpha, theta, layer, act="relu")
            for layer in range(1, (1 if shared else num_layers) + 1)
        )
        self.num_layers = num_layers
        self.betas = [math.log(theta / layer + 1.0) for layer in range(1, num_layers + 1)]
        if init == "xavier":
            self._xavier()

    def extra_repr(self) -> str:
        """Dropout, and the depth where the layers do not tell it."""
        shared = len(self.convs) != self.num_layers
        return super().extra_repr() + (f", num_layers={self.num_layers}" if shared else "")

    def _xavier(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.constant_(parameter, 0.1 if name == "lins.0.bias" else 0.0)

    def forward(self, x: Tensor | CSRGraph, graph: CSRGraph) -> Tensor:
        """X [N, in_channels] dense or sparse."""
        p, seed = self._draw()
        h = h_0 = self.lins[0](dropout(x, p, p > 0.0, seed))
        for layer in range(1, self.num_layers + 1):
            conv = self.convs[(layer - 1) % len(self.convs)]
            h = conv(h, h_0, graph, p, seed, layer, self.betas[layer - 1])
        return self.lins[1](dropout(h, p, p > 0.0, seed, self.num_layers + 1))


class MLP(_Stack):
    """``num_layers`` linears with ReLU and dropout between them; ignores the graph."""

    lins: nn.ModuleList
    _name = "lins"

    @staticmethod
    def _layer(in_channels: int, out_channels: int, act: str) -> nn.Module:
        return Linear(in_channels, out_channels, act=act)

    def forward(self, x: Tensor | CSRGraph, graph: CSRGraph | None = None) -> Tensor:
        """X [N, in_channels] dense or sparse; graph is accepted and not used."""
        p, seed = self._draw()
        for layer, lin in enumerate(self.lins[:-1]):
            x = self._norm(layer, lin(dropout(x, p, p > 0.0, seed, layer)))
        return self.lins[-1](dropout(x, p, p > 0.0, seed, len(self.lins) - 1))


_MODELS: dict[str, type[nn.Module]] = {
    "gat": GAT,
    "gcn": GCN,
    "gcnii": GCNII,
    "mlp": MLP,
    "rgcn": RGCN,
    "sage": GraphSAGE,
}


@dataclass(frozen=True)
class ModelSpec:
    """A model's family, depth and width, written ``gcnii-64x64`` (64 layers of width 64)."""

    family: str
    num_layers: int
    hidden_channels: int

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read ``FAMILY-LAYERSxWIDTH``; ValueError names the families and the form."""
        match = re.fullmatch(r"([a-z0-9]+)-([1-9][0-9]{0,3})x([1-9][0-9]{0,5})", text)
        if match is None or match[1] not in _MODELS:
            raise ValueError(
                f"model must be FAMILY-LAYERSxWIDTH with FAMILY one of {', '.join(_MODELS)} "
                f"(for example gcnii-4x4), got {text!r}"
            )
        return cls(match[1], int(match[2]), int(match[3]))

    def build(self, in_channels: int, out_channels: int, **options: object) -> nn.Module:
        """Construct the model; ``options`` are the class's own keyword arguments.

        ``pool="mean"`` or ``"sum"`` among them makes a :class:`GraphClassifier` of it.
        """
        model, pool = _MODELS[self.family], options.pop("pool", None)
        if pool is not None:
            from abkd_fast.nn.graph_classifier import graph_classifier

            return graph_classifier(model, self, in_channels, out_channels, pool, options)
        return model(in_channels, self.hidden_channels, self.num_layers, out_channels, **options)

    def __str__(self) -> str:
        return f"{self.family}-{self.num_layers}x{self.hidden_channels}"
