"""Baseline `eager`: what one writes first. One matmul a layer, then D row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prepare(layers: Sequence[Tensor]) -> list[Tensor]:
    """The teacher as this baseline keeps it: one [N, d_i] tensor a layer."""
    return list(layers)


def layer_pair(
    teacher: list[Tensor],
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """mean(A * D) and D [T, S], D_ij = 1/(N r) sum_v |t_iv M_i - s_jv N_j|^2."""
    s = torch.stack([h @ n for h, n in zip(student_states, student_maps, strict=True)])
    rows = [(t @ m - s).square().mean((1, 2)) for t, m in zip(teacher, teacher_maps, strict=True)]
    dissimilarity = torch.stack(rows)
    return (attention * dissimilarity).mean(), dissimilarity.detach()


def layer_pair_indexed(
    teacher: list[Tensor],
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The same with the teacher's projections stacked too, and row i indexed out of the stack.

    As natural to write, and far slower: the backward of every ``p[i]`` fills a zero tensor of the
    size of the whole stack, [T, N, r].
    """
    p = torch.stack([t @ m for t, m in zip(teacher, teacher_maps, strict=True)])
    s = torch.stack([h @ n for h, n in zip(student_states, student_maps, strict=True)])
    rows = [(p[i] - s).square().mean((1, 2)) for i in range(p.size(0))]
    dissimilarity = torch.stack(rows)
    return (attention * dissimilarity).mean(), dissimilarity.detach()
