"""GraphAKD: discriminators that the student learns to fool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._edges import edge_dots
from abkd_fast.distill._rows import (
    check_weight,
    graph_among,
    last_layer,
    student_layers,
    teacher_logits,
)
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache

Side = tuple[Tensor, Tensor]  # class scores and hidden states


class GraphAKD(Objective):
    r"""weight * (L_student + L_critic): a student and three discriminators, one against the others.

    Discriminators, each with a real/fake score x and b(x) = -log sigmoid(x), b'(x) = -log
    sigmoid(-x):

    - of class scores z: D(z) = W_2 relu(z + W_1 z + c), C class scores and x;
    - of an edge u-v: x = s <e_u * d, e_v>, e the last hidden layer in rows of unit length;
    - of a node in a graph: x = s <e_v * d, g>, g = sigmoid(mean_v h_v), once with the teacher's g
      and once with the student's, whose own nodes then count as the true ones.

    L_critic tells teacher from student by the mean b and b', halved for class scores, where the
    class scores' cross-entropy on labelled nodes of both sides is added. L_student is the same with
    the student's answers turned round, and |z_S - z_T|_1 / N. (He et al.: Compressing deep graph
    neural networks via adversarial knowledge distillation, arXiv 2205.11678, as the authors' code
    has it.) The critics see the student's states as constants, and the student the critics'
    parameters, so that one backward trains both, each on its own loss: their steps are
    simultaneous instead of alternate (ours).

    A student of another width is mapped to the teacher's by a trained Linear, which is on the
    student's side (ours; published pairs have equal widths).

    Args:
        weight: published: 1.
        labels: [N] int64 of the nodes, negative where there is none; None leaves the classification
            by the first discriminator out.
    """

    labels: Tensor | None
    target: Tensor  # the teacher's last layer, [N, d]

    def __init__(self, weight: float = 1.0, labels: Tensor | None = None) -> None:
        super().__init__()
        self.weight = check_weight("weight", weight)
        self.register_buffer("labels", labels, persistent=False)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw the discriminators, and the map to the teacher's width where one is needed."""
        width, wanted = student_layers("GraphAKD", list(student_widths))[-1], teacher.widths[-1]
        if teacher.logits is None:
            raise ValueError(
                "GraphAKD needs the teacher's class scores; build the cache with logits"
            )
        self.graph, device = graph, teacher.device
        same = width == wanted
        self.match = nn.Identity() if same else nn.Linear(width, wanted, device=device)
        self.of_logits = _OfLogits(teacher.logits.size(1), device)
        self.of_edges, self.of_graph = _Similarity(wanted, device), _Similarity(wanted, device)
        self.register_buffer("target", last_layer(teacher), persistent=False)
        if self.labels is not None:
            self.labels = self.labels.to(device)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Both losses over the nodes at hand."""
        wanted = teacher_logits("GraphAKD", teacher, student, nodes)
        theirs = wanted, self.target if nodes is None else self.target[nodes]
        ours = widened(student.logits), self.match(widened(student.states[-1]))
        graph = graph_among("GraphAKD", student, self.graph, nodes)
        labels = self.labels if self.labels is None or nodes is None else self.labels[nodes]
        frozen = ours[0].detach(), ours[1].detach()
        critic = self._critic_loss(theirs, frozen, graph, labels)
        loss = self._student_loss(theirs, ours, graph, labels)
        self.scalars = {"graphakd": loss.detach(), "graphakd_critic": critic.detach()}
        return self.weight * (loss + critic)

    def _critic_loss(
        self, theirs: Side, ours: Side, graph: CSRGraph, labels: Tensor | None
    ) -> Tensor:
        real, fake = self.of_logits(theirs[0]), self.of_logits(ours[0])
        loss = _true(real[:, -1]) + _false(fake[:, -1])
        loss = (loss + _classify(real, labels) + _classify(fake, labels)) / 2
        e_t, e_s = F.normalize(theirs[1], dim=1), F.normalize(ours[1], dim=1)
        loss = loss + _true(edge_dots(graph, self.of_edges(e_t), e_t))
        loss = loss + _false(edge_dots(graph, self.of_edges(e_s), e_s))
        g_t, g_s = _summary(theirs[1]), _summary(ours[1])
        of_t, of_s = self.of_graph(e_t), self.of_graph(e_s)
        return (
            loss + _true(of_t @ g_t) + _false(of_s @ g_t) + _true(of_s @ g_s) + _false(of_t @ g_s)
        )

    def _student_loss(
        self, theirs: Side, ours: Side, graph: CSRGraph, labels: Tensor | None
    ) -> Tensor:
        fake = _frozen(self.of_logits, ours[0])
        loss = (_true(fake[:, -1]) + _classify(fake, labels)) / 2
        loss = loss + (ours[0] - theirs[0]).abs().sum(1).mean()
        e_t, e_s = F.normalize(theirs[1], dim=1), F.normalize(ours[1], dim=1)
        loss = loss + _true(edge_dots(graph, _frozen(self.of_edges, e_s), e_s))
        g_t, g_s = _summary(theirs[1]), _summary(ours[1])
        of_t, of_s = _frozen(self.of_graph, e_t), _frozen(self.of_graph, e_s)
        return loss + _true(of_s @ g_t) + _true(of_t @ g_s) + _false(of_s @ g_s)

    def extra_repr(self) -> str:
        """Settings."""
        labelled = 0 if self.labels is None else int((self.labels >= 0).sum())
        return f"weight={self.weight}, labelled={labelled}"


class _OfLogits(nn.Module):
    """Class scores [n, C] to class scores and a real/fake score [n, C + 1]."""

    def __init__(self, classes: int, device: torch.device) -> None:
        super().__init__()
        self.lin = nn.Linear(classes, classes, device=device)
        self.out = nn.Linear(classes, classes + 1, bias=False, device=device)

    def forward(self, logits: Tensor) -> Tensor:
        """Residual layer, ReLU, linear."""
        return self.out((logits + self.lin(logits)).relu())


class _Similarity(nn.Module):
    """Rows [n, d] times s * d, whose product with other rows is a real/fake score."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.diagonal = nn.Parameter(torch.ones(width, device=device))
        self.scale = nn.Parameter(torch.full((1,), 0.5, device=device))

    def forward(self, rows: Tensor) -> Tensor:
        """Weighted rows [n, d]."""
        return rows * (self.diagonal * self.scale)


def _frozen(critic: nn.Module, *args: Tensor) -> Tensor:
    """What ``critic`` says, with its parameters as constants."""
    constants = {name: p.detach() for name, p in critic.named_parameters()}
    return functional_call(critic, constants, args)


def _true(scores: Tensor) -> Tensor:
    """Mean of -log sigmoid(x); 0 for no scores."""
    return F.softplus(-scores).sum() / max(scores.numel(), 1)


def _false(scores: Tensor) -> Tensor:
    """Mean of -log(1 - sigmoid(x)); 0 for no scores."""
    return _true(-scores)


def _classify(scores: Tensor, labels: Tensor | None) -> Tensor:
    """Cross-entropy of the class scores on the labelled nodes; 0 where there are none."""
    if labels is None:
        return scores.new_zeros(())
    labelled = labels >= 0
    losses = F.cross_entropy(scores[:, :-1], labels.clamp_min(0), reduction="none")
    return (losses * labelled).sum() / labelled.sum().clamp_min(1)


def _summary(states: Tensor) -> Tensor:
    """What is known of the whole graph, [d]."""
    return states.mean(0).sigmoid()
