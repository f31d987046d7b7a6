"""Time training steps of PyG's layers before and after ``accelerate``, values checked first.

    ABKD_DATA=data python bench/bench_accelerate.py [--datasets cora pubmed] [--rounds 5]

A step is forward, backward and Adam, as a user writes it: features dense, edges as edge_index. The
two sides have the same weights; scores and gradients are compared without dropout. They take turns.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from errors import relative
from harness import take_turns, write_json
from machines import result
from torch import Tensor, nn
from torch_geometric.nn import GCN, GCN2Conv, GraphSAGE

from abkd_fast import GraphData, accelerate, data


class GCNII(nn.Module):
    """As PyG's own GCNII example."""

    def __init__(
        self, in_channels: int, width: int, num_layers: int, out_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lins = nn.ModuleList([nn.Linear(in_channels, width), nn.Linear(width, out_channels)])
        layers = range(1, num_layers + 1)
        self.convs = nn.ModuleList(GCN2Conv(width, 0.1, 0.5, layer) for layer in layers)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = h_0 = self.lins[0](F.dropout(x, self.dropout, self.training)).relu()
        for conv in self.convs:
            h = conv(F.dropout(h, self.dropout, self.training), h_0, edge_index).relu()
        return self.lins[1](F.dropout(h, self.dropout, self.training))


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "GCN 2 x 16": lambda width, classes: GCN(width, 16, 2, classes, dropout=0.5),
    "GCN2Conv 16 x 64": lambda width, classes: GCNII(width, 64, 16, classes, 0.5),
    "GCN2Conv 16 x 64, no dropout": lambda width, classes: GCNII(width, 64, 16, classes, 0.0),
    "GraphSAGE 2 x 64": lambda width, classes: GraphSAGE(width, 64, 2, classes, dropout=0.5),
}


def gradients(model: nn.Module, graph: GraphData) -> list[Tensor]:
    """Scores and the gradients of every parameter, without dropout."""
    model.eval()
    scores = model(graph.dense_x, graph.edge_index)
    loss = F.cross_entropy(scores[graph.train_mask], graph.y[graph.train_mask])
    found = [scores.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    model.train()
    return found


def difference(model: nn.Module, other: nn.Module, graph: GraphData) -> float:
    """The largest, in norm, relative to PyG's."""
    gradients(other, graph)  # the second call has its features sparse
    return relative(gradients(model, graph), gradients(other, graph))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, graph: GraphData) -> None:
    optimizer.zero_grad()
    scores = model(graph.dense_x, graph.edge_index)
    F.cross_entropy(scores[graph.train_mask], graph.y[graph.train_mask]).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=["cora", "pubmed"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--root", type=Path, default=None, help="data folder; default: ABKD_DATA")
    parser.add_argument("--out", type=Path, default=result("accelerate"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.datasets:
        graph = data.load(name, root=options.root)
        for kind, make in MODELS.items():
            torch.manual_seed(0)
            theirs = make(graph.num_features, graph.num_classes)
            sides = {"pyg": theirs, "accelerated": accelerate(copy.deepcopy(theirs))}
            error = difference(*sides.values(), graph)
            assert error < 1e-4, f"{name} {kind}: {error}"
            calls = {}
            for side, model in sides.items():
                optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
                calls[side] = partial(step, model, optimizer, graph)
            times = take_turns(calls, options.rounds)
            medians = {side: found["median_ms"] for side, found in times.items()}
            ratio = medians["pyg"] / medians["accelerated"]
            print(f"{name} {kind}: {medians} {ratio:.1f}x, difference {error:.1e}", flush=True)
            rows.append({"dataset": name, "model": kind, "difference": error, "sides": times})
    write_json(options.out, threads=options.threads, rows=rows)


if __name__ == "__main__":
    main()
