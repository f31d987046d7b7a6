"""CSRGraphs of what PyG's layers take as ``edge_index``, kept from call to call.

A graph is found again by the identity of the tensors it was made of, their storage and their
version counters, so that a change in place is noticed; no call reads the edges. Changes that
torch does not count (through ``.data`` or numpy) are not seen.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_remaining_self_loops

from abkd_fast._checks import INDICES, check_tensor
from abkd_fast._csr import check_range, lexsort, outside_inference, pointers
from abkd_fast.graph import CSRGraph

SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
_Result = TypeVar("_Result")
_Method = TypeVar("_Method", bound=Callable[..., CSRGraph])
_Found = tuple[tuple["weakref.ref[Any]", ...], Hashable, Any]


class Kept:
    """The last ``size`` results, each as long as the objects it was made of live unchanged."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._found: dict[Hashable, _Found] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(
        self, sources: Sequence[Any], options: tuple[Hashable, ...], make: Callable[[], _Result]
    ) -> _Result:
        """The result of ``make`` for ``sources`` (tensors, graphs or None) and ``options``."""
        given = [source for source in sources if source is not None]
        state = tuple(_state(source) for source in given)
        if None in state:
            return _outside(make)
        key = (*map(id, given), options)
        refs, known, result = self._found.pop(key, ((), None, None))
        if known != state or any(ref() is not s for ref, s in zip(refs, given, strict=True)):
            result = _outside(make)
            refs = tuple(weakref.ref(source, lambda _: self._drop(key)) for source in given)
        self._found[key] = (refs, state, result)  # at the end: the first is the least recent
        while len(self._found) > self.size:
            self._drop(next(iter(self._found), None))
        return result

    def _drop(self, key: Hashable) -> None:
        self._found.pop(key, None)


KEPT = Kept(64)


@outside_inference
def _outside(make: Callable[[], _Result]) -> _Result:
    return make()


def _state(source: Any) -> Hashable:
    """What changes with the contents; None where changes cannot be seen."""
    if not isinstance(source, Tensor):
        return ()  # a CSRGraph, which is immutable
    if source.layout == torch.strided:
        if source.is_inference():
            return None
        return source._version, source.data_ptr(), source.shape, source.stride()
    return tuple(_state(part) for part in _parts(source))


def _parts(matrix: Tensor) -> tuple[Tensor, ...]:
    """The tensors of a torch sparse matrix."""
    if matrix.layout == torch.sparse_coo:
        return matrix._indices(), matrix._values()
    if matrix.layout == torch.sparse_csr:
        return matrix.crow_indices(), matrix.col_indices(), matrix.values()
    return matrix.ccol_indices(), matrix.row_indices(), matrix.values()


def is_edge_index(edges: Any) -> bool:
    """Whether ``edges`` is PyG's [2, E]."""
    if not isinstance(edges, Tensor) or edges.layout != torch.strided:
        return False
    return edges.dim() == 2 and edges.size(0) == 2 and edges.dtype in INDICES


def _outside_compiled_code(method: _Method) -> _Method:
    """Make the graph between compiled pieces, with the transpose that their backward walks."""

    @functools.wraps(method)
    def call(*args: Any) -> CSRGraph:
        graph = method(*args)
        if torch.is_grad_enabled():
            graph.transposed()
        return graph

    return torch.compiler.disable(call)


@_outside_compiled_code
def adjacency(
    edges: Any,
    num_nodes: tuple[int, int],
    weight: Tensor | None = None,
    flow: str = "source_to_target",
    dtype: torch.dtype = torch.float32,
) -> CSRGraph:
    """The graph as it is given.

    Args:
        edges: edge_index [2, E], a CSRGraph, or a matrix [num_dst, num_src]: torch's sparse COO,
            CSR or CSC, or torch_sparse's.
        num_nodes: (num_src, num_dst), read where edges is an edge_index.
        weight: [E] or [E, 1] weights of an edge_index, or None.
        flow: PyG's ``flow``, of an edge_index.
        dtype: of the weights of a matrix.
    """
    if isinstance(edges, CSRGraph):
        return edges
    if not is_edge_index(edges):
        sources = _sources(edges)
        if any(part is not None and part.requires_grad for part in sources):
            return _from_matrix(edges, dtype)
        return KEPT.get(sources, ("matrix", dtype), lambda: _from_matrix(edges, dtype))
    graph, order = sorted_edges(edges, num_nodes, flow)
    if weight is None:
        return graph
    if weight.requires_grad:
        return _weighted(graph, weight, order)
    make = functools.partial(_weighted, graph, weight, order)
    return KEPT.get((_plain(edges), weight), ("weighted", num_nodes, flow), make)


def sorted_edges(
    edges: Tensor, num_nodes: tuple[int, int], flow: str = "source_to_target"
) -> tuple[CSRGraph, Tensor]:
    """The graph of an edge_index without weights, and the place of its edges in it; kept."""
    edges = _plain(edges)
    make = functools.partial(_sort, edges, num_nodes, flow)
    return KEPT.get((edges,), ("edges", num_nodes, flow), make)


@_outside_compiled_code
def pattern(matrix: Any) -> CSRGraph:
    """The edges of a torch_sparse matrix without its weights."""
    rowptr, col, _ = matrix.csr()
    make = functools.partial(CSRGraph.from_csr, rowptr, col, None, matrix.size(1))
    return KEPT.get((rowptr, col), ("pattern",), make)


@_outside_compiled_code
def normalised(
    edges: Any,
    num_nodes: int,
    weight: Tensor | None,
    improved: bool,
    add_self_loops: bool,
    flow: str,
    dtype: torch.dtype,
) -> CSRGraph:
    """D^-1/2 (A + I) D^-1/2 by the rules of PyG's ``gcn_norm``, which computes the weights."""
    sizes, rules = (num_nodes, num_nodes), (improved, add_self_loops, flow, dtype)
    if isinstance(edges, CSRGraph):
        edges, weight = KEPT.get((edges,), ("edge_index",), edges.to_edge_index)
    if not is_edge_index(edges):

        def norm() -> CSRGraph:
            matrix = gcn_norm(_csr(edges), None, num_nodes, *rules)
            return _from_matrix(matrix[0] if isinstance(matrix, tuple) else matrix, dtype)

        sources = _sources(edges)
        if any(part is not None and part.requires_grad for part in sources):
            return norm()
        return KEPT.get(sources, ("normalised matrix", *rules), norm)
    edges = _plain(edges)
    if weight is None or not weight.requires_grad:

        def weigh() -> CSRGraph:
            check_range("edge_index", edges, num_nodes, "num_nodes")
            looped, value = gcn_norm(edges, weight, num_nodes, *rules)
            graph, order = _sort(looped, sizes, flow)
            return _weighted(graph, value, order)

        return KEPT.get((edges, weight), ("normalised", num_nodes, *rules), weigh)
    looped = edges
    if add_self_loops:
        # The edges alone, once: gcn_norm gives the same ones with the weights of this call.
        looped = KEPT.get(
            (edges,),
            ("looped", num_nodes),
            lambda: add_remaining_self_loops(edges, None, 1.0, num_nodes)[0],
        )
    _, value = gcn_norm(edges, weight, num_nodes, *rules)
    return adjacency(looped, sizes, value, flow)


def _weighted(graph: CSRGraph, weight: Tensor, order: Tensor) -> CSRGraph:
    return graph.with_value(weight.reshape(-1)[order])


def _plain(edge_index: Tensor) -> Tensor:
    return edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index


def _sources(matrix: Any) -> tuple[Any, ...]:
    """What a matrix is known by: itself, or the tensors that a SparseTensor keeps."""
    return (matrix,) if isinstance(matrix, Tensor) else matrix.csr()


def _csr(matrix: Any) -> Any:
    """The same matrix, if it was CSC, in CSR."""
    is_csc = isinstance(matrix, Tensor) and matrix.layout == torch.sparse_csc
    return matrix.to_sparse_csr() if is_csc else matrix


def _from_matrix(matrix: Any, dtype: torch.dtype) -> CSRGraph:
    if isinstance(matrix, Tensor):
        graph = CSRGraph.from_torch(_csr(matrix).to(dtype))
    else:
        rowptr, col, value = matrix.csr()
        value = None if value is None else value.to(dtype)
        graph = CSRGraph.from_csr(rowptr, col, value, matrix.size(1))
    if graph.value is None or graph.value.requires_grad:
        return graph
    # A copy: sharing the matrix's own memory, what is kept would keep the matrix.
    return graph.with_value(graph.value.clone())


def _sort(edge_index: Tensor, num_nodes: tuple[int, int], flow: str) -> tuple[CSRGraph, Tensor]:
    """The graph without weights, and the place of each of its edges in ``edge_index``."""
    check_tensor("edge_index", edge_index, dim=2, dtypes=INDICES)
    if flow == "target_to_source":
        edge_index = edge_index.flip(0)
    source, target = edge_index[0].long(), edge_index[1].long()
    check_range("edge_index", source, num_nodes[0], "num_nodes")
    check_range("edge_index", target, num_nodes[1], "num_nodes")
    order = lexsort(target, source)
    rowptr = pointers(target, num_nodes[1], torch.int64)
    return CSRGraph.from_csr(rowptr, source[order], None, num_nodes[0]), order
