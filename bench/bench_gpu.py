"""One part of the GPU benchmarks; `make gpu-check` runs them all (bench/gpu_check.py).

    python bench/bench_gpu.py spmm:ogbn-arxiv --out part.json [--device cuda] [--tiny]

Every side multiplies the same GCN-normalised graph by the same features; sides take turns. Before
anything is timed, rows of every side, the longest among them, are compared with float64 sums: ours
being wrong fails the part, a wrong or failing peer is named and left out. `gb` counts the graph,
one row of x an edge and the output; features that fit in the second-level cache are gathered from
there, so the rate may exceed that of a copy.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import bench_gpu_layer_pair
import torch
from gpu_graphs import load
from gpu_timing import Step, device_facts, limits, take_turns
from torch import Tensor

import abkd_fast as af
from abkd_fast import CSRGraph
from abkd_fast.ops import conv, spmm

WIDTHS = (64, 128, 256)
GRAPHS = ("pubmed", "ogbn-arxiv", "ogbn-products")
PARTS = ("limits", *(f"{op}:{graph}" for graph in GRAPHS for op in ("spmm", "conv")))
PARTS += tuple(f"layer_pair:{config}" for config in bench_gpu_layer_pair.CONFIGS)
BACKENDS = ("triton", "cuda")
ALPHA, BETA = 0.1, 0.12
MESSAGES = 12 * 10**9  # bytes that a peer's gathered messages may take
Side = Callable[[Tensor], Tensor]


def ours(device: str, run: Side) -> dict[str, Side]:
    """What is served by default, and each back end by name."""
    names = BACKENDS if device == "cuda" else ("reference",)
    return {"abkd_fast": run} | {f"abkd_fast {name}": run for name in names}


def within(side: str) -> AbstractContextManager[None]:
    """The back end that a side of ours names."""
    name = side.removeprefix("abkd_fast").strip() if side.startswith("abkd_fast") else ""
    return af.backend(name) if name else nullcontext()


def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    return torch.compile(function, backend="inductor" if device == "cuda" else "eager")


def torch_csr(graph: CSRGraph) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse CSR a beta feature
        return graph.to_torch()


def spmm_sides(graph: CSRGraph, width: int, dtype: torch.dtype, device: str) -> dict[str, Side]:
    """Ours and all peers that are installed and can hold their messages."""
    sides = ours(device, lambda x: spmm(graph, x))
    row, col, value = graph.row(), graph.col.long(), graph.value
    assert value is not None
    if dtype == torch.float32:
        matrix = torch_csr(graph)
        sides["torch CSR"] = lambda x: matrix @ x
        if importlib.util.find_spec("torch_geometric") is not None:
            from torch_geometric.utils import spmm as pyg_spmm

            sides["PyG"] = lambda x: pyg_spmm(matrix, x, "sum")
    if importlib.util.find_spec("torch_sparse") is not None:
        from torch_sparse import SparseTensor, matmul

        size = (graph.num_dst, graph.num_src)
        sparse = SparseTensor(rowptr=graph.rowptr.long(), col=col, value=value, sparse_sizes=size)
        sparse = sparse.fill_cache_()
        sides["torch_sparse"] = lambda x: matmul(sparse, x)
    if 2 * 4 * graph.num_edges * width <= MESSAGES:

        def gather_scatter(x: Tensor) -> Tensor:
            messages = x[col] * value.unsqueeze(1).to(x.dtype)
            return x.new_zeros(graph.num_dst, x.size(1)).index_add_(0, row, messages)

        sides["gather + scatter"] = gather_scatter
        sides["torch.compile"] = compiled(gather_scatter, device)
    return sides


def conv_sides(graph: CSRGraph, width: int, dtype: torch.dtype, device: str) -> dict[str, Side]:
    """A GCNII layer with ReLU, forward and backward to x; x_0 is x of the first call."""
    weight = torch.randn(width, width, device=device, dtype=dtype) / width**0.5
    options = {"alpha": ALPHA, "beta": BETA, "act": "relu"}
    start = torch.randn(graph.num_dst, width, device=device, dtype=dtype)

    def gradient(layer: Side) -> Side:
        def step(x: Tensor) -> Tensor:
            leaf = x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(layer(leaf), leaf, x)
            return dx

        return step

    def separate(aggregate: Side) -> Side:
        def layer(x: Tensor) -> Tensor:
            mixed = torch.lerp(aggregate(x), start, ALPHA)
            return torch.addmm(mixed, mixed, weight, beta=1 - BETA, alpha=BETA).relu()

        return layer

    fused = gradient(lambda x: conv(graph, x, weight, x_0=start, **options)[0])
    sides = ours(device, fused)
    if dtype == torch.float32:
        matrix = torch_csr(graph)
        sides["torch CSR"] = gradient(separate(lambda x: matrix @ x))
        if importlib.util.find_spec("torch_geometric") is not None:
            from torch_geometric.nn import GCN2Conv

            module = GCN2Conv(width, ALPHA, math.expm1(BETA), 1, normalize=False).to(device)
            module.weight1.data.copy_(weight)
            sides["PyG"] = gradient(lambda x: module(x, start, matrix).relu())
    row, col, value = graph.row(), graph.col.long(), graph.value
    assert value is not None
    if 4 * 4 * graph.num_edges * width <= MESSAGES:

        def gather_scatter(x: Tensor) -> Tensor:
            messages = x[col] * value.unsqueeze(1).to(x.dtype)
            return x.new_zeros(graph.num_dst, x.size(1)).index_add_(0, row, messages)

        sides["torch.compile"] = gradient(compiled(separate(gather_scatter), device))
    return sides


def check_rows(graph: CSRGraph, x: Tensor, found: Tensor, dtype: torch.dtype) -> float:
    """Largest error on 200 rows, the longest among them, relative to the largest entry."""
    degree = graph.rowptr.diff().long()
    rows = torch.cat([degree.argmax().view(1), torch.randint(graph.num_dst, (199,)).to(x.device)])
    worst, largest = 0.0, 0.0
    for row in rows.tolist():
        begin, end = graph.rowptr[row : row + 2].tolist()
        weights = graph.value[begin:end].double()  # type: ignore[index]
        exact = weights @ x[graph.col[begin:end].long()].double()
        worst = max(worst, float((found[row].double() - exact).abs().max()))
        largest = max(largest, float(exact.abs().max()))
    return worst / max(largest, 1e-30)


def checked(
    op: str, graph: CSRGraph, x: Tensor, sides: dict[str, Side]
) -> tuple[dict[str, Step], dict[str, str]]:
    """The sides whose values are right, as steps, and why others are not among them."""
    bound = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
    good: dict[str, Step] = {}
    wrong: dict[str, str] = {}
    expected = sides["abkd_fast"](x)
    if op == "spmm" and not check_rows(graph, x, expected, x.dtype) <= bound:
        raise SystemExit(f"abkd_fast differs from float64 by more than {bound} on {graph}")
    scale = float(expected.float().norm())
    for name, side in sides.items():
        try:
            with within(name):
                error = float((side(x).float() - expected.float()).norm()) / scale
        except Exception as failure:  # a peer may fail in any way; ours may not
            if name.startswith("abkd_fast"):
                raise
            wrong[name] = f"{type(failure).__name__}: {str(failure).splitlines()[0][:120]}"
            continue
        if error <= bound:
            good[name] = lambda side=side: side(x)
        elif name.startswith("abkd_fast"):
            raise SystemExit(f"{name} differs from the default by {error:.2g} on {graph}")
        else:
            wrong[name] = f"wrong by {error:.2g}"
    return good, wrong


def work(op: str, graph: CSRGraph, width: int, size: int) -> dict[str, float]:
    """GB and GFLOP of one call."""
    nodes, edges = graph.num_dst, graph.num_edges
    gathers = 4 * (nodes + 2 * edges) + size * width * (edges + nodes)
    if op == "spmm":
        return {"gb": 1e-9 * gathers, "gflop": 2e-9 * edges * width}
    dense = size * width * nodes
    flops = 2 * (2 * edges * width + 2 * nodes * width * width)
    return {"gb": 1e-9 * (2 * gathers + 8 * dense), "gflop": 1e-9 * flops}


def run(op: str, name: str, device: str, tiny: bool) -> list[dict[str, Any]]:
    """Rows of one op on one graph."""
    graph, label = load("tiny" if tiny else name, device)
    graph = graph.gcn_norm()
    graph.t()
    dtypes = [torch.float32, torch.bfloat16] if op == "spmm" else [torch.float32]
    make = spmm_sides if op == "spmm" else conv_sides
    rows = []
    for width in (8,) if tiny else WIDTHS:
        for dtype in dtypes:
            torch.manual_seed(width)
            x = torch.randn(graph.num_src, width, device=device).to(dtype)
            steps, wrong = checked(op, graph, x, make(graph, width, dtype, device))
            rounds, turn_ms = (1, 2.0) if tiny else (5, 40.0)
            times = take_turns(steps, device, rounds, turn_ms, within)
            facts = {"op": op, "case": f"{label}, F={width}", "dtype": str(dtype)[6:]}
            facts |= {"nodes": graph.num_dst, "edges": graph.num_edges, "width": width}
            facts |= work(op, graph, width, x.element_size())
            rows.append(facts | {"ms": times, "left_out": wrong})
            print(facts["case"], facts["dtype"], {k: t["p50"] for k, t in times.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this program")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    op, _, name = options.part.partition(":")
    if op == "limits":
        device = device_facts(options.device)
        found: dict[str, Any] = {"limits": limits(options.device, options.tiny), "device": device}
    elif op == "layer_pair":
        found = {"rows": bench_gpu_layer_pair.run(name, options.device, options.tiny)}
    else:
        found = {"rows": run(op, name, options.device, options.tiny)}
    options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
