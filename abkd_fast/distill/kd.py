"""Logit distillation of Hinton et al."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast import ops
from abkd_fast._checks import check_choice
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import check_temperature
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
        activation: "softmax" for scores of classes that exclude each other; "sigmoid" for
            multilabel and binary tasks, where every column is a distribution of its own (yes or
            no) and the divergences of a row add up.
    """

    needs_states = False
    node_mean = True

    def __init__(
        self,
        alpha: float = 0.9,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        activation: str = "softmax",
    ) -> None:
        super().__init__()
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        check_temperature("temperature", temperature)
        check_choice("reduction", reduction, ("batchmean", "mean"))
        check_choice("activation", activation, ("softmax", "sigmoid"))
        self.alpha, self.temperature, self.reduction = alpha, temperature, reduction
        self.activation = activation
        self.label_weight = 1.0 - alpha
        self._target: tuple[Tensor, Tensor] | None = None

    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Scaled divergence between the class scores."""
        if teacher.logits is None:
            raise ValueError("KD needs the teacher's class scores; build the cache with logits")
        rows = teacher.logits.size(0) if nodes is None else nodes.numel()
        shape = [rows, teacher.logits.size(1)]
        if list(student.logits.shape) != shape:
            raise ValueError(
                f"student logits must be {shape} as the teacher's are, "
                f"got {list(student.logits.shape)}"
            )
        if self.activation == "softmax" and teacher.logits.size(1) == 1:
            raise ValueError(
                "teacher logits must have two columns or more for a softmax, got 1; "
                'use KD(activation="sigmoid")'
            )
        log_target = self._log_target(teacher.logits)
        if nodes is not None:
            log_target = log_target[nodes]
        dtype = torch.promote_types(student.logits.dtype, log_target.dtype)
        logits, log_target = student.logits.to(dtype), log_target.to(dtype)
        divergence, _ = ops.kl_div(
            self._two_sided(logits), log_target.flatten(0, -2), temperature=self.temperature
        )
        if self.activation == "sigmoid":
            divergence = divergence * logits.size(1)  # a mean over columns too, now their sum
        if self.reduction == "mean":
            divergence = divergence / teacher.logits.size(1)
        loss = self.temperature**2 * divergence
        self.scalars = {"kd": loss.detach()}
        return self.alpha * loss

    def _log_target(self, logits: Tensor) -> Tensor:
        """The teacher's log-probabilities, computed once a teacher."""
        if self._target is None or self._target[0] is not logits:
            scores = self._two_sided(logits / self.temperature).log_softmax(1)
            columns = (logits.size(1), 2) if self.activation == "sigmoid" else (logits.size(1),)
            self._target = logits, scores.view(logits.size(0), *columns)
        return self._target[1]

    def _two_sided(self, logits: Tensor) -> Tensor:
        """Scores [N C, 2] of yes and no for sigmoid, whose softmax is sigmoid(z), sigmoid(-z)."""
        if self.activation == "softmax":
            return logits
        yes = logits.reshape(-1)
        return torch.stack([yes, torch.zeros_like(yes)], dim=1)

    def extra_repr(self) -> str:
        """Settings."""
        settings = f"alpha={self.alpha}, temperature={self.temperature}"
        activation = "" if self.activation == "softmax" else f", activation={self.activation!r}"
        return f"{settings}, reduction={self.reduction!r}{activation}"
