"""G-CRD: contrast between the last hidden layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._layer_maps import glorot
from abkd_fast.distill._rows import (
    check_size,
    check_temperature,
    check_weight,
    check_widths,
    draw_rows,
    picked,
    student_layers,
    teacher_layer,
)
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.ops import pair_infonce
from abkd_fast.teacher import TeacherCache


class GCRD(Objective):
    r"""weight / B * sum_v -log softmax_x(<u_v, w_x> / tau) at x = v, InfoNCE over B sampled nodes.

    u_v = W h^S_v and w_v = V h^T_v, scaled to unit length, are projections of the last hidden
    layers, trained on both sides: a node's row in the student is to be nearer to its own row in
    the teacher than to any other's (``ops.pair_infonce``). (Joshi et al., arXiv 2111.04964,
    "G-CRD".)

    Args:
        projection_dim: width of both projections; no biases.
        samples: B, drawn anew in each step; all nodes, where there are no more.
        temperature: tau; published: 0.075.
        weight: published: 0.1.
    """

    def __init__(
        self,
        projection_dim: int = 256,
        samples: int = 4096,
        temperature: float = 0.075,
        weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.projection_dim = check_size("projection_dim", projection_dim)
        self.samples = check_size("samples", samples)
        self.temperature = check_temperature("temperature", temperature)
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw the two projections, Glorot-uniform."""
        del graph
        self.student_widths = student_layers("GCRD", list(student_widths))
        r, device = self.projection_dim, teacher.device
        self.student_map = nn.Parameter(glorot(self.student_widths[-1], r, device))
        self.teacher_map = nn.Parameter(glorot(teacher.widths[-1], r, device))

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted contrast over a sample of the nodes at hand."""
        check_widths(student, self.student_widths)
        state = student.states[-1]
        rows = draw_rows(state.size(0), self.samples, state.device)
        found = widened(state if rows is None else state[rows])
        wanted = teacher_layer(teacher, -1, picked(student, nodes, rows))
        u = F.normalize(found @ self.student_map, dim=1)
        w = F.normalize(wanted @ self.teacher_map, dim=1)
        loss, _ = pair_infonce(u, w, temperature=self.temperature)
        self.scalars = {"gcrd": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings."""
        return (
            f"projection_dim={self.projection_dim}, samples={self.samples}, "
            f"temperature={self.temperature}, weight={self.weight}"
        )
