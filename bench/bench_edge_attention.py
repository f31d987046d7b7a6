"""Time attention layers against PyG's, forward and backward, values checked first.

    ABKD_DATA=data python bench/bench_edge_attention.py [--datasets cora pubmed ogbn-arxiv]

GATConv and GATv2Conv on 128 random features, dropout 0.6 on the coefficients, to the gradients of
the features and every parameter; the graphs are real. PyG gets what its documentation advises:
self-loops added once beforehand and edges sorted by destination (`pyg`), and a
`torch_sparse.SparseTensor` where that is installed (`pyg adj_t`). Sides take turns; outputs and
gradients are compared without dropout, whose masks differ. "Extra MB" is the peak resident set of
a fresh process per side, less what it held before the step. PyG is left out where its tensors of
edges x heads x width, five in GATConv and eight in GATv2Conv at a time, would take more than
``--peer-gb``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import costs
import torch
from bench_spmm import load_graph
from errors import relative
from harness import child, machine_limits, peak_above_data, take_turns, write_json
from machines import result
from torch import Tensor, nn
from torch_geometric import nn as pyg

from abkd_fast import CSRGraph
from abkd_fast.nn import GATConv, GATv2Conv
from abkd_fast.nn._attention import with_self_loops

SHAPES = {"8x8": (8, 8), "3x250": (3, 250)}
LAYERS = {"gat": (GATConv, pyg.GATConv), "gatv2": (GATv2Conv, pyg.GATv2Conv)}
FEATURES, DROPOUT = 128, 0.6
MESSAGES = {"gat": 5, "gatv2": 8}  # PyG's tensors of edges x heads x width at a time

Step = Callable[[], list[Tensor]]


def side_names(edges: int, kind: str, shape: str, peer_gb: float) -> list[str]:
    heads, width = SHAPES[shape]
    if MESSAGES[kind] * 4e-9 * edges * heads * width > peer_gb:
        return ["abkd_fast"]
    sparse = importlib.util.find_spec("torch_sparse") is not None
    return ["abkd_fast", "pyg", *(["pyg adj_t"] if sparse else [])]


def adjacency(side: str, graph: CSRGraph) -> Any:
    """The graph with its self-loops, as a side likes it."""
    edge_index, _ = graph.to_edge_index()
    if side != "pyg adj_t":
        return edge_index
    from torch_sparse import SparseTensor

    size = (graph.num_dst, graph.num_src)
    return SparseTensor(row=edge_index[1], col=edge_index[0], sparse_sizes=size).fill_cache_()


def make_step(side: str, kind: str, shape: str, graph: CSRGraph, p: float) -> Step:
    torch.manual_seed(0)
    heads, width = SHAPES[shape]
    ours, theirs = LAYERS[kind]
    options = {"heads": heads, "dropout": p, "add_self_loops": False}
    x = torch.randn(graph.num_src, FEATURES, requires_grad=True)
    dout = torch.randn(graph.num_dst, heads * width)
    reference = theirs(FEATURES, width, **options)
    layer: nn.Module = reference
    edges: Any = graph
    if side == "abkd_fast":
        layer = ours(FEATURES, width, **options)
        layer.load_state_dict(reference.state_dict())
        graph.t()
    else:
        edges = adjacency(side, graph)
    inputs = [x, *layer.parameters()]
    if side == "pyg compiled":
        layer = torch.compile(layer)

    def step() -> list[Tensor]:
        out = layer(x, edges)
        return [out.detach(), *torch.autograd.grad(out, inputs, dout)]

    return step


def check(sides: list[str], *case: Any) -> dict[str, float]:
    """Largest relative difference (in norm) of outputs and gradients from PyG's, by side."""
    expected, errors = make_step(sides[1], *case, 0.0)(), {}
    for side in sides:
        errors[side] = relative(make_step(side, *case, 0.0)(), expected)
        assert errors[side] < 1e-3, f"{side} differs by {errors[side]}"
    return errors


def measure(options: argparse.Namespace, name: str, kind: str, shape: str) -> list[dict[str, Any]]:
    graph = with_self_loops(load_graph(name, options.root))
    case, sides = (kind, shape, graph), side_names(graph.num_edges, kind, shape, options.peer_gb)
    errors = check(sides, *case) if len(sides) > 1 else {"abkd_fast": 0.0}
    steps = {side: make_step(side, *case, DROPOUT) for side in sides}
    times = take_turns(steps, options.rounds)
    del steps
    common = ["--threads", str(options.threads), "--case", name, kind, shape]
    common += [] if options.root is None else ["--root", str(options.root)]
    cost = costs.edge_attention(
        *(graph.num_dst, graph.num_edges, FEATURES), *SHAPES[shape], mixed=kind == "gatv2"
    )
    rows = []
    for side in sides:
        memory = child(__file__, [*common, "--memory", side])
        row = {"dataset": name, "layer": kind, "shape": shape, "side": side}
        row |= times[side] | memory | {"relative_error": errors[side]}
        rows.append(row | (cost.row() if side == "abkd_fast" else {}))
        ratio = times[side]["median_ms"] / times["abkd_fast"]["median_ms"]
        print(
            f"{name} {kind} {shape} {side}: {row['median_ms']:.3f} ms ({ratio:.2f}x), "
            f"{memory['above_data_mb']:.0f} MB, difference {errors[side]:.1e}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["cora", "pubmed", "ogbn-arxiv"])
    parser.add_argument("--layers", nargs="+", default=list(LAYERS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-gb", type=float, default=4.0, help="memory that PyG may take")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("edge_attention"))
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, kind, shape = options.case
        graph = with_self_loops(load_graph(name, options.root))
        print(json.dumps(peak_above_data(make_step(options.memory, kind, shape, graph, DROPOUT))))
        return
    limits, rows = machine_limits(), []
    for name in options.datasets:
        for kind in options.layers:
            for shape in options.shapes:
                rows += measure(options, name, kind, shape)
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
