"""Class scores of single nodes by an exported program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abkd_fast._checks import check_tensor
from abkd_fast._neighborhood import Search, feature_rows
from abkd_fast.data import GraphData
from abkd_fast.export.files import Exported


class ExportedServer:
    """Answers "which class scores has this node?" with a program of :func:`export_student`.

    A query collects the neighbourhood that the program reads (none with ``first_hop`` and one
    layer less otherwise) with the weights of the whole graph, as
    :class:`abkd_fast.latency.NodeServer` does, and runs the program on it: scores are those of a
    full pass.

    Args:
        exported: a program that takes the graph as input.
        data: graph and features.

    Raises:
        ValueError: the graph is baked into the program, or data are of another kind.
    """

    def __init__(self, exported: Exported, data: GraphData) -> None:
        signature = exported.signature
        if signature.baked:
            raise ValueError("exported must take the graph as input, got a program with it inside")
        self._exported, self.hops = exported, signature.hops
        signature.checked(signature.arguments(data))
        self._features, graph = signature.features(data), signature.graph(data)
        self._search = None if graph is None else Search(graph)
        self._weighted = graph is not None and graph.value is not None
        self.num_nodes = data.num_nodes

    @torch.no_grad()
    def __call__(self, nodes: Tensor) -> Tensor:
        """Class scores [B, C] of ``nodes`` [B] int64, distinct.

        Raises:
            ValueError: nodes are no int64 vector.
            RuntimeError: nodes are repeated or unknown.
        """
        check_tensor("nodes", nodes, dim=1, dtypes=[torch.int64], device=torch.device("cpu"))
        if not nodes.numel():
            return self(nodes.new_zeros(1))[:0]
        _check_nodes(nodes.tolist(), self.num_nodes)
        if self._search is None:
            return self._exported.trusted(*feature_rows(self._features, nodes))
        n_id, _, rowptr, col, value = self._search(nodes, self.hops)
        weights = (value,) if self._weighted else ()
        features = feature_rows(self._features, n_id)
        return self._exported.trusted(*features, rowptr, col, *weights)[: nodes.numel()]

    def classes(self, scores: Tensor) -> list[Any]:
        """As :meth:`Exported.classes`."""
        return self._exported.classes(scores)


def _check_nodes(nodes: list[int], count: int) -> None:
    """Raise RuntimeError unless ``nodes`` are distinct and below ``count``."""
    seen: set[int] = set()
    for node in nodes:
        if not 0 <= node < count:
            raise RuntimeError(f"nodes must lie in [0, {count}), got {node}")
        if node in seen:
            raise RuntimeError(f"nodes must be distinct, got {node} more than once")
        seen.add(node)
