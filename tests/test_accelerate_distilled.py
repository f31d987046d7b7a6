"""Accelerated PyG models as teachers and students."""

import copy

import pytest
import torch
from helpers import small_data
from torch import nn

from abkd_fast import (
    ABKD,
    KD,
    Distiller,
    TrainConfig,
    accelerate,
    accelerated,
    acceleration,
    decelerate,
)

pyg = pytest.importorskip("torch_geometric.nn", reason="torch-geometric is not installed")


class Teacher(nn.Module):
    """GCNII of PyG's layers."""

    def __init__(self, in_channels, width, num_layers, out_channels):
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(in_channels, width), nn.Linear(width, out_channels)])
        self.convs = nn.ModuleList(
            pyg.GCN2Conv(width, 0.1, 0.5, layer) for layer in range(1, num_layers + 1)
        )

    def forward(self, x, edge_index):
        h = h_0 = self.lins[0](x).relu()
        for conv in self.convs:
            h = conv(h, h_0, edge_index).relu()
        return self.lins[1](h)


def test_distilling_a_pyg_teacher_into_a_pyg_student():
    data = small_data()
    teacher = accelerate(Teacher(8, 16, 4, 3))
    config = TrainConfig(epochs=80, lr=0.02, patience=None)
    Distiller(None, teacher, data, config=config).fit()
    results = {}
    for fast in (False, True):
        torch.manual_seed(5)
        student = pyg.GCN(8, 8, num_layers=2, out_channels=3)
        student = accelerate(student) if fast else student
        objective = KD(alpha=0.9) + ABKD(beta=1.0)
        layers = {"teacher_layers": "convs.*", "student_layers": "convs.0"}
        results[fast] = Distiller(
            teacher, student, data, objective=objective, config=config, seed=0, **layers
        ).fit()
    assert results[True].attention.shape == (4, 1)
    assert results[True].metrics["student"]["test"] > 60
    student = decelerate(results[True].student)
    assert type(student.convs[0]) is pyg.GCNConv
    expected = results[False].student
    for a, b in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_a_student_distilled_within_the_context_is_pygs_own_afterwards():
    data = small_data()
    teacher = Teacher(8, 16, 3, 3)
    student = pyg.GCN(8, 8, num_layers=2, out_channels=3)
    fresh = copy.deepcopy(student.state_dict())
    with accelerated(teacher), accelerated(student):
        result = Distiller(
            teacher,
            student,
            data,
            objective=KD(alpha=0.9) + ABKD(),
            config=TrainConfig(epochs=5),
            teacher_layers="convs.*",
            student_layers="convs.0",
        ).fit()
    assert acceleration(student).replaced == acceleration(teacher).replaced == []
    assert result.student is student
    assert any(not torch.equal(fresh[key], value) for key, value in student.state_dict().items())
