"""Time the divergence of neighbourhood softmaxes against plain PyTorch's, values checked first.

    ABKD_DATA=data python bench/bench_neighbor_kl.py [--cases rmat-1m:16 ogbn-arxiv:64]

One step of LSP's loss: its value and the student's gradient, rbf similarities, rows as wide on both
sides. `plain` gathers both ends of every edge and reduces by `scatter_reduce` and `index_add`, as
one would write it; `torch_scatter` is the same with its `scatter_log_softmax`. *target*: the
teacher's log-probabilities are given, since the teacher stays the same. Sides take turns; loss and
gradient are compared first. "Extra MB" is the peak resident set of a fresh process per side, less
what it held before the step. R-MAT graphs are synthetic; ``rmat-1m`` has 2^17 nodes and 2^20 edges,
``growth`` is our memory on R-MAT graphs of eight edges a node and more and more nodes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_spmm import load_graph
from errors import relative
from harness import child, machine_limits, peak_above_data, take_turns, write_json
from machines import result
from rmat_rows import rmat_rows
from torch import Tensor

from abkd_fast import CSRGraph
from abkd_fast.ops import neighbor_kl, neighbor_log_softmax

CASES = ["rmat-1m:16", "rmat-1m:64", "ogbn-arxiv:16", "ogbn-arxiv:64"]
SIDES = ["abkd_fast", "plain", "torch_scatter", "abkd_fast target", "plain target"]
GROWTH = (1 << 15, 1 << 16, 1 << 17, 1 << 18)  # nodes, eight edges each
GROWTH_WIDTH = 64

Step = Callable[[], list[Tensor]]


def graph_of(name: str, root: Path | None) -> CSRGraph:
    if name == "rmat-1m":
        return rmat_rows(1 << 17, 8)
    if name.startswith("rmat:"):
        return rmat_rows(int(name.removeprefix("rmat:")), 8)
    graph = load_graph(name, root)
    if graph is None:
        raise SystemExit(f"{name}: not found")
    return graph


def log_softmax(side: str, x: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """What a side holds of every node's neighbourhood, [E]."""
    score = torch.exp(-0.5 * (x[row] - x[col]).square().sum(1))
    if side.startswith("torch_scatter"):
        from torch_scatter.composite import scatter_log_softmax

        return scatter_log_softmax(score, row, dim_size=x.size(0))
    most = score.new_zeros(x.size(0)).scatter_reduce(0, row, score, "amax", include_self=False)
    shifted = score - most.detach()[row]
    return shifted - score.new_zeros(x.size(0)).index_add(0, row, shifted.exp()).log()[row]


def make_step(side: str, graph: CSRGraph, width: int) -> Step:
    torch.manual_seed(0)
    student = (torch.randn(graph.num_dst, width) / width**0.5).requires_grad_()
    teacher = torch.randn(graph.num_dst, width) / width**0.5
    known = neighbor_log_softmax(graph, teacher) if side.endswith("target") else None
    row, col = graph.row(), graph.col.long()
    if side.startswith("abkd_fast"):
        del row, col
        graph.t()

        def loss() -> Tensor:
            if known is None:
                return neighbor_kl(graph, student, teacher)
            return neighbor_kl(graph, student, log_target=known)

    else:

        def loss() -> Tensor:
            target = known
            if target is None:
                with torch.no_grad():
                    target = log_softmax(side, teacher, row, col)
            log_p = log_softmax(side, student, row, col)
            return (target.exp() * (target - log_p)).sum() / graph.num_dst

        if side == "compiled":
            loss = torch.compile(loss)

    def step() -> list[Tensor]:
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, student)]

    return step


def check(graph: CSRGraph, width: int) -> dict[str, float]:
    """Largest relative difference (in norm) of loss and gradient from the plain side's, by side."""
    expected, errors = make_step("plain", graph, width)(), {}
    for side in SIDES:
        errors[side] = relative(make_step(side, graph, width)(), expected)
        assert errors[side] < 1e-3, f"{side} differs by {errors[side]}"
    return errors


def measure(options: argparse.Namespace, case: str) -> list[dict[str, Any]]:
    name, width = case.rsplit(":", 1)
    graph = graph_of(name, options.root)
    errors = check(graph, int(width))
    steps = {side: make_step(side, graph, int(width)) for side in SIDES}
    times = take_turns(steps, options.rounds)
    del steps
    rows = []
    for side in SIDES:
        row = {"graph": name, "nodes": graph.num_dst, "edges": graph.num_edges, "width": int(width)}
        row |= {"side": side} | times[side] | memory_of(options, side, case)
        rows.append(row | {"relative_error": errors[side]})
        ours = times["abkd_fast target" if side.endswith("target") else "abkd_fast"]
        print(
            f"{case} {side}: {times[side]['median_ms']:.1f} ms "
            f"({times[side]['median_ms'] / ours['median_ms']:.1f}x), "
            f"{row['above_data_mb']:.0f} MB, difference {errors[side]:.1e}",
            flush=True,
        )
    return rows


def memory_of(options: argparse.Namespace, side: str, case: str) -> dict[str, float]:
    """Peak of two steps in a fresh process."""
    common = ["--threads", str(options.threads), "--memory", side, case]
    common += [] if options.root is None else ["--root", str(options.root)]
    return child(__file__, common)


def growth(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for nodes in GROWTH:
        found = memory_of(options, "abkd_fast", f"rmat:{nodes}:{GROWTH_WIDTH}")
        rows.append({"nodes": nodes, "edges": 8 * nodes, "width": GROWTH_WIDTH} | found)
        print(f"{nodes} nodes: {found['above_data_mb']:.1f} MB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("neighbor_kl"))
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        side, case = options.memory
        name, width = case.rsplit(":", 1)
        print(
            json.dumps(peak_above_data(make_step(side, graph_of(name, options.root), int(width))))
        )
        return
    limits, rows = machine_limits(), []
    for case in options.cases:
        rows += measure(options, case)
    write_json(
        options.out, threads=options.threads, machine=limits, rows=rows, growth=growth(options)
    )


if __name__ == "__main__":
    main()
