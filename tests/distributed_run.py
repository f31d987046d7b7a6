"""What a process of a distributed run does in the tests; started by torchrun.

    torchrun --nproc-per-node 2 tests/distributed_run.py CASE OUT

Writes what every epoch left behind: scalars, and the gradients of all parameters.
"""

import sys
from contextlib import contextmanager
from dataclasses import replace

import torch

from abkd_fast import ABKD, KD, Callback, CSRGraph, Distiller, TeacherCache, TrainConfig
from abkd_fast.batches import ClusterBatches, LoaderBatches, NeighborBatches
from abkd_fast.data import dcsbm
from abkd_fast.distributed import DistributedDistiller, HaloGraph, World
from abkd_fast.distributed.batches import RankBatches
from abkd_fast.distributed.part import PartData
from abkd_fast.nn import GAT, GCN, GCNII, MLP, GraphSAGE
from abkd_fast.ops import dropout, spmm
from abkd_fast.testing import random_graph

CONFIG = TrainConfig(epochs=20, patience=None, checkpoint_every=5, lr=0.01)

# Narrow students take the moment form of layer_pair, wide ones the projection form.
STUDENTS = {
    "gcn-moment": lambda: GCN(12, 4, 3, 3, dropout=0.0),
    "gcn-projection": lambda: GCN(12, 24, 3, 3, dropout=0.0),
    "gcn-dropout": lambda: GCN(12, 4, 3, 3, dropout=0.3),
    "gcnii-moment": lambda: GCNII(12, 4, 2, 3, dropout=0.0, init="xavier"),
    "gcnii-projection": lambda: GCNII(12, 24, 2, 3, dropout=0.0, init="xavier"),
    "sage": lambda: GraphSAGE(12, 6, 3, 3, dropout=0.0),
    "sage-max": lambda: GraphSAGE(12, 6, 2, 3, dropout=0.0, aggr="max"),
    "mlp": lambda: MLP(12, 6, 3, 3, dropout=0.0),
}
OBJECTIVES = {
    "both": lambda: KD() + ABKD(attention_dim=16, normalize="standardize"),
    "frozen": lambda: ABKD(attention_dim=16, freeze_teacher_map=True),
    "pool": lambda: ABKD(attention_dim=8, pool=True, normalize="standardize"),
    "rows": lambda: ABKD(attention_dim=8, normalize="rows"),
    "none": lambda: None,
}
BATCHES = {
    "parts": lambda data: None,
    "neighbors": lambda data: NeighborBatches(data, [-1, -1], batch_size=30, seed=3),
    "clusters": lambda data: ClusterBatches(data, 12, parts_per_batch=2, seed=3),
}


class Keep(Callback):
    """The gradients and scalars of every epoch's last step."""

    def __init__(self):
        self.records, self.gradients = [], []

    def on_epoch(self, distiller, record):
        self.records.append({k: v for k, v in record.items() if k != "step_ms"})
        modules = {"student": distiller.student, "objective": distiller.objective}
        self.gradients.append(
            {
                f"{name}.{key}": p.grad.clone()
                for name, module in modules.items()
                if module is not None
                for key, p in module.named_parameters()
                if p.grad is not None
            }
        )


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build(case, world=None, out=None, callbacks=(), **changes):
    """A run of ``case``, in one process without a world.

    ``case`` = "STUDENT OBJECTIVE BATCHES DTYPE", and perhaps how activations are stored.
    """
    student, objective, batches, dtype, *stored = case.split()
    if stored:
        changes["activations"] = stored[0]
    data = dcsbm(240, 3, num_features=12, seed=0)
    x = data.x.to(dtype=getattr(torch, dtype))
    data = replace(data, x=x)
    torch.manual_seed(0)
    teacher = GCNII(12, 8, 5, 3)
    cache = TeacherCache.build(teacher, data, dtype=getattr(torch, dtype))
    torch.manual_seed(1)
    arguments = cache, STUDENTS[student](), data, OBJECTIVES[objective]()
    if objective == "none":
        arguments = None, *arguments[1:]
    options = dict(
        config=replace(CONFIG, **changes),
        out=out,
        callbacks=callbacks,
        batches=BATCHES[batches](data),
    )
    if world is None:
        return Distiller(*arguments, **options)
    return DistributedDistiller(world, *arguments, **options)


def fit(case, world=None, out=None, **changes):
    """What the run of ``case`` left behind."""
    keep = Keep()
    with default_dtype(getattr(torch, case.split()[3])):
        result = build(case, world, out, [keep], **changes).fit()
    return {
        "records": keep.records,
        "gradients": keep.gradients,
        "student": result.student.state_dict(),
        "dissimilarity": result.dissimilarity,
        "test": result.metrics["student"]["test"],
    }


def halo(world):
    """Aggregation over a part, with dropped features and its gradient, beside the whole graph's.

    Pairs of (found on this rank, its rows of the whole).
    """
    whole = random_graph(90, mean_degree=5, dtype=torch.float64, power_law=True, seed=4)
    part = torch.randint(world.size, (90,), generator=torch.Generator().manual_seed(5))
    graph = HaloGraph(whole, part, world)
    x = torch.randn(90, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    pairs = {}
    for name in ("self", "gcn_norm", "row_norm"):
        mine, all_of_it = (g if name == "self" else getattr(g, name)() for g in (graph, whole))
        own = x[graph.nodes].requires_grad_()
        out = spmm(mine, mine.sources(own)[0])
        expected = x.clone().requires_grad_()
        target = spmm(all_of_it, expected)
        weight = torch.arange(90.0, dtype=torch.float64)[:, None]
        (out * out * weight[graph.nodes]).sum().backward()
        (target * target * weight).sum().backward()
        pairs[name] = out.detach(), target.detach()[graph.nodes]
        pairs[f"gradient of {name}"] = own.grad, expected.grad[graph.nodes]
    seed = torch.tensor(3 + world.rank)
    sources, left = graph.sources(x[graph.nodes], 0.5, seed, 2)
    dropped = torch.zeros(90, 7, dtype=torch.float64)
    dropped[graph.nodes] = dropout(x[graph.nodes], 0.5, seed, 2)
    pairs["dropped"] = spmm(graph, sources), spmm(whole, world.sum_(dropped))[graph.nodes]
    pairs["left to drop"] = torch.tensor(left), torch.tensor(0.0)
    return pairs


def refused(world):
    """Messages of what cannot be shared out."""
    data = dcsbm(240, 3, num_features=12, seed=0)
    masked = ABKD(mask=data.train_mask)
    loader = LoaderBatches(data, [])
    many = CSRGraph.from_edge_index(torch.tensor([[0], [0]]), 1)
    calls = {
        "layer": lambda: DistributedDistiller(world, None, GAT(12, 8, 2, 3), data),
        "norm": lambda: DistributedDistiller(
            world, None, GCN(12, 8, 2, 3, norm="batch_norm"), data
        ),
        "mask": lambda: DistributedDistiller(
            world, GCN(12, 8, 2, 3), GCN(12, 8, 2, 3), data, masked
        ),
        "capture": lambda: DistributedDistiller(
            world, None, GCN(12, 8, 2, 3), data, capture_step=True
        ),
        "inductive": lambda: DistributedDistiller(world, None, GCN(12, 8, 2, 3), data.inductive()),
        "loader": lambda: RankBatches(loader, world),
        "few": lambda: RankBatches(NeighborBatches(data, [2], nodes=torch.tensor([1])), world),
        "empty part": lambda: HaloGraph(many, torch.zeros(1, dtype=torch.int64), world),
        "edge_index": lambda: PartData.of(data, world).edge_index,
        "device": lambda: PartData.of(data, world).graph.to("meta"),
    }
    messages = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def main(cases, out):
    with World.join(timeout=60) as world:
        found = {case: fit(case, world) for case in cases.split(",")}
        found |= {"halo": halo(world), "refused": refused(world)}
        torch.save(found, f"{out}.{world.rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
