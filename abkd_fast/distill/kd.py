"""Logit distillation of Hinton et al."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from abkd_fast._checks import check_choice
from abkd_fast.capture import Capture
from abkd_fast.distill.objective import Objective
from abkd_fast.teacher import TeacherCache


class KD(Objective):
    """alpha * tau^2 * KL(softmax(z_T / tau) || softmax(z_S / tau)), mean over nodes.

    The cross-entropy on the labels gets the factor 1 - alpha. (Hinton et al.,
    arXiv 1503.02531, section 2.) All nodes count, labelled or not.

    Args:
        alpha: weight of the teacher's scores against the labels, in [0, 1].
        temperature: tau > 0.
        reduction: "batchmean" divides the sum by N; "mean", found in much GNN code, divides by
            N * C and so weighs the term C times less.
    """

    needs_states = False

    def __init__(
        self, alpha: float = 0.9, temperature: float = 1.0, reduction: str = "batchmean"
    ) -> None:
        super().__init__()
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        check_choice("reduction", reduction, ("batchmean", "mean"))
        self.alpha, self.temperature, self.reduction = alpha, temperature, reduction
        self.label_weight = 1.0 - alpha

    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Scaled divergence between the class scores."""
        if teacher.logits is None:
            raise ValueError("KD needs the teacher's class scores; build the cache with logits")
        target = teacher.logits if nodes is None else teacher.logits[nodes]
        if target.shape != student.logits.shape:
            raise ValueError(
                f"student logits must be {list(target.shape)} as the teacher's are, "
                f"got {list(student.logits.shape)}"
            )
        divergence = F.kl_div(
            F.log_softmax(student.logits / self.temperature, dim=1),
            F.log_softmax(target / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        if self.reduction == "mean":
            divergence = divergence / target.size(1)
        loss = self.temperature**2 * divergence
        self.scalars = {"kd": loss.detach()}
        return self.alpha * loss

    def extra_repr(self) -> str:
        """Settings."""
        return f"alpha={self.alpha}, temperature={self.temperature}, reduction={self.reduction!r}"
