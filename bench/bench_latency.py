"""Latency of students and teachers: the whole graph, and one node; ours against PyG's.

    ABKD_DATA=data python bench/bench_latency.py [--datasets cora pubmed arxiv] [--seconds 6]

The weights are random (latency does not depend on them) and the same on every side; scores are
compared before anything is timed, and every pass over the graph starts from X. PyG's adjacency is
normalised beforehand and kept as torch's CSR, as torch_sparse's SparseTensor where that is
installed, or as edge_index, which torch.compile needs. A node's neighbourhood is found by
k_hop_subgraph, or by a NeighborLoader with all neighbours (needs torch_sparse). Sides take turns
(see abkd_fast.latency.compare). arxiv is OGBN-Arxiv's real graph with synthetic features.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from errors import largest
from harness import check_kept, kept_rows, write_json
from machines import result
from peers import pyg
from peers.pyg_queries import MODELS, by_loader, by_subgraph, normalised
from section_latency import TEACHERS
from torch import Tensor, nn

from abkd_fast import data, latency
from abkd_fast.latency.subjects import full_graph_calls
from abkd_fast.nn import ModelSpec

CASES = {
    "cora": ["gcnii-4x4", "gcnii-64x64"],
    "pubmed": ["gcnii-4x4", "gcnii-64x64"],
    "arxiv": ["gcn-2x256", "gcn-3x750"],
}
MESSAGES = 1 << 30  # bytes of PyG's messages, one row an edge of the graph, that are tried
Call = Callable[[], Tensor]


def load(name: str, root: Path | None) -> data.GraphData:
    return data.arxiv_features(root=root) if name == "arxiv" else data.load(name, root=root)


def twins(spec: str, graph: data.GraphData) -> tuple[nn.Module, nn.Module]:
    """(ours, PyG's) with the same weights, in eval mode."""
    torch.manual_seed(0)
    parsed, sizes = ModelSpec.parse(spec), (graph.num_features, graph.num_classes)
    ours = parsed.build(*sizes)
    shape = (sizes[0], parsed.hidden_channels, parsed.num_layers, sizes[1])
    theirs = MODELS[parsed.family](*shape)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def has_sparse() -> bool:
    return importlib.util.find_spec("torch_sparse") is not None


def full_graph_sides(
    ours: nn.Module, theirs: nn.Module, graph: data.GraphData, compiles: bool
) -> dict[str, Call]:
    x, edge_index, nodes = graph.dense_x, graph.edge_index, graph.num_nodes
    forms = full_graph_calls(ours, graph, ["eager", "flat"])
    sides: dict[str, Call] = {"abkd_fast": forms["eager"], "abkd_fast flat": forms["flat"]}
    kinds = ["csr", *(["torch_sparse"] if has_sparse() else [])]
    for kind in kinds:
        adjacency = pyg.prepare(edge_index, nodes, kind)
        sides[f"pyg {kind}"] = partial(theirs, x, adjacency)
    if compiles:
        sides["pyg compile"] = partial(torch.compile(theirs), x, *normalised(edge_index, nodes))
    return {name: torch.inference_mode()(side) for name, side in sides.items()}


def node_sides(
    ours: nn.Module, theirs: nn.Module, graph: data.GraphData, compiles: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    server = latency.NodeServer(ours, graph)
    edges, x = normalised(graph.edge_index, graph.num_nodes), graph.dense_x
    sides = {"abkd_fast": server, "pyg k_hop_subgraph": by_subgraph(theirs, x, edges, server.hops)}
    if has_sparse():
        sides["pyg NeighborLoader"] = by_loader(theirs, x, edges, server.hops)
        if compiles:
            compiled = torch.compile(theirs, dynamic=True)
            sides["pyg NeighborLoader + compile"] = by_loader(compiled, x, edges, server.hops)
    return sides


def difference(scores: Tensor, expected: Tensor) -> float:
    """In norm, relative."""
    return float((scores - expected).norm() / expected.norm())


def check(differences: dict[str, float], what: str) -> None:
    wrong = {side: error for side, error in differences.items() if not error < 1e-4}
    assert not wrong, f"{what}: {wrong}"


def first_calls(calls: dict[str, Call]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """(scores, ms) of the first call of every side; that of a compiled one compiles."""
    scores, spent = {}, {}
    for name, call in calls.items():
        begin = time.perf_counter()
        scores[name] = call()
        spent[name] = 1e3 * (time.perf_counter() - begin)
    return scores, spent


def row(
    what: dict[str, str],
    calls: dict[str, Call],
    differences: dict[str, float],
    first: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Time the sides, which were found to agree; ``first``: ms of their first calls."""
    check(differences, str(what))
    found = latency.compare(calls, samples=options.samples, seconds=options.seconds)
    for side in found.values():
        print(*what.values(), side, flush=True)
    sides = {name: side.row() for name, side in found.items()}
    for name in sides:
        made = "compile" in name or name.endswith("flat")  # by the first call
        ms = first.get(name)
        sides[name] |= {"cold": None, "compile": ms} if made else {"cold": ms, "compile": None}
    return {**what, "difference": differences, "sides": sides}


def rows_of(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    graph = load(name, options.root)
    graph.graph.gcn_norm()
    rows = []
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(graph.num_nodes, (options.samples, 1), generator=generator)
    worst = graph.graph.rowptr.diff().argmax()[None]
    for spec in [spec for spec in CASES[name] if spec in options.models]:
        ours, theirs = twins(spec, graph)
        widest = max(p.size(0) for p in ours.parameters() if p.dim() == 2)
        fits = 4 * widest * (graph.graph.num_edges + graph.num_nodes) < MESSAGES
        compiles = spec not in TEACHERS and options.compile
        sides = full_graph_sides(ours, theirs, graph, compiles and fits)
        scores, first = first_calls(sides)
        with torch.no_grad():
            expected = ours(graph.x, graph.graph)
        errors = {side: difference(found, expected) for side, found in scores.items()}
        what = {"dataset": name, "model": spec}
        rows.append(row({**what, "query": "full graph"}, sides, errors, first, options))
        torch.compiler.reset()
        queries = node_sides(ours, theirs, graph, compiles)
        for query, nodes in (("one node", list(drawn)), ("worst node", [worst])):
            asked = {
                side: ask
                for side, ask in queries.items()
                if fits or query == "one node" or side != "pyg k_hop_subgraph"
            }
            ahead = {side: partial(ask, nodes[0]) for side, ask in asked.items()}
            first = first_calls(ahead)[1] if query == "one node" else {}
            errors = {
                side: largest(difference(ask(node), expected[node]) for node in nodes[:6])
                for side, ask in asked.items()
            }
            calls = {side: in_turn(ask, nodes) for side, ask in asked.items()}
            rows.append(row({**what, "query": query}, calls, errors, first, options))
    return rows


def in_turn(ask: Callable[[Tensor], Tensor], nodes: list[Tensor]) -> Call:
    turn = cycle(nodes)
    return lambda: ask(next(turn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=list(CASES))
    every = list(dict.fromkeys(spec for specs in CASES.values() for spec in specs))
    parser.add_argument("--models", nargs="+", default=every)
    parser.add_argument("--samples", type=int, default=latency.samples_needed(0.99))
    parser.add_argument("--seconds", type=float, default=6.0, help="of timed calls of a side")
    parser.add_argument("--compile", type=int, default=1, help="0: without torch.compile")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("latency"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = json.loads(options.out.read_text()) if options.out.exists() else None
    if before:
        check_kept(before, options.threads)
    kept, new = before["rows"] if before else [], list[dict[str, Any]]()
    order = {(name, spec): (i, j) for i, name in enumerate(CASES) for j, spec in enumerate(every)}
    for name in options.datasets:
        rows = rows_of(name, options)
        fresh = {(row["dataset"], row["model"]) for row in rows}
        kept = [row for row in kept if (row["dataset"], row["model"]) not in fresh]
        new += rows
        kept, earlier = kept_rows(before, kept) if kept else ([], [])
        together = sorted(kept + new, key=lambda row: order[row["dataset"], row["model"]])
        write_json(options.out, threads=options.threads, rows=together, earlier=earlier)


if __name__ == "__main__":
    main()
