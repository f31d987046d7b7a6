"""The rows of a graph that some nodes depend on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from abkd_fast._backend import register
from abkd_fast._csr import Structure, check_nodes
from abkd_fast.graph import CSRGraph
from abkd_fast.reference.neighborhood import op_neighborhood


@dataclass(frozen=True)
class Neighborhood:
    """What a model reads to score some nodes.

    Attributes:
        graph: [n, n] rows of the nodes within ``num_hops - 1`` hops; the others are empty. Row and
            column i stand for node ``n_id[i]``. Weights are those of the edges.
        n_id: [n] int64 nodes, those asked for first, then in order of appearance.
        sizes: n_0 <= ... <= n_num_hops = n; the first n_k nodes are within k hops.
    """

    graph: CSRGraph
    n_id: Tensor
    sizes: list[int]


def neighborhood(graph: CSRGraph, nodes: Tensor, num_hops: int) -> Neighborhood:
    """All nodes within ``num_hops`` incoming hops of ``nodes``, and the edges between the hops.

    A search in breadth: O(edges read), after N positions have been set up;
    :class:`abkd_fast.latency.NodeServer` keeps these between its queries.

    Args:
        graph: [N, N], row = destination.
        nodes: [B] int64, distinct.
        num_hops: 0 or more, as many as the model has layers.

    Raises:
        ValueError: repeated or unknown nodes, negative hops, a graph that is not square.
    """
    check_nodes(graph, nodes)
    if num_hops < 0:
        raise ValueError(f"num_hops must be 0 or more, got {num_hops}")
    n_id, sizes, rowptr, col, value = torch.ops.abkd_fast.neighborhood(
        graph.rowptr, graph.col, graph.value, nodes, num_hops, unvisited(graph)
    )
    weights = None if graph.value is None else value
    found = CSRGraph(Structure(rowptr, col, n_id.numel()), weights)
    return Neighborhood(found, n_id, sizes.tolist())


def unvisited(graph: CSRGraph) -> Tensor:
    """What the operator works in: [N] of -1, and all -1 again when it returns."""
    return torch.full_like(graph.rowptr[1:], -1)


def _sizes_known_at_run_time(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    nodes: Tensor,
    num_hops: int,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    found, edges = context.new_dynamic_size(), context.new_dynamic_size()
    weights = nodes.new_empty(0, dtype=torch.float32) if value is None else value.new_empty(edges)
    return (
        nodes.new_empty(found),
        nodes.new_empty(num_hops + 1),
        rowptr.new_empty(found + 1),
        col.new_empty(edges),
        weights,
    )


register("neighborhood", op_neighborhood, _sizes_known_at_run_time)
