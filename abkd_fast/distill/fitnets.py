"""FitNets: hints on the last hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._projection import Projection
from abkd_fast.distill._rows import check_size, check_weight, last_layer, student_layers
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class FitNets(Objective):
    r"""weight / (N r) * sum_v |u_v / |u_v| - w_v / |w_v||^2, u = g_S(h^S), w = g_T(h^T).

    h^S and h^T are the last hidden layers; g is Linear, batch normalisation and ReLU to width r,
    trained on both sides. (Romero et al., arXiv 1412.6550, section 2.2, in the form that Joshi et
    al., arXiv 2111.04964, use on graphs.) The original trains the hint first; here, as in the
    latter, it is a term of one loss.

    Args:
        projection_dim: r.
        weight: published for graphs: 1000.
    """

    target: Tensor  # the teacher's last layer, [N, d]

    def __init__(self, projection_dim: int = 256, weight: float = 1000.0) -> None:
        super().__init__()
        self.projection_dim = check_size("projection_dim", projection_dim)
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw the two projections."""
        del graph
        width = student_layers("FitNets", list(student_widths))[-1]
        r, device = self.projection_dim, teacher.device
        self.student_projection = Projection(width, r, device=device)
        self.teacher_projection = Projection(teacher.widths[-1], r, device=device)
        self.register_buffer("target", last_layer(teacher), persistent=False)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Distance of the projections over the nodes at hand."""
        found = self.student_projection(widened(student.states[-1]))
        del teacher
        wanted = self.target if nodes is None else self.target[nodes]
        wanted = self.teacher_projection(wanted)
        difference = F.normalize(found, dim=1) - F.normalize(wanted, dim=1)
        loss = difference.square().mean(0).mean()  # columns first: whatever the threads
        self.scalars = {"fitnets": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings."""
        return f"projection_dim={self.projection_dim}, weight={self.weight}"
