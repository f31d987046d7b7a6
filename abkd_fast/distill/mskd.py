"""MSKD: several teachers of different depth, each node with weights of its own for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._edges import edge_distances
from abkd_fast.distill._rows import (
    check_size,
    check_temperature,
    check_weight,
    graph_among,
    last_layer,
    student_layers,
)
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class MSKD(Objective):
    r"""weight / N * sum_v sum_k w_vk KL(P^T_k[v] || P^S[v]) over teachers k, one of them the run's.

    P[v] is what a model holds of v's neighbourhood (its topological semantics),
    P[v, u] = softmax over the neighbours u of exp(-|h_v - h_u|_1 / scale), h its last hidden
    layer; w_v = softmax over the teachers of <W_q h^S_v, W_k h^T_kv> / sqrt(a): nodes choose.

    (Zhang et al.: Multi-scale distillation from multiple graph neural networks, AAAI 2022,
    doi 10.1609/aaai.v36i4.20354: teachers of different depth, because nodes of high degree need
    more message passing than others, attention of the student over them, and P as in the authors'
    code.) The exact form of the attention is ours; the authors' code weighs whole teachers by how
    well their scores agree with the student's, and takes them one after the other. Nodes without
    neighbours count 0.

    Args:
        teachers: the further teachers, of the same nodes.
        attention_dim: a.
        scale: published: 100.
        weight: published: 7, in all.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherCache] = (),
        attention_dim: int = 64,
        scale: float = 100.0,
        weight: float = 7.0,
    ) -> None:
        super().__init__()
        self.teachers = list(teachers)
        self.attention_dim = check_size("attention_dim", attention_dim)
        self.scale = check_temperature("scale", scale)
        self.weight = check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw queries and keys; keep the teachers' distributions over the whole graph [E]."""
        if not self.teachers:
            raise ValueError("teachers must hold further teachers, got none; see --mskd.teachers")
        if graph is None:
            raise ValueError("MSKD needs the graph in setup, got None")
        width = student_layers("MSKD", list(student_widths))[-1]
        for other in self.teachers:
            if other.num_nodes != teacher.num_nodes or not other.widths:
                raise ValueError(
                    f"teachers must have states of the {teacher.num_nodes} nodes, got {other}"
                )
        self.graph, device = graph, teacher.device
        self.teachers = [other.to(device) for other in self.teachers]
        a, everyone = self.attention_dim, [teacher, *self.teachers]
        self.query = nn.Linear(width, a, bias=False, device=device)
        self.key = nn.ModuleList(
            nn.Linear(each.widths[-1], a, bias=False, device=device) for each in everyone
        )
        self.targets = [last_layer(each) for each in everyone]
        with torch.no_grad():
            self.wanted = [
                neighbour_log_probabilities(graph, target, self.scale) for target in self.targets
            ]

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted divergence over the nodes at hand and the edges among them."""
        del teacher
        state = widened(student.states[-1])
        graph = graph_among("MSKD", student, self.graph, nodes)
        theirs, wanted = self.targets, self.wanted
        if nodes is not None:
            theirs = [target[nodes] for target in theirs]
            with torch.no_grad():
                wanted = [neighbour_log_probabilities(graph, h, self.scale) for h in theirs]
        similar, total = _similarity(graph, state, self.scale)
        # log P^S is similar minus its row's total, and the P^T of a row add up to 1.
        crossed = [ops.segment_csr(p.exp() * (p - similar), graph.rowptr) for p in wanted]
        divergence = torch.stack(crossed, dim=1) + total[:, None]
        keys = torch.stack([key(rows) for key, rows in zip(self.key, theirs, strict=True)], dim=1)
        scores = (keys @ self.query(state)[:, :, None]).squeeze(2)
        weights = (scores / self.attention_dim**0.5).softmax(dim=1)
        loss = (weights * divergence).sum(1).mean()
        self.scalars = {"mskd": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings, and which teachers."""
        names = [each.fingerprint[:12] for each in self.teachers]
        return (
            f"teachers={names}, attention_dim={self.attention_dim}, scale={self.scale}, "
            f"weight={self.weight}"
        )


def neighbour_log_probabilities(graph: CSRGraph, x: Tensor, scale: float) -> Tensor:
    """log softmax over every row's edges of exp(-|x_v - x_u|_1 / scale), [E]; x is [N, d]."""
    similar, total = _similarity(graph, x, scale)
    return similar - total[graph.row()]


def _similarity(graph: CSRGraph, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """exp(-|x_v - x_u|_1 / scale) [E], and the log of the sum of their exponentials [N]."""
    similar = (-edge_distances(graph, x) / scale).exp()
    # In (0, 1], so that nothing overflows and sums are above 1, but for rows without edges.
    return similar, ops.segment_csr(similar.exp(), graph.rowptr).clamp_min(1.0).log()
