"""MustaD: a deep teacher into one layer that is applied many times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._autocast import widened, without_autocast
from abkd_fast._checks import check_choice
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import (
    check_temperature,
    check_weight,
    last_layer,
    student_layers,
    teacher_logits,
)
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class MustaD(Objective):
    r"""logit_weight * KL(softmax(z_T / tau) || softmax(z_S)) + hidden_weight * K(h^T, h^S).

    Means over nodes; h is the last hidden layer, mapped to the teacher's width by a trained Linear
    where it differs, and K a kernel: "kl" is KL(softmax(h^T) || softmax(h^S)) over the features,
    "distance" is |h^T - h^S|_2. (Kim, Jung, Kang, PLoS ONE 16(8) e0256187, section "Proposed
    method"; as in the authors' code, tau divides the teacher's scores alone, and the kernels that
    grow with similarity are left out, for minimising them drives student and teacher apart.) The
    student is ``nn.GCNII(shared=True)``: one layer's weight, applied K times.

    All nodes count, labelled or not; the authors' code takes the training nodes.

    Args:
        temperature: tau > 0; published: 2.
        kernel: "kl" or "distance".
        logit_weight: published: 1 (Cora), 0.1 (Citeseer), 100 (PubMed).
        hidden_weight: published: 0.01, 0.01, 10.
    """

    target: Tensor  # the teacher's last layer, [N, d]

    def __init__(
        self,
        temperature: float = 2.0,
        kernel: str = "kl",
        logit_weight: float = 1.0,
        hidden_weight: float = 0.01,
    ) -> None:
        super().__init__()
        check_choice("kernel", kernel, ("kl", "distance"))
        self.temperature, self.kernel = check_temperature("temperature", temperature), kernel
        self.logit_weight = check_weight("logit_weight", logit_weight)
        self.hidden_weight = check_weight("hidden_weight", hidden_weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw the map to the teacher's width, where one is needed."""
        del graph
        width, wanted = student_layers("MustaD", list(student_widths))[-1], teacher.widths[-1]
        same = width == wanted
        self.match = nn.Identity() if same else nn.Linear(width, wanted, device=teacher.device)
        self.register_buffer("target", last_layer(teacher), persistent=False)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted divergence of scores and hidden states."""
        wanted = teacher_logits("MustaD", teacher, student, nodes)
        if wanted.size(1) == 1:
            raise ValueError(
                "teacher logits must have two columns or more for a softmax, got 1; "
                'use KD(activation="sigmoid")'
            )
        scores = _divergence(student.logits, wanted / self.temperature)
        hidden = self.match(widened(student.states[-1]))
        target = self.target if nodes is None else self.target[nodes]
        if self.kernel == "kl":
            kernel = _divergence(hidden, target)
        else:
            kernel = torch.linalg.vector_norm(hidden - target, dim=1).mean()
        self.scalars = {"mustad_logits": scores.detach(), "mustad_hidden": kernel.detach()}
        return self.logit_weight * scores + self.hidden_weight * kernel

    def extra_repr(self) -> str:
        """Settings."""
        return (
            f"temperature={self.temperature}, kernel={self.kernel!r}, "
            f"logit_weight={self.logit_weight}, hidden_weight={self.hidden_weight}"
        )


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """KL(softmax(wanted) || softmax(found)), mean over rows."""
    dtype = torch.promote_types(found.dtype, wanted.dtype)
    return ops.kl_div(found.to(dtype), wanted.to(dtype).log_softmax(1))[0]
