"""Products with a graph on a GPU: spmm, conv, and reductions by maximum or by segment.

Every side works on the same GCN-normalised graph. Gathered rows are counted once an edge; those of
features that fit in the second-level cache come from there, so the rate may exceed a copy's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import costs
import torch
from errors import largest, relative
from gpu_compare import (
    Case,
    Found,
    Maker,
    Row,
    but_for_ties,
    by_rows,
    compiled,
    gradient,
    installed,
    measure,
    ours,
)
from gpu_graphs import load
from torch import Tensor

from abkd_fast import CSRGraph
from abkd_fast.ops import conv, segment_csr, spmm

WIDTHS = (64, 128, 256)
GRAPHS = ("pubmed", "ogbn-arxiv", "ogbn-products")
ALPHA, BETA = 0.1, 0.12
SAMPLE = 200  # rows that are compared with float64 on a GPU: large graphs fill it
COLUMNS = 8  # whose messages of all edges are held in float64 at a time
Side = Callable[[Tensor], Tensor]
Rows = Tensor | slice


def torch_csr(graph: CSRGraph) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
        return graph.to_torch()


def sparse_tensor(graph: CSRGraph) -> Any:
    """torch_sparse's, its caches filled."""
    from torch_sparse import SparseTensor

    rowptr, col, size = graph.rowptr.long(), graph.col.long(), (graph.num_dst, graph.num_src)
    matrix = SparseTensor(rowptr=rowptr, col=col, value=graph.value, sparse_sizes=size)
    return matrix.fill_cache_()


def torch_sparse(graph: CSRGraph, reduce: str) -> Side:
    from torch_sparse import matmul

    matrix = sparse_tensor(graph)
    return lambda x: matmul(matrix, x, reduce)


def pyg_spmm(matrix: Tensor, reduce: str) -> Side:
    from torch_geometric.utils import spmm as peer

    return lambda x: peer(matrix, x, reduce)


def gather_scatter(graph: CSRGraph, reduce: str = "sum") -> Side:
    """Messages of every edge, then a scatter."""
    row, col, value = graph.row(), graph.col.long(), graph.value
    assert value is not None

    def product(x: Tensor) -> Tensor:
        messages = x[col] * value.unsqueeze(1).to(x.dtype)
        out = x.new_zeros(graph.num_dst, x.size(1))
        if reduce == "sum":
            return out.index_add_(0, row, messages)
        index = row.unsqueeze(1).expand_as(messages)
        return out.scatter_reduce_(0, index, messages, f"a{reduce}", include_self=False)

    return product


def compared_rows(graph: CSRGraph) -> Rows:
    """Rows that are compared with float64: all on the CPU, else some, the longest among them."""
    if graph.device.type == "cpu":
        return slice(None)
    rows = torch.randint(graph.num_dst, (SAMPLE,), device=graph.device)
    rows[0] = graph.rowptr.diff().argmax()
    return rows


def exact_rows(
    graph: CSRGraph, rows: Rows, of: Callable[[Rows], Tensor], transposed: bool = False
) -> Tensor:
    """Rows of the product with ``of(nodes)``, in float64; scipy's where they are all."""
    if isinstance(rows, Tensor):
        return sampled(graph.t() if transposed else graph, rows, of)
    matrix = graph.to_scipy().astype("float64")
    matrix = matrix.T if transposed else matrix
    return torch.from_numpy(matrix @ of(rows).double().numpy())


def exact_extremum(graph: CSRGraph, x: Tensor, dout: Tensor) -> list[Tensor]:
    """[out, dx] of the largest messages in float64, a few columns at a time."""
    function = gather_scatter(graph, "max")
    parts = zip(x.split(COLUMNS, 1), dout.split(COLUMNS, 1), strict=True)
    found = [gradient(function, part.double(), d.double())() for part, d in parts]
    return [torch.cat(columns, 1) for columns in zip(*found, strict=True)]


def sampled(
    graph: CSRGraph, rows: Tensor, of: Callable[[Tensor], Tensor], reduce: str = "sum"
) -> Tensor:
    """Some rows of the product with ``of(nodes)``, in float64."""
    exact = []
    for row in rows.tolist():
        begin, end = graph.rowptr[row : row + 2].tolist()
        weights = graph.value[begin:end].double()  # type: ignore[index]
        messages = weights.unsqueeze(1) * of(graph.col[begin:end].long()).double()
        largest = reduce == "max" and end > begin
        exact.append(messages.amax(0) if largest else messages.sum(0))
    return torch.stack(exact)


def spmm_case(graph: CSRGraph, label: str, width: int, dtype: torch.dtype, device: str) -> Case:
    """A x forward; its backward to x is the same product."""
    x = torch.randn(graph.num_src, width, device=device).to(dtype)
    sides: dict[str, Maker] = ours(device, lambda: lambda: [spmm(graph, x)])

    def peer(make: Callable[[], Side]) -> Maker:
        def maker() -> Callable[[], Found]:
            side = make()
            return lambda: [side(x)]

        return maker

    if dtype == torch.float32:
        sides["torch CSR"] = peer(lambda: torch_csr(graph).__matmul__)
        sides |= installed(
            "torch_geometric", "PyG", peer(lambda: pyg_spmm(torch_csr(graph), "sum"))
        )
    sides |= installed("torch_sparse", "torch_sparse", peer(lambda: torch_sparse(graph, "sum")))
    sides["gather + scatter"] = peer(lambda: gather_scatter(graph))
    sides["torch.compile"] = peer(lambda: compiled(gather_scatter(graph), device))
    messages = 2 * x.element_size() * graph.num_edges * width
    rows = compared_rows(graph)

    @cache
    def expected() -> Tensor:
        return exact_rows(graph, rows, lambda nodes: x[nodes])

    return Case(
        "spmm", f"{label}, F={width}", dtype,
        costs.spmm(graph.num_dst, graph.num_edges, width, x.element_size()), sides,
        lambda found: by_rows([found[0][rows]], [expected()]),
        needs=dict.fromkeys(("gather + scatter", "torch.compile"), messages),
        facts=sizes(graph, width),
    )  # fmt: skip


def conv_case(graph: CSRGraph, label: str, width: int, device: str) -> Case:
    """A GCNII layer with ReLU, forward and backward to x."""
    x, start, dout = (torch.randn(graph.num_dst, width, device=device) for _ in range(3))
    weight = torch.randn(width, width, device=device) / width**0.5

    def separate(aggregate: Side) -> Side:
        def layer(x: Tensor) -> Tensor:
            mixed = torch.lerp(aggregate(x), start, ALPHA)
            return torch.addmm(mixed, mixed, weight, beta=1 - BETA, alpha=BETA).relu()

        return layer

    def fused(x: Tensor) -> Tensor:
        return conv(graph, x, weight, x_0=start, alpha=ALPHA, beta=BETA, act="relu")[0]

    def pyg(kind: str) -> Side:
        from torch_geometric.nn import GCN2Conv

        module = GCN2Conv(width, ALPHA, math.expm1(BETA), 1, normalize=False).to(device)
        module.weight1.data.copy_(weight)
        matrix = torch_csr(graph) if kind == "csr" else sparse_tensor(graph)
        return lambda x: module(x, start, matrix).relu()

    def step(make: Callable[[], Side]) -> Maker:
        return lambda: gradient(make(), x, dout)

    rows, w = compared_rows(graph), weight.double()

    def mix(state: Tensor, matrix: Tensor) -> Tensor:
        return (1 - BETA) * state + BETA * state @ matrix

    def exact(found: Found) -> float:
        """Rows of both in float64, whose ReLU opens where ours does."""

        def scores(nodes: Rows) -> Tensor:
            return mix((dout[nodes] * (found[0][nodes] > 0)).double(), w.t())

        product = exact_rows(graph, rows, lambda nodes: x[nodes])
        mixed = torch.lerp(product, start[rows].double(), ALPHA)
        dx = exact_rows(graph, rows, scores, transposed=True)
        expected = [mix(mixed, w).relu(), (1 - ALPHA) * dx]
        return by_rows([part[rows] for part in found], expected)

    sides: dict[str, Maker] = ours(device, step(lambda: fused))
    sides["torch CSR"] = step(lambda: separate(torch_csr(graph).__matmul__))
    sides |= installed("torch_geometric", "PyG", step(lambda: pyg("csr")))
    sides |= installed("torch_sparse", "PyG torch_sparse", step(lambda: pyg("torch_sparse")))
    sides["torch.compile"] = step(lambda: compiled(separate(gather_scatter(graph)), device))
    dense = 4 * graph.num_dst * width
    messages = 4 * 4 * graph.num_edges * width
    needs = dict.fromkeys(("torch CSR", "PyG", "PyG torch_sparse"), 8 * dense)
    needs["torch.compile"] = messages
    cost = costs.conv(graph.num_dst, graph.num_edges, width)
    return Case("conv", f"{label}, F={width}, forward+backward", torch.float32, cost, sides,
                exact, needs=needs, facts=sizes(graph, width))  # fmt: skip


def extremum_case(graph: CSRGraph, label: str, width: int, device: str) -> Case:
    """Largest message, forward and backward to x: ties are the first's here, shared elsewhere."""
    x, dout = (torch.randn(graph.num_src, width, device=device) for _ in range(2))

    def step(make: Callable[[], Side]) -> Maker:
        return lambda: gradient(make(), x, dout)

    sides: dict[str, Maker] = ours(device, step(lambda: lambda x: spmm(graph, x, "max")))
    sides |= installed("torch_geometric", "PyG", step(lambda: pyg_spmm(torch_csr(graph), "max")))
    sides |= installed("torch_sparse", "torch_sparse", step(lambda: torch_sparse(graph, "max")))
    sides["gather + scatter"] = step(lambda: gather_scatter(graph, "max"))
    sides["torch.compile"] = step(lambda: compiled(gather_scatter(graph, "max"), device))
    messages = 5 * 4 * graph.num_edges * width
    index = graph.col.element_size()
    cost = costs.spmm_extremum(graph.num_dst, graph.num_edges, width, 4, index, backward=True)
    rows = compared_rows(graph)

    @cache
    def expected() -> list[Tensor]:
        if isinstance(rows, Tensor):
            return [sampled(graph, rows, lambda nodes: x[nodes], "max")]
        return exact_extremum(graph, x, dout)

    def exact(found: Found) -> float:
        """In float64; of a sample the gradient by <x, dx> = <out, dout>, one edge wins a row."""
        if isinstance(rows, slice):
            return largest([by_rows(found[:1], expected()[:1]), but_for_ties(found, expected())])
        out, dx = found
        inner = (x.double() * dx).sum() - (out.double() * dout).sum()
        scale = out.double().norm() * dout.double().norm()
        return largest([by_rows([out[rows]], expected()), float(inner.abs() / scale)])

    return Case("spmm max", f"{label}, F={width}, forward+backward", torch.float32, cost, sides,
                exact, but_for_ties, dict.fromkeys(("gather + scatter", "torch.compile"), messages),
                sizes(graph, width))  # fmt: skip


def segment_case(
    graph: CSRGraph, label: str, width: int, reduce: str, dtype: torch.dtype, device: str
) -> Case:
    """Random rows, one an edge, reduced by destination: forward and backward."""
    indptr = graph.rowptr.long()
    degrees, row = indptr.diff(), graph.row()
    src = torch.randn(graph.num_edges, width, device=device).to(dtype)
    dout = torch.randn(graph.num_dst, width, device=device).to(dtype)

    def scatter(src: Tensor) -> Tensor:
        out = src.new_zeros(graph.num_dst, width)
        if reduce == "sum":
            return out.index_add_(0, row, src)
        index = row.unsqueeze(1).expand_as(src)
        return out.scatter_reduce_(0, index, src, f"a{reduce}", include_self=False)

    def torch_segment(src: Tensor) -> Tensor:
        return torch.segment_reduce(src, reduce, lengths=degrees, unsafe=True)

    def scatter_package() -> Side:
        import torch_scatter

        return lambda src: torch_scatter.segment_csr(src, indptr, reduce=reduce)

    def step(make: Callable[[], Side]) -> Maker:
        return lambda: gradient(make(), src, dout)

    def exact(found: Found) -> float:
        return error(found, gradient(scatter, src.double(), dout.double())())

    error = but_for_ties if reduce == "max" else relative
    sides: dict[str, Maker] = ours(device, step(lambda: lambda s: segment_csr(s, indptr, reduce)))
    sides["torch.segment_reduce"] = step(lambda: torch_segment)
    sides["torch scatter"] = step(lambda: scatter)
    sides["torch.compile"] = step(lambda: compiled(scatter, device))
    sides |= installed("torch_scatter", "torch_scatter", step(scatter_package))
    cost = costs.segment_csr(graph.num_dst, graph.num_edges, width, src.element_size(),
                             reduce == "max", backward=True)  # fmt: skip
    return Case("segment_csr", f"{label}, {reduce}, F={width}, forward+backward", dtype, cost,
                sides, exact, error, facts=sizes(graph, width))  # fmt: skip


def sizes(graph: CSRGraph, width: int) -> Row:
    return {"nodes": graph.num_dst, "edges": graph.num_edges, "width": width}


def run(op: str, name: str, device: str, tiny: bool) -> Iterator[Row]:
    """Rows of `spmm`, `conv` or `reduce` on one graph."""
    graph, label = load("tiny" if tiny else name, device)
    graph = graph.gcn_norm()
    graph.t()
    single, half = torch.float32, torch.bfloat16
    for width in (8,) if tiny else WIDTHS:
        torch.manual_seed(width)
        if op == "spmm":
            for dtype in (single, half):
                yield measure(spmm_case(graph, label, width, dtype, device), device, tiny)
        elif op == "conv":
            yield measure(conv_case(graph, label, width, device), device, tiny)
        elif width <= 64:  # rows of an edge are what takes the memory
            yield measure(extremum_case(graph, label, width, device), device, tiny)
            for reduce, dtype in (("sum", single), ("max", single), ("sum", half)):
                case = segment_case(graph, label, width, reduce, dtype, device)
                yield measure(case, device, tiny)
