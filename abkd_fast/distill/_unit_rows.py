"""ABKD on projected rows of unit length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_BLOCK = 4096


def unit_rows(
    teacher: Tensor,
    states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Mean of A * D with projected rows scaled to length 1, in node blocks.

    Every block is recomputed in the backward, so memory stays at one block.
    """
    num_nodes, r = teacher.size(0), attention.new_tensor(float(teacher_maps[0].size(1)))
    total = attention.new_zeros(attention.shape)
    for start in range(0, num_nodes, _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = [state[rows] for state in states]
        total = total + checkpoint(
            _block, teacher[rows], block, teacher_maps, student_maps, use_reentrant=False
        )
    dissimilarity = total / (num_nodes * r)
    return (attention * dissimilarity).mean(), dissimilarity


def _block(
    teacher: Tensor,
    states: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> Tensor:
    """sum_v |p_iv/|p_iv| - s_jv/|s_jv||^2 for one block, [T, S]."""
    normalize = nn.functional.normalize
    parts = teacher.to(teacher_maps[0].dtype).split([m.size(0) for m in teacher_maps], dim=1)
    p = [normalize(t @ m, dim=1) for t, m in zip(parts, teacher_maps, strict=True)]
    s = [normalize(h @ m, dim=1) for h, m in zip(states, student_maps, strict=True)]
    return torch.stack([torch.stack([(pi - sj).square().sum() for sj in s]) for pi in p])
