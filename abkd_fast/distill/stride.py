"""STRIDE: ABKD with a term for structure (arXiv 2310.15938, version 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from abkd_fast._autocast import widened
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import check_size, check_temperature, check_weight, draw_rows, picked
from abkd_fast.distill.abkd import ABKD
from abkd_fast.graph import CSRGraph
from abkd_fast.ops import pair_infonce
from abkd_fast.teacher import TeacherCache


class STRIDE(ABKD):
    r"""beta * S * mean_ij A_ij (D_ij + lambda E_ij) over all layer pairs; A and D are ABKD's.

    .. math:: E_{ij} = \frac{1}{B} \sum_v -\log
        \frac{\exp(\langle u_{jv}, w_{iv} \rangle / \tau)}
             {\sum_x \exp(\langle u_{jv}, w_{ix} \rangle / \tau)}

    over B sampled nodes, with u_j = H^S_j N'_j and w_i = H^T_i M'_i scaled to unit length: G-CRD
    (arXiv 2111.04964) for every pair, with maps of its own for every layer, trained on both sides
    (``ops.pair_infonce``). The attention's gradient comes from both terms. The paper states the
    shape of the loss; lambda, B, tau, the width of the maps and that they have no biases are
    choices.

    Args:
        structure_weight: lambda.
        structure_dim: width of u and w.
        structure_temperature: tau.
        samples: B, drawn anew in each step among the nodes that count; all, where there are no
            more.
        options: those of :class:`ABKD`, by name. ``shared_maps`` holds for N' and M' too.

    Attributes:
        structure: E [T, S] of the last call in which a node counted, detached. ``dissimilarity`` is
            D + lambda E.
    """

    node_mean = False  # a node's term depends on the other nodes' rows

    def __init__(
        self,
        structure_weight: float = 0.1,
        structure_dim: int = 64,
        structure_temperature: float = 0.075,
        samples: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.structure_weight = check_weight("structure_weight", structure_weight)
        self.structure_dim = check_size("structure_dim", structure_dim)
        self.structure_temperature = check_temperature(
            "structure_temperature", structure_temperature
        )
        self.samples = check_size("samples", samples)
        self.structure: Tensor | None = None

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """ABKD's, then the structure's maps, Glorot-uniform per layer."""
        super().setup(teacher, student_widths, graph)
        r, device = self.structure_dim, teacher.device
        self.teacher_structure = self._maps_of(self.teacher_widths, r, device)
        self.student_structure = self._maps_of(self.student_widths, r, device)

    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """The loss; leaves ``.attention``, ``.dissimilarity`` and ``.structure`` [T, S]."""
        loss = super().forward(student, teacher, nodes)
        total = self.scalars["abkd"]
        structure = self.batch_weight * self._structure_mean if self.batch_weight else total
        self.scalars = {"stride": total, "structure": structure}
        return loss

    def _compare(
        self,
        student: Capture,
        teacher: TeacherCache,
        attention: Tensor,
        nodes: Tensor | None,
        counted: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(mean(A * (D + lambda E)), D + lambda E)."""
        mean, dissimilarity = super()._compare(student, teacher, attention, nodes, counted)
        found, wanted = self._sampled(student, teacher, nodes, counted)
        structure, each = pair_infonce(
            found, wanted, attention, temperature=self.structure_temperature
        )
        self.structure, self._structure_mean = each, structure.detach()
        weight = self.structure_weight
        return mean + weight * structure, dissimilarity + weight * each

    def _sampled(
        self,
        student: Capture,
        teacher: TeacherCache,
        nodes: Tensor | None,
        counted: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """U [S, B, r] and w [T, B, r] of a sample of the nodes that count."""
        device = student.states[0].device
        count = student.states[0].size(0) if counted is None else counted.numel()
        rows = draw_rows(count, self.samples, device)
        if counted is not None:
            rows = counted if rows is None else counted[rows]
        states = [widened(h if rows is None else h[rows]) for h in student.states]
        at = picked(student, nodes, rows)
        read = teacher.states.to(device) if at is None else teacher.rows(at)
        layers = read.to(states[0].dtype).split(self.teacher_widths, dim=1)
        found = self._unit_rows(states, self.student_structure, self.student_widths)
        return found, self._unit_rows(layers, self.teacher_structure, self.teacher_widths)

    def _unit_rows(self, layers: Sequence[Tensor], stacked: Tensor, widths: list[int]) -> Tensor:
        """Projections of unit length, [layers, B, r]."""
        maps = self._every(stacked, widths).split(widths)
        rows = torch.stack([layer @ m for layer, m in zip(layers, maps, strict=True)])
        return F.normalize(rows, dim=2)

    def extra_repr(self) -> str:
        """Settings."""
        return (
            f"structure_weight={self.structure_weight}, structure_dim={self.structure_dim}, "
            f"structure_temperature={self.structure_temperature}, samples={self.samples}, "
            f"{super().extra_repr()}"
        )
