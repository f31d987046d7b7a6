"""Baseline `best`: batched matmuls and the expanded square, left to autograd. Equal widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prepare(layers: Sequence[Tensor]) -> Tensor:
    """The teacher as this baseline keeps it: stacked once, [T, N, d]."""
    return torch.stack(list(layers))


def layer_pair(
    teacher: Tensor,
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """mean(A * D) and D [T, S] from |p|^2 + |s|^2 - 2 <p, s>."""
    p = torch.bmm(teacher, torch.stack(list(teacher_maps))).flatten(1)  # [T, N r]
    s = torch.bmm(torch.stack(list(student_states)), torch.stack(list(student_maps))).flatten(1)
    squares = p.square().sum(1)[:, None] + s.square().sum(1)
    dissimilarity = (squares - 2 * p @ s.t()) / p.size(1)
    return (attention * dissimilarity).mean(), dissimilarity.detach()
