"""A_hat X of fixed features, where it makes the first layer of a GCN cheaper."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from abkd_fast import ops
from abkd_fast._autocast import without_autocast
from abkd_fast._csr import outside_inference
from abkd_fast.graph import CSRGraph

if TYPE_CHECKING:
    import scipy.sparse

# A dense product is as large as the features; beyond so many bytes, holding them twice costs more
# than the aggregation that it saves.
MAX_BYTES = 1 << 30


@outside_inference
@without_autocast
def aggregate_features(graph: CSRGraph, x: Tensor | CSRGraph) -> Tensor | CSRGraph | None:
    """A X in the form and dtype of x, or None where A (X W) is cheaper or X is not fixed.

    With h output features, A (X W) takes nnz(X) h + E h multiplications and (A X) W takes
    nnz(A X) h, forward and backward alike. A dense A X has as many entries as X and always pays,
    up to ``MAX_BYTES``. A sparse one has more: neighbours share few words, so bags of words do
    not pay (Cora's and PubMed's cost more than twice as much), but one-hot features do. The product
    is given up as soon as it is too large, and takes memory of the order of X and the graph.

    Args:
        graph: A [N, N], with weights that may require grad.
        x: [N, F] features, dense or sparse.
    """
    if _trained(graph, x):
        return None
    if isinstance(x, CSRGraph):
        return _sparse_product(graph, x, x.num_edges + graph.num_edges)
    return ops.spmm(graph, x) if x.nbytes <= MAX_BYTES else None


@outside_inference
@without_autocast
def first_hop_of(graph: CSRGraph, x: Tensor | CSRGraph) -> Tensor | CSRGraph:
    """A X in the form of x for a caller who asks for it: up to ``MAX_BYTES``, whatever it costs.

    Raises:
        ValueError: it is larger, or X or A is trained.
    """
    if _trained(graph, x):
        raise ValueError(
            "first_hop needs features and edge weights that are fixed, got some with "
            "requires_grad; detach them"
        )
    fits = MAX_BYTES // _entry_bytes(x)
    product: Tensor | CSRGraph | None = None
    if isinstance(x, CSRGraph):
        product = _sparse_product(graph, x, fits)
    elif x.numel() <= fits:
        product = ops.spmm(graph, x)
    if product is None:
        found = "more" if isinstance(x, CSRGraph) else str(x.numel())
        raise ValueError(
            f"first_hop needs A_hat X of at most {fits} entries ({MAX_BYTES} bytes), got {found} "
            f"for x of shape {list(x.shape)}; leave first_hop out"
        )
    return product


def _trained(graph: CSRGraph, x: Tensor | CSRGraph) -> bool:
    value = x.value if isinstance(x, CSRGraph) else x
    return any(t is not None and t.requires_grad for t in (value, graph.value))


def _entry_bytes(x: Tensor | CSRGraph) -> int:
    if isinstance(x, Tensor):
        return x.element_size()
    return x.col.element_size() + (0 if x.value is None else x.value.element_size())


def _sparse_product(graph: CSRGraph, x: CSRGraph, budget: int) -> CSRGraph | None:
    """A X with at most ``budget`` entries, or None."""
    import scipy.sparse

    left, right = graph.to_scipy(), x.to_scipy()
    blocks = []
    for first, stop in _row_blocks(left, right, budget):
        block = left[first:stop] @ right
        budget -= block.nnz
        if budget < 0:
            return None
        block.sort_indices()
        blocks.append(block)
    product = CSRGraph.from_scipy(scipy.sparse.vstack(blocks, format="csr"))
    dtype = None if x.value is None else x.value.dtype
    return product.to(x.device, dtype)


def _row_blocks(
    left: scipy.sparse.csr_array, right: scipy.sparse.csr_array, work: int
) -> Iterator[tuple[int, int]]:
    """Ranges of rows of ``left @ right`` of about ``work`` products each: they bound the memory."""
    import numpy as np

    products = np.diff(right.indptr)[left.indices].cumsum(dtype=np.int64)
    before = np.concatenate([[0], products])[left.indptr[:-1]]
    changes = np.flatnonzero(np.diff(before // max(work, 1))) + 1
    return pairwise([0, *changes.tolist(), left.shape[0]])
