"""Time the relational layer against PyG's RGCNConv and FastRGCNConv, values checked first.

    ABKD_DATA=data python bench/bench_relational.py [--cases aifb acm-hetero mag-shaped]

One layer, forward and backward to x (where there are features), the weights, root and bias. Sides
take turns; the peak memory of each side is that of a fresh process. `mag-shaped` is synthetic:
OGBN-Mag's node types and relations at a twentieth of its size, edges drawn at random.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from errors import relative
from harness import child, machine_limits, peak_above_data, take_turns, write_json
from machines import result
from torch import Tensor, nn
from torch_geometric.nn import FastRGCNConv, RGCNConv

import abkd_fast
from abkd_fast import RelationalGraph, data
from abkd_fast.data.sized import MAG_EDGES, MAG_NODES

SHRINK = 20


class Case(NamedTuple):
    """A graph and the widths of a layer; ``width`` None: nodes without features."""

    graph: str
    width: int | None
    width_out: int


CASES = {
    "aifb 8285-16, no features": Case("aifb", None, 16),
    "aifb 16-16": Case("aifb", 16, 16),
    "acm-hetero 64-64": Case("acm-hetero", 64, 64),
    "mag-shaped 32-32": Case("mag-shaped", 32, 32),
    "mag-shaped 128-128": Case("mag-shaped", 128, 128),
}
PER_EDGE_LIMIT = 2e9  # bytes of FastRGCNConv's weights, one an edge; above, it is left out


def load(name: str, root: Path | None) -> RelationalGraph:
    if name != "mag-shaped":
        graph = data.load(name, root=root).relations
        assert graph is not None
        return graph
    generator = torch.Generator().manual_seed(0)
    nodes = {kind: count // SHRINK for kind, count in MAG_NODES.items()}
    edges = {}
    for relation, count in MAG_EDGES.items():
        ends = (nodes[relation[0]], nodes[relation[2]])
        drawn = [torch.randint(n, (count // SHRINK,), generator=generator) for n in ends]
        edges[relation] = torch.stack(drawn)
    return RelationalGraph.from_relations(nodes, edges).with_reverse()


class Sides:
    """The layers, with the same weights, and one step of each."""

    def __init__(self, case: Case, root: Path | None) -> None:
        self.graph = load(case.graph, root)
        self.index, self.kinds = self.graph.homogeneous()
        nodes = self.graph.num_dst
        width = nodes if case.width is None else case.width
        arguments = (width, case.width_out, self.graph.num_relations)
        self.layers: dict[str, nn.Module] = {
            "abkd_fast": abkd_fast.nn.RGCNConv(*arguments),
            "pyg": RGCNConv(*arguments),
        }
        per_edge = 0 if case.width is None else 4 * width * case.width_out * self.graph.num_edges
        if per_edge <= PER_EDGE_LIMIT:
            self.layers["pyg fast"] = FastRGCNConv(*arguments)
        for layer in self.layers.values():
            layer.load_state_dict(self.layers["pyg"].state_dict())
        self.x = None if case.width is None else torch.randn(nodes, width).requires_grad_()
        self.dout = torch.randn(nodes, case.width_out)

    def step(self, side: str) -> list[Tensor]:
        layer = self.layers[side]
        arguments = (self.graph,) if side == "abkd_fast" else (self.index, self.kinds)
        out = layer(self.x, *arguments)
        inputs = [] if self.x is None else [self.x]
        return [out.detach(), *torch.autograd.grad(out, [*inputs, *layer.parameters()], self.dout)]


def memory(name: str, side: str, root: Path | None) -> None:
    """Print the peak of two steps as JSON."""
    sides = Sides(CASES[name], root)
    abkd_fast.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)  # what loading freed must not serve the step
    print(json.dumps(peak_above_data(partial(sides.step, side))))


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    sides = Sides(CASES[name], options.root)
    expected = sides.step("pyg")
    errors = {side: relative(sides.step(side), expected) for side in sides.layers}
    assert max(errors.values()) < 1e-5, errors
    calls = {side: partial(sides.step, side) for side in sides.layers}
    times = take_turns(calls, options.rounds)
    graph = sides.graph
    rows = []
    for side, found in times.items():
        flags = ["--memory", name, side, *(["--root", str(options.root)] if options.root else [])]
        peak = child(__file__, flags)
        row = {"case": name, "side": side, "relative_error": errors[side], **found, **peak}
        row |= {"gradients_mb": sum(1e-6 * gradient.nbytes for gradient in expected[1:])}
        row |= {"nodes": graph.num_dst, "edges": graph.num_edges, "relations": graph.num_relations}
        rows.append(row)
        ratio = found["median_ms"] / times["abkd_fast"]["median_ms"]
        print(f"{name}, {side}: {found['median_ms']:.2f} ms ({ratio:.1f}x)", end=", ")
        print(f"{peak['above_data_mb']:.0f} MB above the data", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("relational"))
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory:
        memory(*options.memory, options.root)
        return
    limits = machine_limits()
    rows = [row for name in options.cases for row in measure(name, options)]
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
