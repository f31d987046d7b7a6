"""R-GCN: a whole model over typed nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast.nn.linear import dropout as drop
from abkd_fast.nn.rgcn_conv import glorot
from abkd_fast.ops.dropout import draw_seed
from abkd_fast.relational_graph import RelationalGraph


class TypedRGCNConv(nn.Module):
    r"""X'_i = act(sum_r mean_{j in N_r(i)} X_j W_r + X_i W_t(i) + b_t(i)), t(i) the type of i.

    Parameters: R a b + T (a b + b) for R relations and T node types; B a b + R B of the first
    term with B bases. Without ``in_channels`` features the a of the formula is the number of
    nodes, one type only, and rows of the weights are looked up.

    Args:
        in_channels: width of x, or the number of nodes where x is None.
        out_channels: width of the output.
        num_relations: R.
        num_types: T.
        num_bases: B, or None.
        act: "none" or "relu".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_types: int = 1,
        num_bases: int | None = None,
        act: str = "none",
    ) -> None:
        super().__init__()
        self.act = act
        weights = num_relations if num_bases is None else num_bases
        self.weight = nn.Parameter(torch.empty(weights, in_channels, out_channels))
        self.comp = (
            None if num_bases is None else nn.Parameter(torch.empty(num_relations, num_bases))
        )
        self.root = nn.Parameter(torch.empty(num_types, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(num_types, out_channels))
        for weight in (self.weight, self.comp, self.root):
            if weight is not None:
                glorot(weight)

    def forward(
        self, x: Tensor | None, graph: RelationalGraph, targets_only: bool = False
    ) -> Tensor:
        """X [N, in_channels] or None; returns [N, out_channels], or the first type's rows."""
        root, bias = (self.root, self.bias) if x is not None else (self.root[0], self.bias[0])
        options = {"comp": self.comp, "act": self.act, "targets_only": targets_only}
        return ops.relational(graph, x, self.weight, root, bias, **options)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Shapes of relations' and roots' weights."""
        act = "" if self.act == "none" else f", act={self.act}"
        return f"weight={list(self.weight.shape)}, root={list(self.root.shape)}{act}"


class RGCN(nn.Module):
    """``num_layers`` relational layers, ReLU and dropout between them (arXiv 1703.06103).

    The last layer computes the target type, the graph's first, alone; hidden states are those of
    its nodes. Types without features have a learned embedding as wide as the features. Where no
    type has features, the first layer looks the rows of its weights up.

    Args:
        in_channels: width of the features; the number of nodes where there are none.
        hidden_channels: width of every hidden layer.
        num_layers: number of layers.
        out_channels: number of classes.
        num_nodes: node type -> count, the target first.
        num_relations: R.
        embedded: types with a learned embedding.
        featureless: whether no type has features.
        dropout: probability before every layer but the first.
        num_bases: bases of every layer's weights; None = one weight a relation.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        num_nodes: Mapping[str, int],
        num_relations: int,
        embedded: Sequence[str] = (),
        featureless: bool = False,
        dropout: float = 0.5,
        num_bases: int | None = None,
    ) -> None:
        super().__init__()
        self.dropout, self.featureless = dropout, featureless
        self.num_nodes = dict(num_nodes)
        types = len(self.num_nodes)
        if featureless and (types > 1 or in_channels != sum(self.num_nodes.values())):
            raise ValueError(
                "in_channels must be the number of nodes, of one type, where there are no "
                f"features, got {in_channels} and {self.num_nodes}"
            )
        unknown = [kind for kind in embedded if kind not in self.num_nodes]
        if unknown:
            raise ValueError(f"embedded must be types of num_nodes, got {', '.join(unknown)}")
        self.embeddings = nn.ParameterDict(
            {kind: torch.empty(self.num_nodes[kind], in_channels) for kind in embedded}
        )
        for embedding in self.embeddings.values():
            nn.init.xavier_uniform_(embedding)
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        acts = ["relu"] * (num_layers - 1) + ["none"]
        self.convs = nn.ModuleList(
            TypedRGCNConv(a, b, num_relations, types, num_bases, act)
            for a, b, act in zip(widths[:-1], widths[1:], acts, strict=True)
        )
        self.states = nn.ModuleList(nn.Identity() for _ in range(num_layers - 1))
        self.hidden_layers = ("states.*",) if num_layers > 1 else ()

    def forward(
        self,
        x: Tensor | None,
        relations: RelationalGraph,
        other_x: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Class scores [target nodes, out_channels].

        Args:
            x: [target nodes, in_channels] features, or None.
            relations: the graph.
            other_x: features of other types.
        """
        targets = next(iter(self.num_nodes.values()))
        if relations.num_nodes != self.num_nodes:
            raise ValueError(f"relations must have {self.num_nodes}, got {relations.num_nodes}")
        h = None if self.featureless else self._inputs(x, other_x or {})
        active = self.training and self.dropout > 0.0
        seed = draw_seed() if active else None
        for layer, conv in enumerate(self.convs):
            if layer > 0:
                self.states[layer - 1](h[:targets])  # type: ignore[index]
                h = drop(h, self.dropout, active, seed, layer)  # type: ignore[arg-type, assignment]
            h = conv(h, relations, targets_only=layer + 1 == len(self.convs))
        return h  # type: ignore[return-value]

    def _inputs(self, x: Tensor | None, other_x: Mapping[str, Tensor]) -> Tensor:
        """[N, in_channels]: features and embeddings in the order of the types."""
        target = next(iter(self.num_nodes))
        given = {**other_x, **self.embeddings}
        if x is not None:
            given[target] = x
        missing = [kind for kind in self.num_nodes if kind not in given]
        if missing:
            raise ValueError(
                f"features must be given for {', '.join(missing)}; name featureless types in "
                "embedded"
            )
        parts = [given[kind] for kind in self.num_nodes]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def extra_repr(self) -> str:
        """Dropout."""
        return f"dropout={self.dropout}"
