"""Time spmm on a graph whose nodes are in different orders, and the making of the orders.

    python bench/bench_reorder.py [--graphs ogbn-arxiv] [--widths 64 256] [--root DIR]

*random* is the worst order there is to start from, *original* what the files have. Every order's
result is checked against the original's.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from bench_spmm import load_graph
from harness import machine_limits, take_turns, write_json
from machines import result

from abkd_fast import CSRGraph
from abkd_fast.metrics import quantiles
from abkd_fast.ops import spmm
from abkd_fast.reorder import ORDERS, reorder
from abkd_fast.subgraph import induced_subgraph

GRAPHS = ("pubmed", "ogbn-arxiv", "facebook-pagepage")


def orders(graph: CSRGraph) -> dict[str, tuple[torch.Tensor, float]]:
    """(order, seconds it took) by name."""
    generator = torch.Generator().manual_seed(0)
    found = {
        "original": (torch.arange(graph.num_dst), 0.0),
        "random": (torch.randperm(graph.num_dst, generator=generator), 0.0),
    }
    for method in ORDERS:
        begin = time.perf_counter()
        order = reorder(graph, method)
        found[method] = order, time.perf_counter() - begin
    return found


def compare(name: str, graph: CSRGraph, widths: list[int], rounds: int) -> list[dict[str, object]]:
    found, rows = orders(graph), []
    graphs = {method: induced_subgraph(graph, order) for method, (order, _) in found.items()}
    distance = {
        method: float((g.row() - g.col.long()).abs().double().mean())
        for method, g in graphs.items()
    }
    for width in widths:
        x = torch.randn(graph.num_dst, width, generator=torch.Generator().manual_seed(1))
        inputs = {method: x[order] for method, (order, _) in found.items()}
        expected = spmm(graph, x)
        for method, (order, _) in found.items():
            out = spmm(graphs[method], inputs[method])
            torch.testing.assert_close(out, expected[order], rtol=1e-4, atol=1e-4)
        calls = {method: partial(spmm, graphs[method], inputs[method]) for method in found}
        times = take_turns(calls, rounds)
        ms = {method: quantiles(t["samples_ms"]) for method, t in times.items()}
        rows.append(
            {
                "dataset": name,
                "width": width,
                "ms": ms,
                "seconds": {method: seconds for method, (_, seconds) in found.items()},
                "distance": distance,
            }
        )
        print(f"{name} {width}: " + ", ".join(f"{m} {q['p50']:.2f} ms" for m, q in ms.items()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS))
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path, default=result("reorder"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    limits, rows = machine_limits(), []
    for name in options.graphs:
        graph = load_graph(name, options.root)
        if graph is None:
            print(f"{name}: no file under --root or ABKD_DATA, left out")
            continue
        rows += compare(name, graph.gcn_norm(), options.widths, options.rounds)
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
