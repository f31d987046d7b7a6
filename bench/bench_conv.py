"""Time the fused layer against the same layer in separate operations, values checked first.

    ABKD_DATA=data python bench/bench_conv.py [--datasets cora pubmed] [--widths 4 64 256]

One GCNII layer with ReLU and dropout on its input, forward and backward to x, x_0 and the weight.
`separate` is abkd_fast's spmm with torch's dropout, lerp, addmm and relu; `pyg` is GCN2Conv on
torch's sparse CSR, `pyg torch_sparse` on a SparseTensor, where that is installed. Sides take turns;
values are compared without dropout, whose masks differ.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import costs
import torch
import torch.nn.functional as F
from harness import graph_options, machine_limits, take_turns, write_json
from peers.pyg import prepare
from torch import Tensor
from torch_geometric.nn import GCN2Conv

from abkd_fast import CSRGraph, data
from abkd_fast.ops import conv, spmm
from abkd_fast.ops.dropout import draw_seed

ALPHA, THETA, LAYER = 0.1, 0.5, 4
BETA = float(torch.log(torch.tensor(THETA / LAYER + 1)))

Layer = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def sides(graph: CSRGraph, width: int) -> dict[str, Layer]:
    normalised = graph.gcn_norm()
    edge_index = graph.to_edge_index()[0]
    module = GCN2Conv(width, ALPHA, THETA, LAYER, normalize=False)

    def fused(x: Tensor, x_0: Tensor, weight: Tensor, p: float) -> Tensor:
        options = {"alpha": ALPHA, "beta": BETA, "act": "relu"}
        return conv(normalised, x, weight, x_0=x_0, p=p, seed=draw_seed(), **options)[0]

    def separate(x: Tensor, x_0: Tensor, weight: Tensor, p: float) -> Tensor:
        mixed = torch.lerp(spmm(normalised, F.dropout(x, p)), x_0, ALPHA)
        return torch.addmm(mixed, mixed, weight, beta=1 - BETA, alpha=BETA).relu()

    def pyg(sparse: str) -> Layer:
        adjacency = prepare(edge_index, graph.num_dst, sparse)

        def layer(x: Tensor, x_0: Tensor, weight: Tensor, p: float) -> Tensor:
            arguments = (F.dropout(x, p), x_0, adjacency)
            return torch.func.functional_call(module, {"weight1": weight}, arguments).relu()

        return layer

    found = {"abkd_fast": fused, "separate": separate, "pyg": pyg("csr")}
    if importlib.util.find_spec("torch_sparse") is not None:
        found["pyg torch_sparse"] = pyg("torch_sparse")
    return found


def step(layer: Layer, leaves: tuple[Tensor, ...], dout: Tensor, p: float) -> list[Tensor]:
    out = layer(*leaves, p)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def main() -> None:
    options = graph_options(__doc__, ["cora", "pubmed"], [4, 64, 256], "conv")
    limits, rows = machine_limits(), []
    for name in options.datasets:
        graph = data.load(name, root=options.root).graph
        for width in options.widths:
            size = (graph.num_dst, width)
            shapes = (size, size, (width, width))
            leaves = tuple(torch.randn(shape).div_(width**0.5).requires_grad_() for shape in shapes)
            dout = torch.randn(size)
            layers = sides(graph, width)
            expected = step(layers["pyg"], leaves, dout, 0.0)
            for layer in layers.values():
                for a, b in zip(step(layer, leaves, dout, 0.0), expected, strict=True):
                    # In norm: where rounding puts an element on the other side of the ReLU's
                    # kink, its own gradient is another one.
                    assert float((a - b).norm() / b.norm()) < 1e-3
            calls = {
                side: partial(step, layer, leaves, dout, 0.5) for side, layer in layers.items()
            }
            times = take_turns(calls, options.rounds)
            ours = times["abkd_fast"]["median_ms"]
            medians = {side: times[side]["median_ms"] for side in calls}
            cells = [f"{side} {ms:.3f} ms ({ms / ours:.2f}x)" for side, ms in medians.items()]
            print(f"{name} {width}: " + "  ".join(cells), flush=True)
            cost = costs.conv(graph.num_dst, graph.gcn_norm().num_edges, width).row()
            rows.append({"dataset": name, "width": width, "sides": times} | cost)
    write_json(options.out, threads=options.threads, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
