"""A one-layer student's first weight from the attention map."""

import pytest
import torch
from helpers import small_data

from abkd_fast import TeacherCache
from abkd_fast.distill import initialize_from_attention
from abkd_fast.nn import GCNII


def made(depth=4, width=6, small=3, **options):
    data, teacher = small_data(), GCNII(8, width, depth, 3).eval()
    return data, teacher, GCNII(8, small, 1, 3, **options).eval(), TeacherCache.build(teacher, data)


def test_a_teacher_of_one_layer_is_copied():
    data, teacher, student, cache = made(depth=1, small=6)
    initialize_from_attention(student, teacher, cache, torch.ones(1, 1))
    torch.testing.assert_close(student(data.x, data.graph), teacher(data.x, data.graph))


def test_the_layer_is_the_weighted_mean_on_the_largest_features():
    _, teacher, student, cache = made()
    attention = torch.tensor([[0.5], [0.0], [1.5], [2.0]])
    initialize_from_attention(student, teacher, cache, attention)
    shares = [0.125, 0.0, 0.375, 0.5]
    energy = sum(a * cache.layer(i).square().mean(0) for i, a in enumerate(shares))
    chosen = sorted(range(6), key=lambda f: -float(energy[f]))[:3]
    chosen.sort()
    mean = sum(
        a * ((1 - conv.beta) * torch.eye(6) + conv.beta * conv.weight1)
        for a, conv in zip(shares, teacher.convs, strict=True)
    )
    conv = student.convs[0]
    applied = (1 - conv.beta) * torch.eye(3) + conv.beta * conv.weight1
    torch.testing.assert_close(applied, mean[chosen][:, chosen])
    torch.testing.assert_close(student.lins[0].weight, teacher.lins[0].weight[chosen])
    torch.testing.assert_close(student.lins[1].weight, teacher.lins[1].weight[:, chosen])
    torch.testing.assert_close(student.lins[1].bias, teacher.lins[1].bias)


def test_a_shared_layer_and_several_columns():
    _, teacher, student, cache = made()
    shared = GCNII(8, 3, 5, 3, shared=True)
    attention = torch.rand(4, 5)
    initialize_from_attention(shared, teacher, cache, attention)
    initialize_from_attention(student, teacher, cache, attention.sum(1, keepdim=True))
    for mine, other in zip(shared.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": torch.ones(3, 1)}, r"attention must be \[T=4, S\], got \[3, 1\]"),
        ({"attention": -torch.ones(4, 1)}, "attention must be >= 0 with a positive sum"),
        ({"student": GCNII(8, 3, 2, 3)}, "student must have one layer's weight, got 2"),
        ({"student": GCNII(8, 7, 1, 3)}, "student must have the teacher's inputs and classes"),
        ({"student": GCNII(9, 3, 1, 3)}, "student must have the teacher's inputs and classes"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    _, teacher, student, cache = made()
    arguments = {"student": student, "attention": torch.ones(4, 1)} | change
    with pytest.raises(ValueError, match=message):
        initialize_from_attention(teacher=teacher, cache=cache, **arguments)
    with pytest.raises(ValueError, match="cache must hold the 4 layers of width 6, got"):
        few = TeacherCache.from_states([torch.rand(60, 6)])
        initialize_from_attention(student, teacher, few, torch.ones(4, 1))
