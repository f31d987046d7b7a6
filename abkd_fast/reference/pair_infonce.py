"""InfoNCE between all pairs of layers in plain torch: definition, oracle, fallback."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_infonce(
    student: Tensor,
    teacher: Tensor,
    attention: Tensor | None = None,
    *,
    temperature: float = 0.075,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mean(A * D), D_ij = mean_v -log softmax_x(<u_jv, w_ix> / temperature) at x = v.

    Arguments, shapes and results as in :func:`abkd_fast.ops.pair_infonce`. Keeps the scores
    [T, S, B, B] for the backward.
    """
    u = student if student.dim() == 3 else student[None]
    w = teacher if teacher.dim() == 3 else teacher[None]
    if mask is not None:
        u, w = u[:, mask], w[:, mask]
    scores = torch.einsum("jvd,ixd->ijvx", u, w) / temperature
    own = scores.diagonal(dim1=2, dim2=3)
    dissimilarity = (scores.logsumexp(3) - own).mean(2)
    weighted = dissimilarity if attention is None else attention * dissimilarity
    return weighted.mean(), dissimilarity.detach()


def op_pair_infonce(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    temperature: float,
    want_student: bool,
    want_teacher: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(D [T, S] float64, d sum(weight * D) / d student and / d teacher); scores of one pair held.

    A gradient that is not wanted is [0, B, d].
    """
    rows = student.size(1)
    dissimilarity = weight.new_empty(weight.shape, dtype=torch.float64)
    dstudent = student.new_zeros(student.size(0) if want_student else 0, *student.shape[1:])
    dteacher = teacher.new_zeros(teacher.size(0) if want_teacher else 0, *teacher.shape[1:])
    for i, w in enumerate(teacher):
        for j, u in enumerate(student):
            log_p = (u @ w.t() / temperature).log_softmax(1)
            dissimilarity[i, j] = -log_p.diagonal().double().mean()
            excess = log_p.exp_()
            excess.diagonal().sub_(1.0)
            excess *= weight[i, j] / (temperature * rows)
            if want_student:
                dstudent[j] += excess @ w
            if want_teacher:
                dteacher[i] += excess.t() @ u
    return dissimilarity, dstudent, dteacher
