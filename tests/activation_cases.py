"""Students whose activations are stored in different ways, and the comparison of such runs."""

from dataclasses import replace

import torch
from helpers import small_data
from step_cases import STUDENTS
from test_captured_step import assert_same_run
from test_trainer import QUICK
from torch import nn

from abkd_fast import ABKD, KD, Distiller, TeacherCache
from abkd_fast.nn import GAT, GCN, GCNII, GATConv, GraphSAGE
from abkd_fast.nn.linear import dropout

CONFIG = replace(QUICK, epochs=5)
RECOMPUTE = replace(CONFIG, activations="recompute")


class Own(nn.Module):
    """Of torch's modules, with random numbers that our seeds do not draw."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.attention = Drawing(6)
        self.last = nn.Linear(6, 3)

    hidden_layers = ("block", "attention")

    def forward(self, x):
        return self.last(self.attention(self.block(x)))


class Seeded(nn.Module):
    """Whose layers draw their seeds themselves."""

    hidden_layers = ("convs.*",)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(GATConv(4, 4, dropout=0.4) for _ in range(2))
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x, graph):
        h = self.first(x)
        for conv in self.convs:
            h = conv(h, graph).relu()
        return self.last(h)


class Drawing(nn.Module):
    """A layer that drops inside, by a seed of its own and by torch's generator."""

    def __init__(self, width):
        super().__init__()
        self.lin, self.drop = nn.Linear(width, width), nn.Dropout(0.2)

    def forward(self, x):
        return torch.tanh(self.drop(self.lin(dropout(x, 0.4, self.training))))


MODELS = {
    **STUDENTS,
    "gcn-norm": lambda: GCN(8, 4, 3, 3, dropout=0.3, norm="batch_norm"),
    "sage": lambda: GraphSAGE(8, 4, 3, 3, dropout=0.3),
    "sage-max": lambda: GraphSAGE(8, 4, 2, 3, dropout=0.3, aggr="max"),
    "gat": lambda: GAT(8, 4, 3, 3, dropout=0.3, heads=2, residual=True),
    "gatv2": lambda: GAT(8, 4, 2, 3, dropout=0.3, heads=2, v2=True, norm="batch_norm"),
    "own": Own,
    "drawing": lambda: Seeded(),
}


def run(model, config, kind=Distiller, data=None, objective=True, **options):
    """A run and what it left: its result, and the gradients of its last step."""
    data = data or small_data()
    torch.manual_seed(0)
    cache = TeacherCache.build(GCNII(8, 6, 4, 3), data.training) if objective else None
    loss = KD() + ABKD(attention_dim=8) if objective else None
    torch.manual_seed(1)
    student = model()
    distiller = kind(cache, student, data, loss, config=config, callbacks=(), **options)
    result = distiller.fit()
    return result, {name: p.grad for name, p in student.named_parameters()}


def assert_same(a, b):
    assert_same_run(a[0], b[0])
    assert a[1].keys() == b[1].keys() and len(a[1]) > 0
    for name, gradient in a[1].items():
        assert torch.equal(gradient, b[1][name]), name
