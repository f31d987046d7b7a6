"""The definition of layer_pair in plain torch, differentiable by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_pair(
    teacher: Tensor,
    widths: Sequence[int],
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor],
    student_maps: Sequence[Tensor],
    *,
    shift: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mean(A * D) with D_ij = 1/(N r) sum_v w_v |(t_iv - shift_i) M_i - s_jv N_j|^2.

    Arguments, shapes and results as in :func:`abkd_fast.ops.layer_pair`. Computes in the dtype
    of the student states, and keeps every projection [N, r] for the backward.
    """
    dtype = student_states[0].dtype
    teacher = teacher.to(dtype)
    if shift is not None:
        teacher = teacher - shift.to(dtype)
    if mask is not None:
        teacher, student_states = teacher[mask], [state[mask] for state in student_states]
    w = teacher.new_ones(teacher.size(0)) if weight is None else weight.to(dtype)
    layers = teacher.split(list(widths), dim=1)
    p = [t @ m for t, m in zip(layers, teacher_maps, strict=True)]
    s = [h @ n for h, n in zip(student_states, student_maps, strict=True)]
    rows = [torch.stack([(w * (pi - sj).square().mean(1)).sum() for sj in s]) for pi in p]
    dissimilarity = torch.stack(rows) / w.sum()
    return (attention * dissimilarity).mean(), dissimilarity.detach()
