"""Layer-wise neighbour sampling of a mini-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd_fast._backend import register
from abkd_fast._csr import Structure, check_nodes
from abkd_fast.graph import CSRGraph
from abkd_fast.ops.dropout import check_dropout, seed_tensor
from abkd_fast.reference.sample_neighbors import op_sample_neighbors


@dataclass(frozen=True)
class NeighborSample:
    """A sampled neighbourhood, in the terms of PyG's NeighborLoader.

    Attributes:
        graph: [n, n] sampled edges; row and column i stand for node ``n_id[i]``. Rows of nodes
            that only the last hop reached are empty. Weights are those of the edges.
        n_id: [n] int64 nodes, the ``batch_size`` asked for first, then in order of appearance.
        e_id: [e] int64 position of every sampled edge in the whole graph.
        batch_size: number of nodes asked for.
    """

    graph: CSRGraph
    n_id: Tensor
    e_id: Tensor
    batch_size: int


def sample_neighbors(
    graph: CSRGraph,
    nodes: Tensor,
    num_neighbors: Sequence[int],
    *,
    replace: bool = False,
    seed: int | Tensor = 0,
    step: int = 0,
) -> NeighborSample:
    """Sample up to ``num_neighbors[k]`` incoming edges of every node that hop k - 1 found.

    A node is sampled once, in the hop that finds it first. Every subset of a row's edges of the
    size wanted is equally likely (up to 2^-32 per draw), and rows are independent of each other.
    The draw depends on the node, the hop, the seed and the step alone: not on the other nodes of
    the batch, the number of threads or the back end. (Hamilton, Ying, Leskovec: Inductive
    representation learning on large graphs, NeurIPS 2017, section 3.1.)

    Args:
        graph: [N, N], row = destination.
        nodes: [B] int64, distinct.
        num_neighbors: limit of every hop, as many as the model has layers; -1 takes all edges.
        replace: draw with replacement: exactly the limit, from rows that have an edge.
        seed: in [0, 2^63).
        step: number of the batch, in [0, 2^32): another one gives another draw.

    Raises:
        ValueError: repeated or unknown nodes, a limit below -1, a graph that is not square.
    """
    check_nodes(graph, nodes)
    for hop, limit in enumerate(num_neighbors):
        if limit < -1:
            raise ValueError(f"num_neighbors[{hop}] must be -1 (all) or more, got {limit}")
    check_dropout(0.0, 0, step)
    n_id, rowptr, col, e_id = torch.ops.abkd_fast.sample_neighbors(
        graph.rowptr, graph.col, nodes, list(num_neighbors), replace, seed_tensor(seed), step
    )
    value = None if graph.value is None else graph.value[e_id]
    sampled = CSRGraph(Structure(rowptr, col, n_id.numel()), value)
    return NeighborSample(sampled, n_id, e_id, nodes.numel())


def _sizes_known_at_run_time(
    rowptr: Tensor,
    col: Tensor,
    nodes: Tensor,
    num_neighbors: Sequence[int],
    replace: bool,
    seed: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    found, edges = context.new_dynamic_size(), context.new_dynamic_size()
    return (
        nodes.new_empty(found),
        rowptr.new_empty(found + 1),
        col.new_empty(edges),
        nodes.new_empty(edges),
    )


register("sample_neighbors", op_sample_neighbors, _sizes_known_at_run_time)
