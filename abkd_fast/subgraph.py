"""Parts of a graph: chosen rows, and the edges among chosen nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._checks import check_tensor
from abkd_fast._csr import Structure, check_range
from abkd_fast.graph import CSRGraph


def select_rows(graph: CSRGraph, nodes: Tensor) -> CSRGraph:
    """Rows ``nodes`` [n] int64 of a graph, in that order, with all their edges: [n, num_src]."""
    check_tensor("nodes", nodes, dim=1, dtypes=[torch.int64], device=graph.device)
    check_range("nodes", nodes, graph.num_dst, "num_dst")
    rowptr, edges = _rows(graph, nodes)
    value = None if graph.value is None else graph.value[edges]
    return CSRGraph(Structure(rowptr, graph.col[edges], graph.num_src), value)


def induced_subgraph(graph: CSRGraph, nodes: Tensor) -> CSRGraph:
    """The edges among ``nodes``; row and column i of the result stand for ``nodes[i]``.

    With all nodes in another order this is the graph renumbered. Edges keep their order within a
    row, and their weights.

    Args:
        graph: [N, N].
        nodes: [n] int64, distinct.

    Returns:
        [n, n].

    Raises:
        ValueError: the graph is not square, nodes are repeated or unknown.
    """
    if graph.num_dst != graph.num_src:
        raise ValueError(f"graph must be square, got {graph.shape}")
    check_tensor("nodes", nodes, dim=1, dtypes=[torch.int64], device=graph.device)
    check_range("nodes", nodes, graph.num_dst, "num_nodes")
    count = nodes.numel()
    position = graph.col.new_full((graph.num_src,), -1)
    numbers = torch.arange(count, dtype=graph.col.dtype, device=graph.device)
    position[nodes] = numbers
    if not torch.equal(position[nodes], numbers):
        raise ValueError(f"nodes must be distinct, got repeated ones among {count}")
    rowptr, edges = _rows(graph, nodes)
    col = position[graph.col[edges].long()]
    inside = col >= 0
    before = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])
    rowptr = before[rowptr.long()].to(graph.rowptr.dtype)
    value = None if graph.value is None else graph.value[edges[inside]]
    return CSRGraph(Structure(rowptr, col[inside], count), value)


def _rows(graph: CSRGraph, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """(rowptr of the chosen rows, positions of their edges in the graph)."""
    start = graph.rowptr[nodes].long()
    degree = graph.rowptr[nodes + 1].long() - start  # not rowptr.diff(): that reads every row
    rowptr = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    shift = start - rowptr[:-1]
    edges = torch.arange(int(rowptr[-1]), device=graph.device) + shift.repeat_interleave(degree)
    return rowptr.to(graph.rowptr.dtype), edges
