"""SP: similarity-preserving distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import check_weight, last_layer, student_layers
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class SP(Objective):
    r"""weight / N^2 * |G_S - G_T|_F^2, G the Gram matrix [N, N] of last hidden layers, rows unit.

    (Tung and Mori, arXiv 1907.09682, equations 1 to 4.) No matrix [N, N] is formed: with
    :math:`C = H_S^\top H_T`, row v of H H^T has length :math:`\sqrt{h_v^\top (H^\top H) h_v}`,
    n_v, and

    .. math:: |G_S - G_T|_F^2 = \sum_v [n^S_v > 0] + [n^T_v > 0]
        - 2 \frac{h^{S\top}_v C h^T_v}{n^S_v n^T_v}

    so that all nodes count, in N d_s d_t operations (published: those of a batch of images).

    Args:
        weight: published: 3000, for batches of 256; terms shrink as 1 / N.
    """

    target: Tensor  # [N, d], of the teacher
    lengths: Tensor  # [N], of its rows of H H^T on all nodes, inverse

    def __init__(self, weight: float = 3000.0) -> None:
        super().__init__()
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Keep the teacher's states, and on all nodes the lengths of its rows."""
        del graph
        student_layers("SP", list(student_widths))
        self.register_buffer("target", last_layer(teacher), persistent=False)
        self.register_buffer("lengths", inverse_lengths(self.target), persistent=False)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Distance of the Gram matrices of the nodes at hand."""
        del teacher
        found = widened(student.states[-1])
        wanted = (self.target if nodes is None else self.target[nodes]).to(found.dtype)
        lengths = self.lengths.to(found.dtype) if nodes is None else inverse_lengths(wanted)
        mine = inverse_lengths(found)
        cross = (found @ (found.t() @ wanted)) * wanted * (mine * lengths)[:, None]
        rows = (mine > 0).sum() + (lengths > 0).sum()
        # Columns first: whatever the threads.
        loss = (rows - 2.0 * cross.sum(0).sum()) / found.size(0) ** 2
        self.scalars = {"sp": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings."""
        return f"weight={self.weight}"


def inverse_lengths(h: Tensor) -> Tensor:
    """1 / length of every row of H H^T [N]; 0 for a row of zeros."""
    square = ((h @ (h.t() @ h)) * h).sum(1)
    positive = square > 0
    return torch.where(positive, square, 1.0).rsqrt() * positive
