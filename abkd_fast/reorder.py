"""Orders and partitions of a graph's nodes, for locality and for cluster batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abkd_fast._checks import check_choice
from abkd_fast.graph import CSRGraph

if TYPE_CHECKING:
    import scipy.sparse

ORDERS = ("degree", "rcm", "metis")
_PART = 4096  # nodes in a part of the METIS order: their rows fit a core's cache at usual widths


def reorder(graph: CSRGraph, method: str) -> Tensor:
    """An order of the nodes in which neighbours' features lie closer together in memory.

    Use it as ``data.subgraph(reorder(data.graph, "rcm"))``: results are those of the nodes in the
    new order. Whether it pays depends on the graph: docs/benchmarks.md has measurements.

    Args:
        graph: [N, N]; direction and weights of edges do not matter.
        method: ``"degree"``: nodes with many out-edges, which are read most, first; ``"rcm"``:
            reverse Cuthill-McKee, a small bandwidth (Cuthill, McKee 1969; scipy); ``"metis"``:
            parts of about 4096 nodes with few edges between them, one after the other (Karypis,
            Kumar 1998; pymetis, the extra ``[partition]``).

    Returns:
        [N] int64: node ``order[i]`` becomes node i.
    """
    check_choice("method", method, ORDERS)
    _check_square(graph)
    if method == "degree":
        degree = torch.bincount(graph.col.long(), minlength=graph.num_src)
        return degree.argsort(descending=True, stable=True)
    if method == "metis":
        return partition(graph, max(1, graph.num_dst // _PART)).argsort(stable=True)
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    order = reverse_cuthill_mckee(_undirected(graph), symmetric_mode=True)
    return torch.from_numpy(order.astype("int64"))


def partition(graph: CSRGraph, num_parts: int) -> Tensor:
    """Split the nodes into parts of about equal size with few edges between them, by METIS.

    Args:
        graph: [N, N]; direction and weights of edges, and self-loops, do not matter.
        num_parts: 1 or more, at most N.

    Returns:
        [N] int64 part of every node. The same graph gives the same parts.

    Raises:
        ValueError: num_parts is out of range.
        ImportError: pymetis is missing, and how to get it.
    """
    _check_square(graph)
    if not 1 <= num_parts <= max(1, graph.num_dst):
        raise ValueError(f"num_parts must be in [1, N={graph.num_dst}], got {num_parts}")
    if num_parts == 1:
        return torch.zeros(graph.num_dst, dtype=torch.int64, device=graph.device)
    try:
        import pymetis
    except ImportError:
        raise ImportError(
            "partition needs pymetis, which is not installed; pip install pymetis"
        ) from None
    matrix = _undirected(graph)
    starts, neighbors = matrix.indptr.astype("int64"), matrix.indices.astype("int64")
    _, parts = pymetis.part_graph(num_parts, pymetis.CSRAdjacency(starts, neighbors))
    return torch.tensor(parts, dtype=torch.int64, device=graph.device)


def _undirected(graph: CSRGraph) -> scipy.sparse.csr_array:
    """The pattern of A + A^T without its diagonal."""
    matrix = graph.with_value(None).to_scipy()
    matrix = (matrix + matrix.T).tocsr()
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    return matrix


def _check_square(graph: CSRGraph) -> None:
    if graph.num_dst != graph.num_src:
        raise ValueError(f"graph must be square, got {graph.shape}")
