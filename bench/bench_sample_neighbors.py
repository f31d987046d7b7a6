"""Time neighbour sampling against PyG's NeighborLoader.

    python bench/bench_sample_neighbors.py [--graphs ogbn-arxiv] [--root DIR]

PyG samples with torch-sparse or pyg-lib, whichever is installed. Both sides get the same seed
nodes, one batch a call, features left out: what is timed is the sampling alone. What is checked is
that both return as many edges for the seed nodes, and only edges of the graph.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from bench_spmm import load_graph
from harness import take_turns, write_json
from machines import result

from abkd_fast import CSRGraph
from abkd_fast.metrics import quantiles
from abkd_fast.ops import sample_neighbors

LIMITS = {"15-10": [15, 10], "15-10-5": [15, 10, 5]}
BATCH = 1024


def pyg_sampler(graph: CSRGraph, limits: list[int]) -> Any:
    """sample(nodes) -> PyG's SamplerOutput, through the sampler NeighborLoader uses."""
    from torch_geometric.data import Data
    from torch_geometric.sampler import NeighborSampler, NodeSamplerInput

    data = Data(edge_index=graph.to_edge_index()[0], num_nodes=graph.num_dst)
    sampler = NeighborSampler(data, num_neighbors=limits)
    return lambda nodes: sampler.sample_from_nodes(NodeSamplerInput(None, nodes))


def check(graph: CSRGraph, nodes: torch.Tensor, limit: int, theirs: Any, ours: Any) -> None:
    wanted = graph.rowptr.diff()[nodes].clamp(max=limit)
    assert torch.equal(ours.graph.rowptr.diff()[: len(nodes)], wanted)
    counts = torch.bincount(theirs.col, minlength=theirs.node.numel())[: len(nodes)]
    assert torch.equal(counts.to(wanted.dtype), wanted)
    edges = graph.row() * graph.num_src + graph.col.long()
    found = theirs.node[theirs.col] * graph.num_src + theirs.node[theirs.row]
    assert bool(torch.isin(found, edges).all())


def compare(name: str, graph: CSRGraph, rounds: int) -> list[dict[str, Any]]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randperm(graph.num_dst, generator=generator)[:BATCH]
    for label, limits in LIMITS.items():
        theirs = pyg_sampler(graph, limits)
        check(graph, nodes, limits[0], theirs(nodes), sample_neighbors(graph, nodes, limits))
        calls = {
            "abkd_fast": lambda limits=limits: sample_neighbors(graph, nodes, limits),
            "PyG": lambda theirs=theirs: theirs(nodes),
        }
        times = take_turns(calls, rounds)
        ms = {side: quantiles(t["samples_ms"]) for side, t in times.items()}
        edges = sample_neighbors(graph, nodes, limits).e_id.numel()
        rows.append({"dataset": name, "limits": label, "batch": BATCH, "edges": edges, "ms": ms})
        ours, peer = ms["abkd_fast"]["p50"], ms["PyG"]["p50"]
        print(f"{name} {label}: {ours:.2f} ms, PyG {peer:.2f} ms ({peer / ours:.2f}x)")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", nargs="+", default=["pubmed", "ogbn-arxiv"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path)
    default = result("sample_neighbors")
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "Using 'NeighborSampler'")
    rows = []
    for name in options.graphs:
        graph = load_graph(name, options.root)
        if graph is None:
            print(f"{name}: no file under --root or ABKD_DATA, left out")
            continue
        rows += compare(name, graph, options.rounds)
    write_json(options.out, threads=options.threads, rows=rows)


if __name__ == "__main__":
    main()
