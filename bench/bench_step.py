"""Time whole training steps and a student's forward pass against PyTorch Geometric.

    ABKD_DATA=data python bench/bench_step.py [--rounds 5] [--cases "teacher cora" ...]

Three kinds of cases on Cora and PubMed, full batch, float32, the same weights on every side:
"teacher" is one training step of GCNII 64x64 (forward, cross-entropy, backward, Adam); "distil"
one KD + ABKD step of a 4x4 student, the teacher's states cached on every side, PyG's with each
loss of bench/peers; "latency" a forward pass of the 4x4 student in eval mode. Losses are compared
before anything is timed.
Every case runs in a fresh process per allocator (see bench/harness.py), the sides in turns.
"Extra MB" is the peak resident set of a fresh process per side, less what it held before.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import costs
import torch
import torch.nn.functional as F
from breakdown import breakdown
from harness import (
    ALLOCATORS,
    child,
    machine_limits,
    peak_above_data,
    take_turns,
    write_json,
)
from machines import result
from peers import best, eager, pyg
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from abkd_fast import ABKD, KD, Recorder, TeacherCache, data, ops
from abkd_fast.nn import GCNII

TEACHERS = {"cora": {"dropout": 0.6, "theta": 0.5}, "pubmed": {"dropout": 0.5, "theta": 0.4}}
CASES = [f"{kind} {name}" for kind in ("teacher", "distil", "latency") for name in TEACHERS]
Step = Callable[[], Tensor]
LOSSES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {  # what PyG's models are distilled with
    "eager": eager.layer_pair,
    "eager indexed": eager.layer_pair_indexed,
    "best": best.layer_pair,
    "best compiled": torch.compile(best.layer_pair, dynamic=False),
}


def sides_of(kind: str) -> list[str]:
    """The sides of one kind of case; torch_sparse takes part where it is installed."""
    sparse = ["pyg csr"]
    if importlib.util.find_spec("torch_sparse") is not None:
        sparse.append("pyg torch_sparse")
    if kind == "distil":
        return ["abkd_fast", *(f"{s} + {loss}" for loss in LOSSES for s in sparse)]
    return ["abkd_fast", *sparse]


@dataclass
class Case:
    """One case: data, weights and caches, each made when a side first asks for it."""

    kind: str
    dataset: str
    dropout: float | None = None  # None: as trained

    @cached_property
    def data(self) -> data.GraphData:
        loaded = data.load(self.dataset)
        loaded.graph.gcn_norm().t()
        return loaded

    def options(self, size: tuple[int, int]) -> dict[str, Any]:
        dropout = TEACHERS[self.dataset]["dropout"] if size[0] == 64 else 0.1
        return {
            "in_channels": self.data.num_features,
            "hidden_channels": size[1],
            "num_layers": size[0],
            "out_channels": self.data.num_classes,
            "dropout": dropout if self.dropout is None else self.dropout,
            "alpha": 0.1,
            "theta": TEACHERS[self.dataset]["theta"],
        }

    @property
    def size(self) -> tuple[int, int]:
        return (64, 64) if self.kind == "teacher" else (4, 4)

    def model(self, size: tuple[int, int]) -> GCNII:
        torch.manual_seed(0)
        return GCNII(**self.options(size))

    def pyg_model(self) -> pyg.GCNII:
        model = pyg.GCNII(**self.options(self.size))
        model.load_state_dict(self.model(self.size).state_dict())
        return model

    @cached_property
    def cache(self) -> TeacherCache:
        cache = TeacherCache.build(self.model((64, 64)).eval(), self.data)
        assert cache.moments is not None
        return cache

    def loss(self, logits: Tensor) -> Tensor:
        mask = self.data.train_mask
        return F.cross_entropy(logits[mask], self.data.y[mask])

    def our_loss(self, logits: Tensor) -> Tensor:
        return ops.kl_div(logits, self.data.y, self.data.train_mask)[0]


def make_step(case: Case, side: str) -> Step:
    """One call does all the work of the case and returns the loss (or the class scores)."""
    ours = side == "abkd_fast"
    make = {"teacher": _teacher, "distil": _distil, "latency": _latency}[case.kind]
    return make(case, None if ours else side)


def _prepared(case: Case, side: str) -> tuple[pyg.GCNII, Tensor, object]:
    sparse = "torch_sparse" if "torch_sparse" in side else "csr"
    adj_t = pyg.prepare(case.data.edge_index, case.data.num_nodes, sparse)
    return case.pyg_model(), case.data.dense_x, adj_t


def _train(parameters: list[nn.Parameter], loss: Step) -> Step:
    optimizer = torch.optim.Adam(parameters, lr=0.01, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _teacher(case: Case, side: str | None) -> Step:
    if side is None:
        model = case.model(case.size)
        return _train(
            list(model.parameters()), lambda: case.our_loss(model(case.data.x, case.data.graph))
        )
    peer, x, adj_t = _prepared(case, side)
    return _train(list(peer.parameters()), lambda: case.loss(peer(x, adj_t)[0]))


def _objective(case: Case) -> ABKD:
    """Method as published: every map trained; the peers take their weights from here."""
    torch.manual_seed(1)
    objective = ABKD(attention_dim=64)
    objective.setup(case.cache, [4] * 4, case.data.graph)
    return objective


def _distil(case: Case, side: str | None) -> Step:
    abkd, kd = _objective(case), KD()
    if side is None:
        model = case.model(case.size)
        recorder = Recorder(model)

        def loss() -> Tensor:
            capture = recorder.run(case.data.x, case.data.graph)
            total = kd.label_weight * case.our_loss(capture.logits)
            return total + kd(capture, case.cache) + abkd(capture, case.cache)

        return _train([*model.parameters(), *abkd.parameters()], loss)
    peer, x, adj_t = _prepared(case, side)
    name = side.split(" + ")[1]
    plain = eager.ABKDLoss(case.cache.widths, [4] * 4, 64, LOSSES[name])
    eager.copy_maps(abkd, plain)
    layers = [s.contiguous() for s in case.cache.states.split(case.cache.widths, 1)]
    means = [state.mean(0) for state in layers]
    states = best.prepare(layers) if name.startswith("best") else eager.prepare(layers)
    del layers
    scores = case.cache.logits.log_softmax(1)

    def peer_loss() -> Tensor:
        logits, hidden = peer(x, adj_t)
        divergence = F.kl_div(logits.log_softmax(1), scores, reduction="batchmean", log_target=True)
        label = (1.0 - kd.alpha) * case.loss(logits)
        return label + kd.alpha * divergence + plain(states, means, hidden)

    return _train([*peer.parameters(), *plain.parameters()], peer_loss)


def _latency(case: Case, side: str | None) -> Step:
    if side is None:
        model = case.model(case.size).eval()
        return torch.inference_mode()(lambda: model(case.data.x, case.data.graph))
    peer, x, adj_t = _prepared(case, side)
    peer.eval()
    return torch.inference_mode()(lambda: peer(x, adj_t)[0])


def check(kind: str, dataset: str) -> dict[str, float]:
    """Largest relative difference from ours, over three steps without dropout."""
    values = {}
    for side in sides_of(kind):
        step = make_step(Case(kind, dataset, dropout=0.0), side)
        values[side] = torch.stack([step() for _ in range(3)])
    ours = values["abkd_fast"]
    errors = {side: float((v - ours).norm() / ours.norm()) for side, v in values.items()}
    for side, error in errors.items():
        if not error <= 1e-4:
            raise SystemExit(f"{side} differs from abkd_fast by {error:.2g} in {kind} {dataset}")
    return errors


def work(kind: str, dataset: str) -> dict[str, float]:
    """What one call of our side costs at least; the distilled student's teacher has 64 layers."""
    case = Case(kind, dataset)
    loaded = case.data
    nodes, classes = loaded.num_nodes, loaded.num_classes
    edges, inputs = loaded.graph.gcn_norm().num_edges, loaded.x.num_edges
    first = costs.spmm(nodes, inputs, case.size[1], backward=kind != "latency")
    cost = costs.gcnii(case.size, nodes, edges, first, classes, kind != "latency")
    if kind != "latency":
        cost += costs.adam(sum(p.numel() for p in case.model(case.size).parameters()))
    if kind == "distil":
        cost += costs.layer_pair(nodes, 64 * 64, 4 * 4, r=0, size=4, passes=2)
        cost += costs.adam(sum(p.numel() for p in _objective(case).parameters()))
    return cost.row()


def bench(kind: str, dataset: str, rounds: int) -> list[dict[str, Any]]:
    """All rows of one case."""
    common = ["--cases", f"{kind} {dataset}"]
    errors = child(__file__, [*common, "--check"])
    sides = sides_of(kind)
    memory = {side: child(__file__, [*common, "--memory", side]) for side in sides}
    ours = work(kind, dataset) | {"breakdown": child(__file__, [*common, "--breakdown"])}
    rows = []
    for allocator, variables in ALLOCATORS.items():
        timed = child(__file__, [*common, "--time", "--rounds", str(rounds)], variables)
        for side in sides:
            row = {"case": kind, "dataset": dataset, "allocator": allocator, "side": side}
            row |= timed[side] | {"relative_error": errors[side]}
            row |= ours if side == "abkd_fast" else {}
            rows.append(row | (memory[side] if allocator == "default" else {}))
    return rows


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="whole steps, CPU, float32")
    for name in ("case", "allocator", "side"):
        table.add_column(name)
    for name in ("median ms", "min", "max", "times ours", "faults", "extra MB", "error"):
        table.add_column(name, justify="right")
    for row in rows:
        same = [r for r in rows if all(r[k] == row[k] for k in ("case", "dataset", "allocator"))]
        ours = next(r for r in same if r["side"] == "abkd_fast")
        table.add_row(
            f"{row['case']} {row['dataset']}", row["allocator"], row["side"],
            f"{row['median_ms']:.2f}", f"{min(row['samples_ms']):.2f}",
            f"{max(row['samples_ms']):.2f}", f"{row['median_ms'] / ours['median_ms']:.1f}x",
            f"{row['minor_faults']:.0f}",
            f"{row['above_data_mb']:.0f}" if "peak_mb" in row else "",
            f"{row['relative_error']:.0e}",
            end_section=row is same[-1],
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=result("step"))
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--time", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--breakdown", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kind, dataset = options.cases[0].split()
    if options.check:
        print(json.dumps(check(kind, dataset)))
    elif options.time:
        case = Case(kind, dataset)
        steps = {side: make_step(case, side) for side in sides_of(kind)}
        print(json.dumps(take_turns(steps, options.rounds)))
    elif options.memory:
        print(json.dumps(peak_above_data(make_step(Case(kind, dataset), options.memory))))
    elif options.breakdown:
        print(json.dumps(breakdown(make_step(Case(kind, dataset), "abkd_fast"))))
    else:
        limits = machine_limits()
        rows = [row for c in options.cases for row in bench(*c.split(), options.rounds)]
        show(rows, Console(width=140))
        write_json(options.out, machine=limits, rows=rows)


if __name__ == "__main__":
    main()
