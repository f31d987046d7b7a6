"""Class scores of single nodes by an exported program."""

from __future__ import annotations

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
        ValueError: the graph is baked into the program, or the features do not fit.
    """

    def __init__(self, exported: Exported, data: GraphData) -> None:
        signature = exported.signature
        if signature.baked:
            raise ValueError("exported must take the graph as input, got a program with it inside")
        self._exported, self.hops = exported, signature.hops
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
        if self._search is None:
            check_tensor("nodes", nodes, dim=1, dtypes=[torch.int64], device=torch.device("cpu"))
            return self._exported(*feature_rows(self._features, nodes))
        n_id, _, rowptr, col, value = self._search(nodes, self.hops)
        weights = (value,) if self._weighted else ()
        features = feature_rows(self._features, n_id)
        return self._exported(*features, rowptr, col, *weights)[: nodes.numel()]
