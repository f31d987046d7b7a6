"""A first weight for a student of one layer, out of the teacher's layers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from abkd_fast._checks import check_finite
from abkd_fast.nn import GCNII, GCN2Conv, Linear
from abkd_fast.teacher import TeacherCache


@torch.no_grad()
def initialize_from_attention(
    student: GCNII, teacher: GCNII, cache: TeacherCache, attention: Tensor
) -> GCNII:
    r"""Start a one-layer GCNII as the mean of the teacher's layers, weighted by the attention map.

    A layer applies M_i = (1 - b_i) I + b_i W_i to what it has aggregated. With a_i the share of
    teacher layer i in the map's mass, the student's weight is drawn up so that its layer applies
    sum_i a_i M_i, on the d_s of the teacher's d_t features that are largest there, by
    sum_i a_i mean_v h_iv^2; its two linear layers are the teacher's on these features. Features
    are chosen, not mixed, because ReLU looks at each of them alone.

    This is ours: reviewers of the paper asked for it, and nothing published says how.
    A map with ``softmax_over="student"`` gives all of a one-layer student's teacher layers equal
    shares; one that says more has ``softmax_over="teacher"``, and comes from a former run
    (``DistillResult.attention``).

    Args:
        student: of one layer, or of one that it shares (``shared=True``); changed in place.
        teacher: as wide as the student or wider, with the same x and classes.
        cache: the teacher's states, of every layer.
        attention: [T, S], >= 0.

    Returns:
        The student.

    Raises:
        ValueError: names the argument that does not fit.
    """
    weights = _shares(attention, teacher)
    chosen = _largest(weights, cache, student, teacher)
    if len(student.convs) != 1:
        raise ValueError(f"student must have one layer's weight, got {len(student.convs)}")
    layers = _convs(teacher)
    total = torch.zeros_like(layers[0].weight1)
    identity = torch.eye(total.size(0), dtype=total.dtype, device=total.device)
    for layer, weight in enumerate(weights):
        beta = teacher.betas[layer]
        total += weight * ((1.0 - beta) * identity + beta * layers[layer].weight1)
    # At the depth where its own map is the strongest; deeper uses of a shared layer do less.
    beta = student.betas[0]
    if beta == 0:
        raise ValueError("student must have theta > 0, got 0: its layer's weight is never applied")
    part = (total - (1.0 - beta) * identity)[chosen][:, chosen]
    _convs(student)[0].weight1.copy_(part / beta)
    for mine, theirs, rows in zip(_linears(student), _linears(teacher), (True, False), strict=True):
        mine.weight.copy_(theirs.weight[chosen] if rows else theirs.weight[:, chosen])
        mine.bias.copy_(theirs.bias[chosen] if rows else theirs.bias)
    return student


def _shares(attention: Tensor, teacher: GCNII) -> Tensor:
    """What part of the map's mass every teacher layer has, [T]."""
    layers = teacher.num_layers
    if attention.dim() != 2 or attention.size(0) != layers:
        raise ValueError(f"attention must be [T={layers}, S], got {list(attention.shape)}")
    check_finite("attention", attention)
    if bool((attention < 0).any()) or not bool(attention.sum() > 0):
        raise ValueError("attention must be >= 0 with a positive sum")
    return (attention.sum(1) / attention.sum()).to(_convs(teacher)[0].weight1)


def _largest(weights: Tensor, cache: TeacherCache, student: GCNII, teacher: GCNII) -> Tensor:
    """The features [d_s], ascending, with the largest weighted mean square."""
    wide, narrow = _convs(teacher)[0].channels, _convs(student)[0].channels
    shapes = [list(lin.weight.shape) for lin in (*_linears(student), *_linears(teacher))]
    if cache.widths != [wide] * teacher.num_layers:
        raise ValueError(
            f"cache must hold the {teacher.num_layers} layers of width {wide}, got {cache.widths}"
        )
    if narrow > wide or shapes[0][1] != shapes[2][1] or shapes[1][0] != shapes[3][0]:
        raise ValueError(
            f"student must have the teacher's inputs and classes, and be no wider, got linear "
            f"layers {shapes[:2]} and {shapes[2:]}"
        )
    squares = torch.stack([second.diagonal() for second in cache.moments.second])
    order = (weights.to(squares) @ squares).argsort(descending=True, stable=True)
    return order[:narrow].sort().values.to(weights.device)


def _convs(model: GCNII) -> list[GCN2Conv]:
    """The layer of every depth."""
    convs = [cast(GCN2Conv, conv) for conv in model.convs]
    return [convs[depth % len(convs)] for depth in range(model.num_layers)]


def _linears(model: GCNII) -> list[Linear]:
    return [cast(Linear, lin) for lin in model.lins]
