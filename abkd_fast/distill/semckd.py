"""SemCKD: attention of every student layer over the teacher's layers, node by node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._projection import Projection, mlp
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


class SemCKD(Objective):
    r"""weight / (B S) * sum_v sum_ij A_vij D_vij, with an attention map for every node v.

    Of B nodes drawn in each step, R_j = H_j H_j^T [B, B] are the similarities in a layer;
    q_vj = MLP_j(row v of R^S_j), k_vi = MLP_i(row v of R^T_i), both of unit length;
    A_vij = softmax over the teacher's layers i of <q_vj, k_vi>;
    D_vij = 1/d_i |f_j(h^S_vj) - h^T_vi|^2 with f_j a trained regressor.

    (Chen et al.: Cross-layer distillation with semantic calibration, arXiv 2012.03236, default
    weight and dimensions of the authors' code.) On graphs a node is a sample. Ours: a regressor is
    shared by teacher layers of equal width (published: one for every pair of layers, each with
    convolutions), and with fewer than B nodes at hand the missing similarities are 0.

    Args:
        attention_dim: width of queries and keys.
        samples: B; published: 64, the size of a batch.
        weight: published: 400.
    """

    def __init__(self, attention_dim: int = 64, samples: int = 256, weight: float = 400.0) -> None:
        super().__init__()
        self.attention_dim = check_size("attention_dim", attention_dim)
        self.samples = check_size("samples", samples)
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw queries, keys and regressors."""
        del graph
        self.student_widths = student_layers("SemCKD", list(student_widths))
        self.width = min(self.samples, teacher.num_nodes)  # of a similarity row
        a, device = self.attention_dim, teacher.device

        def embeddings(count: int) -> nn.ModuleList:
            return nn.ModuleList(mlp(self.width, 2 * a, a, device=device) for _ in range(count))

        self.query = embeddings(len(self.student_widths))
        self.key = embeddings(len(teacher.widths))
        self.regressors = nn.ModuleDict(
            {
                str(width): nn.ModuleList(_regressor(w, width, device) for w in self.student_widths)
                for width in dict.fromkeys(teacher.widths)
            }
        )

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted distance over a sample of the nodes; leaves the mean map and distance."""
        check_widths(student, self.student_widths)
        rows = draw_rows(student.states[0].size(0), self.width, teacher.device)
        at = picked(student, nodes, rows)
        found = [widened(h if rows is None else h[rows]) for h in student.states]
        wanted = [teacher_layer(teacher, i, at) for i in range(len(teacher.widths))]
        queries, keys = self._embed(self.query, found), self._embed(self.key, wanted)
        attention = torch.einsum("sba,tba->bts", queries, keys).softmax(dim=1)
        distance = self._distance(found, wanted)
        loss = (attention * distance).sum((1, 2)).mean() / len(self.student_widths)
        self.attention = attention.detach().mean(0)
        self.dissimilarity = distance.detach().mean(0)
        self.scalars = {"semckd": loss.detach()}
        return self.weight * loss

    def _embed(self, maps: nn.ModuleList, states: list[Tensor]) -> Tensor:
        """Unit rows [layers, B, a] of every layer's similarities."""
        return torch.stack(
            [F.normalize(f(self._similarity(h)), dim=1) for f, h in zip(maps, states, strict=True)]
        )

    def _similarity(self, state: Tensor) -> Tensor:
        """H H^T [B, width], filled up with 0."""
        return F.pad(state @ state.t(), (0, self.width - state.size(0)))

    def _distance(self, found: list[Tensor], wanted: list[Tensor]) -> Tensor:
        """D [B, T, S]."""
        moved: dict[int, list[Tensor]] = {}
        rows: list[Tensor] = []
        for t in wanted:
            width = t.size(1)
            if width not in moved:
                maps: nn.ModuleList = self.regressors[str(width)]  # type: ignore[assignment]
                moved[width] = [f(h) for f, h in zip(maps, found, strict=True)]
            rows.append(torch.stack([(s - t).square().mean(1) for s in moved[width]], dim=1))
        return torch.stack(rows, dim=1)

    def extra_repr(self) -> str:
        """Settings."""
        return f"attention_dim={self.attention_dim}, samples={self.samples}, weight={self.weight}"


def _regressor(width: int, wanted: int, device: torch.device) -> nn.Sequential:
    """Two hidden layers with batch normalisation, twice as wide as the teacher's."""
    return nn.Sequential(
        Projection(width, 2 * wanted, device=device),
        Projection(2 * wanted, 2 * wanted, device=device),
        nn.Linear(2 * wanted, wanted, device=device),
    )
