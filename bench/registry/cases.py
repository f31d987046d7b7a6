"""Ops x graphs x widths x dtypes, and the providers that are installed for each.

A maker turns (graph, label, width, dtype) into a :class:`gpu_compare.Case`: one side a provider,
and how to tell whether its values are right. Makers import what they need when they are called: an
older abkd_fast that lacks an op then leaves out that op only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import costs
import gpu_compare
import torch
from gpu_compare import Case, Found, gradient, ours, relative
from gpu_graphs import load

from abkd_fast import CSRGraph

gpu_compare.COMPILERS["cpu"] = "inductor"
GRAPHS = ("pubmed", "ogbn-arxiv")  # R-MAT of their sizes where ABKD_DATA lacks them
SINGLE, HALF = torch.float32, torch.bfloat16
CLASSES, LAYERS = 40, 8
Maker = Callable[[CSRGraph, str, int, torch.dtype], Case]


@dataclass(frozen=True)
class Op:
    """A maker, and where it is timed: ``quick`` widths are those of `make bench`."""

    make: Maker
    widths: tuple[int, ...]
    quick: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    graphs: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """One case by name."""

    op: str
    graph: str
    width: int
    dtype: str

    def __str__(self) -> str:
        return "/".join(str(part) for part in asdict(self).values())

    def make(self) -> Case:
        graph, label = graph_of(self.graph)
        torch.manual_seed(0)
        return OPS[self.op].make(graph, label, self.width, getattr(torch, self.dtype))

    def providers(self) -> list[str]:
        """Names of the sides that are installed, from a graph of 500 nodes."""
        return list(Spec(self.op, "tiny", self.width, self.dtype).make().sides)


OPS: dict[str, Op] = {}


def op(
    name: str,
    widths: tuple[int, ...],
    quick: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...] = (SINGLE,),
    graphs: tuple[str, ...] = GRAPHS,
) -> Callable[[Maker], Maker]:
    """Enter a maker into the registry."""

    def enter(make: Maker) -> Maker:
        OPS[name] = Op(make, widths, quick, dtypes, graphs)
        return make

    return enter


def grid(quick: bool, graphs: Sequence[str] | None = None) -> Iterator[Spec]:
    """All cases; ``quick``: the first graph, few widths; ``graphs``: in place of the ops'."""
    for name, entry in OPS.items():
        for graph in graphs or (entry.graphs[:1] if quick else entry.graphs):
            for width in entry.quick if quick else entry.widths:
                for dtype in entry.dtypes:
                    yield Spec(name, graph, width, str(dtype).removeprefix("torch."))


@cache
def graph_of(name: str) -> tuple[CSRGraph, str]:
    """(GCN-normalised graph with its transpose, label)."""
    graph, label = load(name, "cpu")
    graph = graph.gcn_norm()
    graph.t()
    return graph, label


@op("spmm", widths=(16, 64, 256), quick=(16, 64), dtypes=(SINGLE, HALF))
def spmm(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_graph import spmm_case
    from bench_spmm import sides

    case = spmm_case(graph, label, width, dtype, "cpu")
    if dtype == SINGLE:
        torch.manual_seed(0)
        x = torch.randn(graph.num_src, width)  # spmm_case's: the seed is the same
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
        peers = side_names(bare.num_edges, kind, shape, float("inf"))[1:]
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
    from bench_gpu_graph import installed
    from bench_neighbor_kl import make_step

    def side(name: str) -> Callable[[], Any]:
        return lambda: make_step(name, graph, width)

    found = ours("cpu", side("abkd_fast")) | {"plain": side("plain")}
    found |= installed("torch_scatter", "torch_scatter", side("torch_scatter"))
    cost = costs.neighbor_kl(graph.num_dst, graph.num_edges, width)
    return Case("neighbor_kl", label, dtype, cost, found,
                lambda values: relative(values, make_step("plain", graph, width)()))  # fmt: skip


@op("layer_pair+gradient", widths=(64, 256), quick=(64,), graphs=("pubmed",))
def layer_pair(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    """Teacher of 8 layers, student of 4 x 4; random states of the graph's nodes."""
    from bench_layer_pair import CONFIGS, PEERS, count_work, make_step

    sizes = (graph.num_dst, LAYERS, width, 4, 4)
    config = f"{label} {LAYERS}x{width} -> 4x4"
    CONFIGS[config] = sizes

    def side(name: str) -> Callable[[], Any]:
        def make() -> Callable[[], Found]:
            step = make_step(name, config)
            return lambda: list(step().values())

        return make

    found = ours("cpu", side("abkd_fast")) | {name: side(name) for name in PEERS}
    work = count_work(config, "abkd_fast")
    cost = costs.Cost(*(round(work[k] * unit) for k, unit in
                        (("gflop", 1e9), ("gb", 1e9), ("touched_mb", 1e6))))  # fmt: skip
    return Case("layer_pair", config, dtype, cost, found,
                lambda values: relative(values, side("eager")()()))  # fmt: skip


@op("teacher_moments", widths=(64, 256), quick=(64,), graphs=("pubmed",))
def teacher_moments(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import moments_case

    return moments_case(graph.num_dst, LAYERS, width, "cpu")


@op("dropout+gradient", widths=(64, 256), quick=(64,), dtypes=(SINGLE, HALF))
def dropout(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import dropout_case

    return dropout_case(graph.num_dst, width, dtype, "cpu")


@op("linear+gradient", widths=(4, 64, 256), quick=(64,))
def linear(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import linear_case

    return linear_case(graph.num_dst, width, CLASSES, "cpu")


@op("kl_div labels+gradient", widths=(3, 40), quick=(3,))
def kl_div_labels(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import kl_div_case

    return kl_div_case(graph.num_dst, width, True, "cpu")


@op("kl_div scores+gradient", widths=(3, 40), quick=(40,))
def kl_div_scores(graph: CSRGraph, label: str, width: int, dtype: torch.dtype) -> Case:
    from bench_gpu_rows import kl_div_case

    return kl_div_case(graph.num_dst, width, False, "cpu")
