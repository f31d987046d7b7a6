"""GSP: global structure preserving."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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
from abkd_fast.distill._similarity import check_kernel, similarity_matrix
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class GSP(Objective):
    r"""weight / B^2 * sum_vu (k(h^S_v, h^S_u) - k(h^T_v, h^T_u))^2 over B nodes drawn in each step.

    LSP without the edges: the similarities of all pairs of a sample, last hidden layers, kernels as
    there. (Joshi et al., arXiv 2111.04964, section 3, global structure preserving.) Memory B^2.

    Args:
        kernel: "rbf", "cosine", "poly" or "l2".
        c: of "poly".
        power: of "poly".
        samples: B; with fewer nodes at hand, all of them.
        weight: as for LSP.
    """

    def __init__(
        self,
        kernel: str = "rbf",
        c: float = 0.0,
        power: int = 2,
        samples: int = 2048,
        weight: float = 100.0,
    ) -> None:
        super().__init__()
        self.kernel = check_kernel(kernel, c, power)
        self.samples = check_size("samples", samples)
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Nothing to keep."""
        del teacher, graph
        student_layers("GSP", list(student_widths))

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Distance of the similarities over a sample of the nodes at hand."""
        found = widened(student.states[-1])
        rows = draw_rows(found.size(0), self.samples, teacher.device)
        wanted = teacher_layer(teacher, -1, picked(student, nodes, rows))
        found = found if rows is None else found[rows]
        mine = similarity_matrix(found, **self.kernel)
        theirs = similarity_matrix(wanted.to(found.dtype), **self.kernel)
        loss = (mine - theirs).square().mean(0).mean()  # columns first: whatever the threads
        self.scalars = {"gsp": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings."""
        settings = {**self.kernel, "samples": self.samples, "weight": self.weight}
        return ", ".join(f"{k}={v!r}" for k, v in settings.items())
