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
    mask: Tensor | None,
    attention: Tensor,
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Mean of A * D with projected rows scaled to length 1, in node blocks.

    Every block is read and computed again in the backward, so memory stays at one block. The mask
    is [N] bool, or the indices of the nodes that count; the teacher may be in host memory.
    """
    nodes = mask if mask is None or mask.dtype == torch.int64 else mask.nonzero().flatten()
    num_nodes = teacher.size(0) if nodes is None else nodes.numel()
    r = attention.new_tensor(float(teacher_maps[0].size(1)))
    total = attention.new_zeros(attention.shape)
    for start in range(0, num_nodes, _BLOCK):
        span = slice(start, start + _BLOCK)
        rows = span if nodes is None else nodes[span]
        block = [state[rows] for state in states]
        total = total + checkpoint(
            _block, teacher, rows, block, teacher_maps, student_maps, use_reentrant=False
        )
    dissimilarity = total / (num_nodes * r)
    return (attention * dissimilarity).mean(), dissimilarity


def _block(
    teacher: Tensor,
    rows: slice | Tensor,
    states: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
) -> Tensor:
    """sum_v |p_iv/|p_iv| - s_jv/|s_jv||^2 for one block, [T, S]."""
    normalize = nn.functional.normalize
    read = teacher[rows if isinstance(rows, slice) else rows.to(teacher.device)]
    parts = read.to(teacher_maps[0]).split([m.size(0) for m in teacher_maps], dim=1)
    p = [normalize(t @ m, dim=1) for t, m in zip(parts, teacher_maps, strict=True)]
    s = [normalize(h @ m, dim=1) for h, m in zip(states, student_maps, strict=True)]
    return torch.stack([torch.stack([(pi - sj).square().sum() for sj in s]) for pi in p])
