"""What a model reads of a graph, and the part of it that the scores of some nodes depend on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from abkd_fast._checks import check_tensor
from abkd_fast._first_hop import first_hop_of
from abkd_fast.data import GraphData
from abkd_fast.graph import CSRGraph
from abkd_fast.nn import GCNII, GATConv, GATv2Conv, GCN2Conv, GCNConv, SAGEConv
from abkd_fast.nn._attention import with_self_loops
from abkd_fast.nn.sage_conv import _mean
from abkd_fast.ops.neighborhood import unvisited

CONVS = (GATConv, GATv2Conv, GCN2Conv, GCNConv, SAGEConv)
_FIRST_HOPS: WeakKeyDictionary[GraphData, Tensor | CSRGraph] = WeakKeyDictionary()


class OperatorRows(CSRGraph):
    """The rows of an operator; it is normalised already."""

    def gcn_norm(self) -> CSRGraph:
        """Itself."""
        return self


def first_input(
    model: nn.Module, convs: Sequence[nn.Module], data: GraphData, first_hop: bool
) -> Tensor | CSRGraph:
    """X, or A_hat X where the model can start from it."""
    if first_hop:
        _check_starts(model, convs)
        return aggregated_features(data)
    assert data.x is not None
    return data.x


def _check_starts(model: nn.Module, convs: Sequence[nn.Module]) -> None:
    """Raise ValueError unless the model's first layer can start from A_hat X."""
    found = type(model).__name__
    first = convs[0] if convs else None
    takes = "aggregated_x" in inspect.signature(model.forward).parameters
    if not takes or not isinstance(first, GCNConv):
        raise ValueError(
            f"first_hop needs a GCN, which starts from A_hat X, got {found}; leave first_hop out"
        )
    if not first.normalize:
        raise ValueError(
            f"first_hop needs a GCN with normalize=True, which reads A_hat, got {found} with "
            "normalize=False; leave first_hop out"
        )


def aggregated_features(data: GraphData) -> Tensor | CSRGraph:
    """A_hat X, also where training would not gain from it; computed once for ``data``.

    Raises:
        ValueError: it is too large, or trained.
    """
    assert data.x is not None
    if data.aggregated_x is not None:
        return data.aggregated_x
    if data not in _FIRST_HOPS:
        _FIRST_HOPS[data] = first_hop_of(data.graph.gcn_norm(), data.x)
    return _FIRST_HOPS[data]


def probes(graph: CSRGraph) -> list[Tensor]:
    """Nodes with the most and the fewest neighbours, some from everywhere, the first few.

    Their neighbourhoods differ in size, unless all do not, so that a program which holds the size
    of its example (the last) fails on one of them.
    """
    degree, count = graph.rowptr.diff(), graph.num_dst
    ends = [torch.tensor([int(node)]) for node in (degree.argmax(), degree.argmin())]
    spread = torch.linspace(0, count - 1, min(7, count)).long().unique()
    return [*ends, spread, torch.arange(min(3, count))]


def depth(model: nn.Module, convs: Sequence[nn.Module]) -> int:
    """How often a forward pass aggregates: a shared layer of a GCNII does so at every depth."""
    return model.num_layers if isinstance(model, GCNII) else len(convs)


def operator_name(convs: Sequence[nn.Module], data: GraphData) -> str:
    """The name under which graphs keep the matrix that every layer multiplies with."""
    dtype = data.x.value.dtype if isinstance(data.x, CSRGraph) else data.x.dtype  # type: ignore[union-attr]
    found = {_reads(conv, dtype) for conv in convs}
    if len(found) > 1:
        raise ValueError(
            "model must have layers that read the same matrix, got "
            f"{', '.join(sorted(name or 'the graph itself' for name in found))}"
        )
    return found.pop() if found else ""


def operator(name: str, data: GraphData) -> CSRGraph:
    """That matrix."""
    if name == "gcn_norm":
        return data.graph.gcn_norm()
    if name == "self_loops":
        return with_self_loops(data.graph)
    if not name:
        return data.graph
    return _mean(data.graph, torch.float64 if name.endswith("float64") else torch.float32)


def _reads(conv: nn.Module, dtype: torch.dtype) -> str:
    if isinstance(conv, (GCNConv, GCN2Conv)):
        return "gcn_norm" if conv.normalize else ""
    if isinstance(conv, SAGEConv):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return f"mean-{wide}" if conv.aggr == "mean" else ""
    return "self_loops" if conv.add_self_loops else ""


def feature_rows(x: Tensor | CSRGraph, nodes: Tensor) -> tuple[Tensor, ...]:
    """Rows ``nodes`` of x, dense or as (rowptr, col, value)."""
    if isinstance(x, Tensor):
        return (x.index_select(0, nodes),)
    assert x.value is not None
    return torch.ops.abkd_fast.select_rows(x.rowptr, x.col, x.value, nodes)


class Search:
    """Neighbourhoods in a graph, each found in a tensor of its size that is lent to one at a time.

    There are as many of these tensors as there were searches at a time, whatever threads ask.
    """

    def __init__(self, graph: CSRGraph) -> None:
        self._graph = graph
        self._free: SimpleQueue[Tensor] = SimpleQueue()
        self._free.put(unvisited(graph))

    def __call__(self, nodes: Tensor, hops: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(n_id, sizes, rowptr, col, value) as :func:`abkd_fast.ops.neighborhood` has them.

        Raises:
            ValueError: nodes are no int64 vector.
            RuntimeError: nodes are repeated or unknown.
        """
        graph = self._graph
        check_tensor("nodes", nodes, dim=1, dtypes=[torch.int64], device=graph.device)
        try:
            work = self._free.get_nowait()
        except Empty:
            work = unvisited(graph)
        try:
            return torch.ops.abkd_fast.neighborhood(
                graph.rowptr, graph.col, graph.value, nodes, hops, work
            )
        finally:
            self._free.put(work)  # a search that fails leaves it as it was, too
