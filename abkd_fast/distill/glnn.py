"""GLNN: distillation into a model that needs no graph."""

from __future__ import annotations

from torch import Tensor

from abkd_fast.capture import Capture
from abkd_fast.distill._rows import check_weight
from abkd_fast.distill.kd import KD
from abkd_fast.teacher import TeacherCache


class GLNN(KD):
    """lambda CE(labels) + (1 - lambda) KL(softmax(z_T) || softmax(z_S)), KL over all nodes.

    Zhang et al., arXiv 2110.08727, equation 1: the student is an MLP (``--student mlp-2x64``),
    which sees no edges. It is :class:`KD` with alpha = 1 - lambda and temperature 1.

    Args:
        labels_weight: lambda in [0, 1]; published: 0, the teacher's scores alone.
        activation: as for :class:`KD`.
    """

    def __init__(self, labels_weight: float = 0.0, activation: str = "softmax") -> None:
        if not 0.0 <= check_weight("labels_weight", labels_weight) <= 1.0:
            raise ValueError(f"labels_weight must be in [0, 1], got {labels_weight}")
        super().__init__(alpha=1.0 - labels_weight, temperature=1.0, activation=activation)

    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Divergence between the class scores."""
        loss = super().forward(student, teacher, nodes)
        self.scalars = {"glnn": self.scalars["kd"]}
        return loss
