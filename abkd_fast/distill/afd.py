"""AFD: attention of every teacher layer over the student's layers, node by node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._projection import Projection
from abkd_fast.distill._rows import (
    check_size,
    check_weight,
    check_widths,
    draw_rows,
    picked,
    student_layers,
    teacher_layer,
)
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class AFD(Objective):
    r"""weight / B * sum_v sum_ij A_vij D_vij, with an attention map for every node v.

    q_vi = BN(W^q_i h^T_vi), k_vj = relu(BN(W^k_j h^S_vj)), in R^a;
    A_v = softmax over the student's layers j of (<B_i k_vj, q_vi> + <p_i, p_j>) / sqrt(a);
    D_vij = 1/d_i |s_vij / |s_vij| - h^T_vi / |h^T_vi||^2, with s_vij = V_j h^S_vj in R^d_i.

    (Ji, Heo, Park: Show, attend and distill, arXiv 2102.02973, default weight of the authors'
    code.) The method compares images; on graphs a node is a sample and its state what
    is left after pooling. So, ours: the values are rows of unit length instead of maps of unit
    length, V_j (one for each distinct teacher width) stands for resampling to the teacher's size,
    and B_i has no batch normalisation of its own, so that it can be applied to the queries and
    nothing of size B x T x S x a exists.

    Args:
        attention_dim: a; published: 128.
        samples: B, nodes drawn in each step; with fewer at hand, all of them.
        weight: published: 200.
    """

    def __init__(
        self, attention_dim: int = 128, samples: int = 1024, weight: float = 200.0
    ) -> None:
        super().__init__()
        self.attention_dim = check_size("attention_dim", attention_dim)
        self.samples = check_size("samples", samples)
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw queries, keys, the bilinear form, the positions and the value maps."""
        del graph
        self.student_widths = student_layers("AFD", list(student_widths))
        a, device = self.attention_dim, teacher.device
        widths = teacher.widths
        self.query = nn.ModuleList(Projection(w, a, relu=False, device=device) for w in widths)
        self.key = nn.ModuleList(Projection(w, a, device=device) for w in self.student_widths)
        self.bilinear = _glorot(len(widths), a, a, device=device)
        self.teacher_position = _glorot(len(widths), a, device=device)
        self.student_position = _glorot(len(self.student_widths), a, device=device)
        self.values = nn.ModuleDict(
            {
                str(width): nn.ModuleList(
                    nn.Linear(w, width, device=device) for w in self.student_widths
                )
                for width in dict.fromkeys(widths)
            }
        )

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted distance over a sample of the nodes; leaves the mean map and distance."""
        check_widths(student, self.student_widths)
        rows = draw_rows(student.states[0].size(0), self.samples, teacher.device)
        at = picked(student, nodes, rows)
        found = [widened(h if rows is None else h[rows]) for h in student.states]
        wanted = [teacher_layer(teacher, i, at) for i in range(len(teacher.widths))]
        attention = self._attention(found, wanted)
        distance = self._distance(found, wanted)
        loss = (attention * distance).sum((1, 2)).mean()
        self.attention = attention.detach().mean(0)
        self.dissimilarity = distance.detach().mean(0)
        self.scalars = {"afd": loss.detach()}
        return self.weight * loss

    def _attention(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """A [B, T, S]."""
        queries = torch.stack([q(t) for q, t in zip(self.query, wanted, strict=True)])
        keys = torch.stack([k(h) for k, h in zip(self.key, found, strict=True)])
        queries = queries @ self.bilinear  # [T, B, a]
        scores = torch.einsum("tba,sba->bts", queries, keys)
        scores = scores + self.teacher_position @ self.student_position.t()
        return (scores / self.attention_dim**0.5).softmax(dim=2)

    def _distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """D [B, T, S], by |s - t|^2 = 2 - 2 <s, t> for rows of unit length."""
        columns: list[Tensor] = []
        moved: dict[int, Tensor] = {}
        for t in wanted:
            width = t.size(1)
            if width not in moved:
                maps: nn.ModuleList = self.values[str(width)]  # type: ignore[assignment]
                values = torch.stack([v(h) for v, h in zip(maps, found, strict=True)], dim=1)
                moved[width] = F.normalize(values, dim=2)  # [B, S, d_i]
            cosines = (moved[width] @ F.normalize(t, dim=1)[:, :, None]).squeeze(2)
            columns.append((2.0 - 2.0 * cosines) / width)
        return torch.stack(columns, dim=1)

    def extra_repr(self) -> str:
        """Settings."""
        return f"attention_dim={self.attention_dim}, samples={self.samples}, weight={self.weight}"


def _glorot(*shape: int, device: torch.device) -> nn.Parameter:
    """Glorot-normal parameters, matrix by matrix."""
    drawn = torch.empty(*shape, device=device)
    for matrix in drawn if drawn.dim() == 3 else [drawn]:
        nn.init.xavier_normal_(matrix)
    return nn.Parameter(drawn)
