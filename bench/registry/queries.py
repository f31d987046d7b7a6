"""What queries of single nodes read: neighbourhoods, and rows of a sparse matrix."""

from __future__ import annotations

from collections.abc import Callable

import costs
import torch
from gpu_compare import Case, Found, installed, ours
from registry.catalog import op
from torch import Tensor

from abkd_fast import CSRGraph

HOPS, ROWS = 3, 4096


@op("neighborhood", widths=(1, 64), quick=(1,))
def neighborhood(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """All nodes within three hops of ``width`` nodes, and the edges between the hops."""
    from abkd_fast import ops

    nodes = torch.randperm(graph.num_dst)[:width]

    def mine() -> Found:
        found = ops.neighborhood(graph, nodes, HOPS)
        return found.n_id, found.graph.rowptr, found.graph.col, found.graph._values_or_ones()

    found = ours("cpu", lambda: mine)
    found |= installed("torch_sparse", "torch_sparse", lambda: sampled(graph, nodes))
    node, _, source, _ = mine()
    return Case("neighborhood", f"{label}, {HOPS} hops of {width} nodes", dtype,
                costs.neighborhood(len(node), len(source)), found,
                lambda values: wrong_share(graph, nodes, values),
                lambda values, _: wrong_share(graph, nodes, values),
                facts={"nodes": len(node), "edges": len(source)})  # fmt: skip


def sampled(graph: CSRGraph, nodes: Tensor) -> Callable[[], Found]:
    """The op behind NeighborLoader with all neighbours, and the weights of its edges."""
    import torch_sparse  # noqa: F401 (registers the op)

    rowptr, col = graph.rowptr.long(), graph.col.long()

    def step() -> Found:
        node, source, target, edge = torch.ops.torch_sparse.neighbor_sample(
            rowptr, col, nodes, [-1] * HOPS, False, True
        )
        counts = torch.bincount(target, minlength=len(node))
        rowptr_local = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return node, rowptr_local, source, graph._values_or_ones()[edge]

    return step


def wrong_share(graph: CSRGraph, nodes: Tensor, found: Found) -> float:
    """Share of rows that are not the graph's, among those within all hops but the last."""
    node, rowptr, source, value = found
    if not torch.equal(node[: len(nodes)], nodes) or node.unique().numel() != node.numel():
        return 1.0
    reached = torch.zeros(graph.num_dst, dtype=torch.bool)
    reached[nodes] = True
    for _ in range(HOPS - 1):
        reached[graph.col[reached[graph.row()]].long()] = True
    degree = torch.where(reached, graph.rowptr.diff(), 0)
    if int(degree.sum()) != len(source) or not torch.equal(degree[node], rowptr.diff()):
        return 1.0
    row = torch.arange(len(node)).repeat_interleave(rowptr.diff())
    start = (graph.rowptr[node] - rowptr[:-1])[row]
    edge = start + torch.arange(len(row))
    wrong = node[source.long()] != graph.col[edge]
    return float((wrong | (value != graph._values_or_ones()[edge])).double().mean())


@op("select_rows", widths=(ROWS,), quick=(ROWS,))
def select_rows(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """``width`` rows of the operator, in random order."""
    from abkd_fast import ops

    rows, matrix = torch.randperm(graph.num_dst)[:width], graph.to_scipy()

    def mine() -> Found:
        chosen = ops.select_rows(graph, rows)
        return chosen.rowptr, chosen.col, chosen._values_or_ones()

    def by_scipy() -> Found:
        chosen = matrix[rows.numpy()]
        return tuple(map(torch.from_numpy, (chosen.indptr, chosen.indices, chosen.data)))

    found = ours("cpu", lambda: mine) | {"scipy": lambda: by_scipy}
    found |= installed("torch_sparse", "torch_sparse", lambda: adjacency_rows(graph, rows))
    expected = by_scipy()
    return Case("select_rows", f"{label}, {len(rows)} rows", dtype,
                costs.select_rows(len(rows), len(expected[1])), found,
                lambda values: different(values, expected), different)  # fmt: skip


def adjacency_rows(graph: CSRGraph, rows: Tensor) -> Callable[[], Found]:
    """SparseTensor's own index_select."""
    from torch_sparse import SparseTensor

    adjacency = SparseTensor(
        rowptr=graph.rowptr.long(), col=graph.col.long(), value=graph._values_or_ones(),
        sparse_sizes=graph.shape, is_sorted=True, trust_data=True,
    )  # fmt: skip
    return lambda: adjacency.index_select(0, rows).csr()


def different(found: Found, expected: Found) -> float:
    """1 unless all tensors have the same entries."""
    same = all(bool((a == b).all()) for a, b in zip(found, expected, strict=True))
    return 0.0 if same else 1.0
