"""RKD: relational knowledge distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import (
    check_size,
    check_weight,
    draw_rows,
    picked,
    student_layers,
    teacher_layer,
)
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache

_NEAR = 1e-12  # squared distance below which two nodes are one


class RKD(Objective):
    r"""Pairwise distances and angles of triples, over B nodes drawn in each step.

    .. math::
        \frac{w_d}{B^2} \sum_{uv} l(d^S_{uv} / \mu_S, d^T_{uv} / \mu_T)
        + \frac{w_a}{B^3} \sum_{uvw} l(\langle e^S_{uv}, e^S_{wv} \rangle,
        \langle e^T_{uv}, e^T_{wv} \rangle)

    with :math:`d_{uv} = |h_u - h_v|` of last hidden layers, mu their mean over the pairs apart,
    :math:`e_{uv} = (h_u - h_v) / d_{uv}` (0 where u and v are one) and l the Huber loss of
    threshold 1. (Park et al., arXiv 1904.05068, equations 4 to 9.) Memory B^2 d + B^3.

    Args:
        distance_weight: w_d, published: 25.
        angle_weight: w_a, published: 50.
        samples: B; published: 128, the size of a batch.
    """

    def __init__(
        self, distance_weight: float = 25.0, angle_weight: float = 50.0, samples: int = 128
    ) -> None:
        super().__init__()
        self.distance_weight = check_weight("distance_weight", distance_weight)
        self.angle_weight = check_weight("angle_weight", angle_weight)
        self.samples = check_size("samples", samples)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Nothing to keep."""
        del teacher, graph
        student_layers("RKD", list(student_widths))

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted losses over a sample of the nodes at hand."""
        found = widened(student.states[-1])
        rows = draw_rows(found.size(0), self.samples, teacher.device)
        wanted = teacher_layer(teacher, -1, picked(student, nodes, rows))
        found = found if rows is None else found[rows]
        mine, theirs = _relations(found), _relations(wanted.to(found.dtype))
        distance, angle = (_huber(a, b) for a, b in zip(mine, theirs, strict=True))
        self.scalars = {"rkd_distance": distance.detach(), "rkd_angle": angle.detach()}
        return self.distance_weight * distance + self.angle_weight * angle

    def extra_repr(self) -> str:
        """Settings."""
        weights = f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"
        return f"{weights}, samples={self.samples}"


def _huber(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the Huber loss, one dimension after the other: whatever the threads."""
    loss = F.smooth_l1_loss(a, b, reduction="none")
    while loss.dim() > 0:
        loss = loss.mean(0)
    return loss


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """(distances over their mean [B, B], cosines of angles [B, B, B], at the first node)."""
    difference = x[None] - x[:, None]
    square = difference.square().sum(2)
    apart = square > _NEAR
    # A root and its inverse have no gradient at 0.
    distance = torch.where(apart, square, 1.0).sqrt()
    unit = difference * (apart / distance)[:, :, None]
    distance = distance * apart
    mean = distance.sum(0).sum() / apart.sum().clamp_min(1)
    scaled = distance / torch.where(mean > 0, mean, 1.0)
    return scaled, torch.bmm(unit, unit.transpose(1, 2))
