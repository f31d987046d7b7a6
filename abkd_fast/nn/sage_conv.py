"""GraphSAGE's layer: neighbours and the node itself, each with its own weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._checks import check_choice
from abkd_fast._csr import outside_inference
from abkd_fast.graph import CSRGraph
from abkd_fast.memory import transposed
from abkd_fast.nn.linear import Linear, dropout, linear
from abkd_fast.ops.linear import ACTIVATIONS
from abkd_fast.ops.spmm import REDUCTIONS

Features = Tensor | CSRGraph


class SAGEConv(nn.Module):
    r"""X'_i = act(W_l aggr_{j in N(i)} x_j + b + W_r x_i).   (arXiv 1706.02216, eq. 2)

    Sum and mean aggregate the narrower side: W_l mean(x) or mean(W_l x). Parameter names, shapes
    and default initialisation are those of ``torch_geometric.nn.SAGEConv``. Nodes without
    neighbours aggregate to 0; the gradient of a maximum goes to the first edge that attains it.

    Args:
        in_channels: width of x, or (source, destination) widths for a bipartite graph.
        out_channels: width of the output.
        aggr: "mean", "max", "min" or "sum".
        normalize: divide every row of the output by its length (1e-12 at least).
        root_weight: add W_r x_i.
        project: aggregate relu(W x_j + c) instead of x_j (eq. 3).
        bias: add b.
        act: "none" or "relu", after everything else.

    Raises:
        ValueError: ``aggr`` or ``act`` is none of these.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        aggr: str = "mean",
        normalize: bool = False,
        root_weight: bool = True,
        project: bool = False,
        bias: bool = True,
        act: str = "none",
    ) -> None:
        super().__init__()
        check_choice("aggr", aggr, REDUCTIONS)
        check_choice("act", act, ACTIVATIONS)
        pair = in_channels if isinstance(in_channels, tuple) else (in_channels, in_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.aggr, self.normalize, self.act = aggr, normalize, act
        self.lin = Linear(pair[0], pair[0], act="relu") if project else None
        self.lin_l = Linear(pair[0], out_channels, bias=bias)
        self.lin_r = Linear(pair[1], out_channels, bias=False) if root_weight else None

    def reset_parameters(self) -> None:
        """Uniform weights and biases, as in ``torch.nn.Linear``."""
        for lin in (self.lin, self.lin_l, self.lin_r):
            if lin is not None:
                lin.reset_parameters()

    def forward(
        self,
        x: Features | tuple[Features, Features | None],
        graph: CSRGraph,
        p: float = 0.0,
        seed: Tensor | None = None,
        layer: int = 0,
    ) -> Tensor:
        """X [N, in_channels] dense or sparse; returns [num_dst, out_channels].

        For a bipartite graph, a pair: sources [num_src, in_channels[0]] and destinations
        [num_dst, in_channels[1]] (None leaves W_r x_i out). ``p``, ``seed`` and ``layer`` drop
        elements of an X that is no pair (see :func:`abkd_fast.ops.dropout`).
        """
        if not isinstance(x, tuple):
            x = dropout(x, p, p > 0.0, seed, layer)
        elif p > 0.0:
            raise ValueError(f"p must be 0 where x is a pair, got {p}; drop its elements before")
        source, root = x if isinstance(x, tuple) else (x, x)
        if self.lin is not None:
            source = self.lin(source)
        root_weight = None if self.lin_r is None else self.lin_r.weight
        weights = (self.lin_l.weight, self.lin_l.bias, root_weight)
        out = sage(graph, source, root, *weights, aggr=self.aggr)
        if self.normalize:
            out = F.normalize(out, dim=1)
        return out.relu() if self.act == "relu" else out

    def extra_repr(self) -> str:
        """Widths, aggregation and activation."""
        act = "" if self.act == "none" else f", act={self.act}"
        return f"{self.in_channels}, {self.out_channels}, aggr={self.aggr}{act}"


def sage(
    graph: CSRGraph,
    x: Features,
    root: Features | None,
    weight: Tensor,
    bias: Tensor | None,
    root_weight: Tensor | None,
    aggr: str = "mean",
) -> Tensor:
    r"""W aggr_{j in N(i)} x_j + b + W_r root_i, aggregated on the narrower side.

    Args:
        graph: [num_dst, num_src]; weights of edges multiply x_j, as in :func:`ops.spmm`.
        x: [num_src, in], dense or sparse; a maximum or minimum needs it dense and makes it so.
        root: [num_dst, in_r], dense or sparse, or None.
        weight: W [out, in].
        bias: b [out], or None.
        root_weight: W_r [out, in_r], or None: root is not used.
        aggr: "mean", "max", "min" or "sum".

    Returns:
        [num_dst, out].

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    if aggr in ("max", "min"):
        dense = x.to_dense() if isinstance(x, CSRGraph) else x
        out = linear(ops.spmm(graph, graph.sources(dense)[0], aggr), weight, bias, "none")
    elif isinstance(x, CSRGraph):
        transformed, _ = graph.sources(linear(x, weight, None, "none"))
        out, _ = ops.conv(_summed(graph, transformed.dtype, aggr), transformed, None, bias)
    else:
        source, _ = graph.sources(x)
        out, _ = ops.conv(_summed(graph, x.dtype, aggr), source, transposed(weight), bias)
    if root is None or root_weight is None:
        return out
    if root.shape[0] != graph.num_dst:
        raise ValueError(
            f"x must have a row for each of the num_dst={graph.num_dst} destinations, got "
            f"{root.shape[0]}; pass (x_source, x_destination) with a bipartite graph"
        )
    return out + linear(root, root_weight, None, "none")


def _summed(graph: CSRGraph, dtype: torch.dtype, aggr: str) -> CSRGraph:
    """The graph whose weighted sum is the aggregation."""
    return _mean(graph, dtype) if aggr == "mean" else graph


@outside_inference
def _mean(graph: CSRGraph, dtype: torch.dtype) -> CSRGraph:
    """Weights over the number of edges of their row, for features of ``dtype``; kept as t()."""
    dtype = torch.float64 if dtype == torch.float64 else torch.float32
    name = f"mean-{dtype}"
    if name in graph._derived:
        return graph._derived[name]
    value = graph.rowptr.diff().to(dtype).reciprocal()[graph.row()]
    if graph.value is not None:
        value = value * graph.value
    return graph._keep(name, graph.with_value(value))
