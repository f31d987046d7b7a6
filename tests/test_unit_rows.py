"""ABKD's distance between projected rows of unit length, against its definition."""

import pytest
import torch
from torch.nn import functional as F

from abkd_fast.distill import _unit_rows
from abkd_fast.distill._unit_rows import unit_rows_distance

WIDTHS, STUDENT, R = [4, 2, 3], [3, 5], 6


def problem(num_nodes, dtype=torch.float64):
    torch.manual_seed(0)
    teacher = torch.randn(num_nodes, sum(WIDTHS), dtype=dtype)
    states = [torch.randn(num_nodes, d, dtype=dtype, requires_grad=True) for d in STUDENT]
    attention = torch.rand(len(WIDTHS), len(STUDENT), dtype=dtype, requires_grad=True)
    maps = [torch.randn(sum(w), R, dtype=dtype, requires_grad=True) for w in (WIDTHS, STUDENT)]
    return teacher, states, attention, *maps


def by_hand(teacher, states, nodes, attention, teacher_map, student_map):
    rows = slice(None) if nodes is None else nodes
    layers = teacher[rows].split(WIDTHS, 1)
    d = torch.zeros_like(attention)
    for i, (t, m) in enumerate(zip(layers, teacher_map.split(WIDTHS), strict=True)):
        for j, (h, n) in enumerate(zip(states, student_map.split(STUDENT), strict=True)):
            p, s = F.normalize(t @ m, dim=1), F.normalize(h[rows] @ n, dim=1)
            d[i, j] = (p - s).square().sum(1).mean() / R
    return (attention * d).mean(), d


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_every_gradient(block, masked, monkeypatch):
    monkeypatch.setattr(_unit_rows, "_BLOCK_ELEMENTS", block)
    teacher, states, *rest = problem(200)
    nodes = torch.arange(0, 200, 3) if masked else None
    expected, d = by_hand(teacher, states, nodes, *rest)
    loss, got = unit_rows_distance(teacher, WIDTHS, states, nodes, *rest)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(got, d, rtol=1e-12, atol=0)
    inputs = [*states, *rest]
    wanted = torch.autograd.grad(3 * expected, inputs)
    for mine, theirs in zip(torch.autograd.grad(3 * loss, inputs), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_frozen_teacher_map_gets_no_gradient():
    teacher, states, attention, teacher_map, student_map = problem(20)
    fixed = teacher_map.detach()
    loss, _ = unit_rows_distance(teacher, WIDTHS, states, None, attention, fixed, student_map)
    expected, _ = by_hand(teacher, states, None, attention, fixed, student_map)
    inputs = [*states, attention, student_map]
    for mine, theirs in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_rows_of_zeros_count_zero_and_have_no_gradient():
    """A dead ReLU's row has no direction; its gradient must not be 1 / epsilon."""
    teacher, states, *rest = problem(50)
    with torch.no_grad():
        states[1][7] = 0.0
        teacher[9] = 0.0
    loss, d = unit_rows_distance(teacher, WIDTHS, states, None, *rest)
    torch.testing.assert_close(d, by_hand(teacher, states, None, *rest)[1].detach())
    loss.backward()
    assert not states[1].grad[7].any() and bool(states[0].grad[7].any())
    assert all(bool(x.grad.isfinite().all()) for x in [*states, *rest])


def test_equal_directions_have_distance_zero():
    """In float32 the expanded square ends near 0, never below."""
    teacher, states, attention, *_ = problem(64, torch.float32)
    maps = [torch.ones(sum(w), R) for w in (WIDTHS, STUDENT)]
    states = [h.abs() for h in states]
    _, d = unit_rows_distance(teacher.abs(), WIDTHS, states, None, attention, *maps)
    assert bool((d >= 0).all()) and d.max() < 1e-6
