"""Products with a graph, reductions, layers and the divergence of neighbourhoods."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import costs
import torch
from errors import relative
from gpu_compare import Case, Found, gradient, installed, ours
from registry.catalog import HALF, SINGLE, Maker, op

from abkd_fast import CSRGraph


@op("spmm", widths=(16, 64, 256), quick=(16, 64), dtypes=(SINGLE, HALF))
def spmm(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_graph import spmm_case
    from bench_spmm import sides

    case = spmm_case(graph, label, width, dtype, "cpu")
    torch.manual_seed(0)
    x = torch.randn(graph.num_src, width).to(dtype)  # spmm_case's: the seed is the same
    if dtype == HALF:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
            matrix = graph.to_torch().to(dtype)
        case.sides["torch.sparse.mm"] = lambda: lambda: [torch.sparse.mm(matrix, x, "sum")]
        case.sides["csr @ x"] = lambda: lambda: [matrix @ x]
    else:
        rest = {n: s for n, s in sides(graph).items() if n not in ("abkd_fast", "csr @ x")}
        for name, side in rest.items():
            case.sides.setdefault(name, lambda side=side: lambda: [side(x)])
    return case


@op("spmm+gradient", widths=(16, 64, 256), quick=(64,))
def spmm_gradient(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_spmm import sides

    x, dout = torch.randn(graph.num_src, width), torch.randn(graph.num_dst, width)
    all_sides = sides(graph)
    mine = all_sides.pop("abkd_fast")
    del all_sides["scipy"]  # has no gradient
    found = ours("cpu", lambda: gradient(mine, x, dout))
    found |= {name: lambda side=side: gradient(side, x, dout) for name, side in all_sides.items()}
    matrix = graph.to_scipy().astype("float64")
    expected = [torch.from_numpy(matrix @ x.double().numpy()),
                torch.from_numpy(matrix.T @ dout.double().numpy())]  # fmt: skip
    cost = costs.spmm(graph.num_dst, graph.num_edges, width, backward=True)
    return Case("spmm+gradient", label, dtype, cost, found, lambda f: relative(f, expected))


@op("spmm max+gradient", widths=(64,), quick=(64,))
def spmm_max(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_graph import extremum_case

    return extremum_case(graph, label, width, "cpu")


@op("segment sum+gradient", widths=(16, 64), quick=(64,), dtypes=(SINGLE, HALF))
def segment_sum(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_graph import segment_case

    return segment_case(graph, label, width, "sum", dtype, "cpu")


@op("segment max+gradient", widths=(16, 64), quick=(64,))
def segment_max(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_graph import segment_case

    return segment_case(graph, label, width, "max", dtype, "cpu")


@op("conv+gradient", widths=(4, 64, 256), quick=(4, 64))
def conv(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_graph import conv_case

    return conv_case(graph, label, width, "cpu")


def attention(kind: str) -> Maker:
    def make(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
        from bench_edge_attention import FEATURES, MESSAGES, SHAPES, make_step, side_names

        import abkd_fast

        # gcn_norm has added the self-loops that PyG is told not to add
        bare = CSRGraph.from_csr(graph.rowptr, graph.col, None, graph.num_src)
        shape = next(name for name, (_, channels) in SHAPES.items() if channels == width)
        sizes = (bare.num_dst, bare.num_edges, FEATURES, *SHAPES[shape])
        found = ours("cpu", lambda: make_step("abkd_fast", kind, shape, bare, 0.0))
        peers = [*side_names(bare.num_edges, kind, shape, float("inf"))[1:], "pyg compiled"]
        found |= {name: lambda name=name: make_step(name, kind, shape, bare, 0.0) for name in peers}

        def truth(values: Found) -> float:
            with abkd_fast.backend("reference"):
                return relative(values, make_step("abkd_fast", kind, shape, bare, 0.0)())

        cost = costs.edge_attention(*sizes, mixed=kind == "gatv2")
        bytes_of_peers = MESSAGES[kind] * 4 * bare.num_edges * SHAPES[shape][0] * width
        needs = dict.fromkeys(peers, bytes_of_peers)
        return Case(kind, f"{label}, {shape}", dtype, cost, found, truth, needs=needs)

    return make


op("gat+gradient", widths=(8, 250), quick=(8,))(attention("gat"))
op("gatv2+gradient", widths=(8, 250), quick=(8,))(attention("gatv2"))


@op("neighbor_kl+gradient", widths=(16, 64), quick=(16,))
def neighbor_kl(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_neighbor_kl import make_step

    def side(name: str) -> Callable[[], Any]:
        return lambda: make_step(name, graph, width)

    found = ours("cpu", side("abkd_fast")) | {"plain": side("plain")}
    found |= {"torch.compile": side("compiled")}
    found |= installed("torch_scatter", "torch_scatter", side("torch_scatter"))
    cost = costs.neighbor_kl(graph.num_dst, graph.num_edges, width)
    return Case("neighbor_kl", label, dtype, cost, found,
                lambda values: relative(values, make_step("plain", graph, width)()))  # fmt: skip
