"""Large edge lists into CSR by counting sort, without temporaries of eight bytes an edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch

from abkd_fast.graph import CSRGraph

Array = np.ndarray[Any, Any]


def adjacency(source: Array, target: Array, num_nodes: int) -> scipy.sparse.csr_array:
    """Boolean CSR [N, N], row = target, columns sorted; repeated edges merged, self-loops kept.

    Beside the edges given, memory is 18 bytes an edge and 8 bytes a node.

    Raises:
        ValueError: an end that is not a node.
    """
    for name, end in (("source", source), ("target", target)):
        if len(end) and (int(end.min()) < 0 or int(end.max()) >= num_nodes):
            raise ValueError(
                f"{name} must lie in [0, num_nodes={num_nodes}), got values from {end.min()} to "
                f"{end.max()}"
            )
    place = target.astype(np.int32, copy=False), source.astype(np.int32, copy=False)
    ones = np.ones(len(source), bool)
    matrix = scipy.sparse.coo_array((ones, place), shape=(num_nodes, num_nodes)).tocsr()
    matrix.sum_duplicates()
    return matrix


def symmetric(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """A or A^T, columns sorted."""
    both = scipy.sparse.csr_array(matrix + matrix.T)
    both.sort_indices()
    return both


def graph_of(matrix: scipy.sparse.csr_array) -> CSRGraph:
    """The unweighted graph of a boolean CSR matrix [N, N], row = target."""
    return CSRGraph.from_csr(torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices))


def both_directions(edges: Array, num_nodes: int) -> Array:
    """[2, E'] int32 both directions of every edge once, sorted by target, then source."""
    matrix = symmetric(adjacency(edges[0], edges[1], num_nodes))
    target = np.repeat(np.arange(num_nodes, dtype=np.int32), np.diff(matrix.indptr))
    return np.stack([matrix.indices.astype(np.int32, copy=False), target])
