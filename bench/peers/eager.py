"""Baseline `eager`: what one writes first. One matmul a layer, then D row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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


class ABKDLoss(nn.Module):
    """S * mean(A * D) with one trainable map a layer, as one writes it down from the paper.

    ``layer_pair`` is one of the functions of this folder, or compiled.
    """

    def __init__(
        self,
        teacher_widths: Sequence[int],
        student_widths: Sequence[int],
        a: int,
        layer_pair: Callable[..., tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()

        def maps(widths: Sequence[int]) -> nn.ParameterList:
            return nn.ParameterList([nn.init.xavier_uniform_(torch.empty(d, a)) for d in widths])

        self.query, self.teacher_embedding = maps(teacher_widths), maps(teacher_widths)
        self.key, self.student_embedding = maps(student_widths), maps(student_widths)
        self.subspace = nn.Parameter(nn.init.xavier_uniform_(torch.empty(a, a)))
        self.layer_pair = layer_pair

    def forward(
        self, teacher: Any, teacher_means: Sequence[Tensor], student: list[Tensor]
    ) -> Tensor:
        """The teacher as its ``prepare`` keeps it, student states [N, d]; returns the loss."""
        means = [state.mean(0) for state in student]
        q = torch.stack([m @ w for m, w in zip(teacher_means, self.query, strict=True)])
        k = torch.stack([m @ w for m, w in zip(means, self.key, strict=True)])
        attention = (q @ k.t() / q.size(1) ** 0.5).softmax(1)
        teacher_maps = [w @ self.subspace for w in self.teacher_embedding]
        student_maps = [v @ self.subspace for v in self.student_embedding]
        loss, _ = self.layer_pair(teacher, student, attention, teacher_maps, student_maps)
        return len(student) * loss


@torch.no_grad()
def copy_maps(source: nn.Module, target: ABKDLoss) -> None:
    """The maps of an ``abkd_fast.ABKD`` that was set up for the same layers."""
    for name in ("query", "key", "teacher_embedding", "student_embedding"):
        maps = getattr(target, name)
        parts = getattr(source, name).split([m.size(0) for m in maps])
        for parameter, part in zip(maps, parts, strict=True):
            parameter.copy_(part)
    target.subspace.copy_(source.subspace)
