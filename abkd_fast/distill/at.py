"""Attention transfer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import check_weight, last_layer, student_layers
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class AT(Objective):
    r"""weight / N * sum_v (a^S_v - a^T_v)^2 with a_v = e_v / |e|_2, e_v = sum_d h_vd^2.

    h is the last hidden layer, and |e|_2 is over the nodes at hand: the energies of the nodes are
    the spatial attention map of Zagoruyko and Komodakis, arXiv 1612.03928, section 3.1 (p = 2), as
    Joshi et al., arXiv 2111.04964, use it on graphs. Nothing is trained but the student.

    Args:
        weight: published for graphs: 1e3 to 1e5; terms shrink as 1 / N^2.
    """

    energy: Tensor  # of the teacher, [N]

    def __init__(self, weight: float = 1e5) -> None:
        super().__init__()
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Keep the teacher's energies."""
        del graph
        student_layers("AT", list(student_widths))
        energy = last_layer(teacher).square().sum(1)
        self.register_buffer("energy", energy, persistent=False)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Distance of the two maps over the nodes at hand."""
        del teacher
        found = widened(student.states[-1]).square().sum(1)
        wanted = self.energy if nodes is None else self.energy[nodes]
        loss = F.mse_loss(F.normalize(found, dim=0), F.normalize(wanted, dim=0))
        self.scalars = {"at": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings."""
        return f"weight={self.weight}"
