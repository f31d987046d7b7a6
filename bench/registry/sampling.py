"""Two hops of neighbour sampling: draws differ, so what every draw must fulfil is compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import costs
import torch
from gpu_compare import Case, Found, installed, ours
from registry.catalog import op
from torch import Tensor

from abkd_fast import CSRGraph

BATCH = 1024


@op("sample_neighbors", widths=(10, 25), quick=(10,))
def sample(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """Up to ``width`` neighbours a node and hop; PyG's sampler and the op that it calls."""
    from abkd_fast.ops import sample_neighbors

    graph = CSRGraph.from_csr(graph.rowptr, graph.col, None, graph.num_src)  # peers have no weights
    nodes = torch.randperm(graph.num_dst)[:BATCH]
    limits = [width, width]

    def mine() -> Found:
        drawn = sample_neighbors(graph, nodes, limits)
        return drawn.n_id, drawn.graph.rowptr, drawn.graph.col

    def right(found: Found) -> float:
        node, rowptr, source = found
        target = torch.arange(len(rowptr) - 1).repeat_interleave(rowptr.diff())
        return wrong_share(graph, nodes, width, (node, target, source.long()))

    found = ours("cpu", lambda: mine)
    found |= installed("torch_sparse", "PyG", lambda: pyg(graph, nodes, limits))
    found |= installed("torch_sparse", "torch_sparse", lambda: raw(graph, nodes, limits))
    node, _, source = mine()
    return Case("sample_neighbors", f"{label}, {len(nodes)} nodes, {width}-{width}", dtype,
                costs.sample_neighbors(len(node), len(source)), found, right,
                lambda values, _: wrong_share(graph, nodes, width, values),
                facts={"edges": len(source)})  # fmt: skip


def pyg(graph: CSRGraph, nodes: Tensor, limits: list[int]) -> Callable[[], Found]:
    """Through the sampler that NeighborLoader uses."""
    from bench_sample_neighbors import pyg_sampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sampler's own package
        sampler = pyg_sampler(graph, limits)

    def step() -> Found:
        out: Any = sampler(nodes)
        return out.node, out.col, out.row

    return step


def raw(graph: CSRGraph, nodes: Tensor, limits: list[int]) -> Callable[[], Found]:
    """torch_sparse's op alone, on the pointers of the destinations."""
    import torch_sparse  # noqa: F401 (registers the op)

    rowptr, col = graph.rowptr.long(), graph.col.long()

    def step() -> Found:
        node, source, target, _ = torch.ops.torch_sparse.neighbor_sample(
            rowptr, col, nodes, limits, False, True
        )
        return node, target, source

    return step


def wrong_share(graph: CSRGraph, nodes: Tensor, limit: int, found: Found) -> float:
    """Share of a sample's edges and rows that are not what was asked for.

    Edges must be the graph's; the nodes asked for come first, and they and the nodes of the first
    hop have as many edges as the limit or their degree says, all others none.
    """
    node, target, source = found
    if not torch.equal(node[: len(nodes)], nodes) or node.unique().numel() != node.numel():
        return 1.0
    known = graph.row() * graph.num_src + graph.col.long()
    wrong = ~torch.isin(node[target] * graph.num_src + node[source], known)
    expanded = torch.zeros(len(node), dtype=torch.bool)
    expanded[: len(nodes)] = True
    expanded[source[target < len(nodes)]] = True
    wanted = torch.where(expanded, graph.rowptr.diff()[node].clamp(max=limit), 0)
    counts = torch.bincount(target, minlength=len(node))
    return float(wrong.double().mean() + (counts != wanted).double().mean())
