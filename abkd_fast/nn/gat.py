"""GAT: a stack of attention layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from abkd_fast._checks import check_choice
from abkd_fast.graph import CSRGraph
from abkd_fast.nn.gat_conv import GATConv
from abkd_fast.nn.gatv2_conv import GATv2Conv
from abkd_fast.nn.linear import dropout as drop
from abkd_fast.ops.dropout import draw_seed

_ACTIVATIONS = {"relu": nn.ReLU, "elu": nn.ELU}


class BatchNorm(nn.Module):
    """Batch norm whose parameters have the names of ``torch_geometric.nn.BatchNorm``'s."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in_channels], normalised column by column."""
        return self.module(x)


class GAT(nn.Module):
    """``num_layers`` GATConv (or GATv2Conv); norm, activation and dropout between them.

    Parameter names are those of ``torch_geometric.nn.GAT``. Unlike there, dropout comes before
    every layer, the first included, as in the authors' code (arXiv 1710.10903, section 3.3), and
    acts on the attention coefficients with the same probability.

    The teacher of 1,441,580 parameters on ogbn-arxiv (3 heads of 250, features beside one-hot
    labels) is
    ``GAT(168, 750, 3, 40, heads=3, out_heads=1, norm="batch_norm", residual=True,
    use_att_dst=False, hidden_bias=False)``.

    Args:
        in_channels: width of x.
        hidden_channels: width of every hidden layer, all heads together.
        num_layers: number of layers.
        out_channels: number of classes.
        dropout: probability, of features before every layer and of coefficients.
        act: "relu" or "elu".
        norm: None or "batch_norm": between a hidden layer and its activation.
        v2: GATv2Conv instead of GATConv.
        heads: heads of the hidden layers, side by side, and of the last, averaged.
        out_heads: heads of the last layer, where they are not as many. Not in PyG.
        hidden_bias: False leaves the hidden layers' biases out. Not in PyG.
        kwargs: further arguments of every layer, such as ``residual=True``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        dropout: float = 0.0,
        act: str = "relu",
        norm: str | None = None,
        v2: bool = False,
        heads: int = 1,
        out_heads: int | None = None,
        hidden_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_choice("act", act, tuple(_ACTIVATIONS))
        if norm not in (None, "batch_norm"):
            raise ValueError(f"norm must be None or batch_norm, got {norm!r}")
        if num_layers < 1:
            raise ValueError(f"num_layers must be >= 1, got {num_layers}")
        if hidden_channels % heads:
            raise ValueError(
                f"hidden_channels must be a multiple of heads={heads}, got {hidden_channels}"
            )
        self.dropout = dropout
        conv = GATv2Conv if v2 else GATConv
        hidden = num_layers - 1
        options = {"dropout": dropout} | kwargs
        widths = [in_channels, *[hidden_channels] * hidden]
        inner = options | ({} if hidden_bias else {"bias": False})
        layers = [conv(width, hidden_channels // heads, heads, **inner) for width in widths[:-1]]
        last = heads if out_heads is None else out_heads
        layers.append(conv(widths[-1], out_channels, last, concat=False, **options))
        self.convs = nn.ModuleList(layers)
        norms = [nn.Identity() if norm is None else BatchNorm(w) for w in widths[1:]]
        self.norms = nn.ModuleList(norms)
        self.acts = nn.ModuleList(_ACTIVATIONS[act]() for _ in range(hidden))
        self.hidden_layers = tuple(f"acts.{i}" for i in range(hidden))

    def forward(self, x: Tensor | CSRGraph, graph: CSRGraph) -> Tensor:
        """X [N, in_channels] dense or sparse; returns class scores [N, out_channels]."""
        p = self.dropout if self.training else 0.0
        seed = draw_seed() if p > 0.0 else None
        for i, conv in enumerate(self.convs):
            x = conv(drop(x, p, p > 0.0, seed, 2 * i), graph, seed=seed, layer=2 * i + 1)
            if i < len(self.acts):
                x = self.acts[i](self.norms[i](x))
        assert isinstance(x, Tensor)
        return x

    def extra_repr(self) -> str:
        """Dropout."""
        return f"dropout={self.dropout}"
