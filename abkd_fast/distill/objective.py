"""The interface of every distillation objective."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from abkd_fast.capture import Capture
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class Objective(nn.Module):
    """A loss between a student's capture and a teacher's cache.

    The Distiller calls :meth:`setup` once, trains the objective's parameters with the student's,
    and adds ``objective(student, teacher)`` to ``label_weight`` times the cross-entropy.
    Objectives add and scale: ``KD() + 0.5 * ABKD()``.

    Attributes:
        label_weight: factor of the cross-entropy on the labels; factors of a sum multiply.
        needs_states: whether hidden states are compared, or only class scores.
        node_mean: whether the loss is a mean over nodes of what depends on a node's own rows and on
            the student's means, so that the parts of a graph add up (:mod:`abkd_fast.distributed`).
        scalars: named, detached values of the last call, for the log.
        attention: weights [T, S] of the layer pairs in the last call, detached; None for an
            objective that has none.
        dissimilarity: what they weight, [T, S], detached, or None.
    """

    label_weight: float = 1.0
    needs_states: bool = True
    node_mean: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, Tensor] = {}
        self.attention: Tensor | None = None
        self.dissimilarity: Tensor | None = None

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Create parameters and constants for this teacher and these student widths.

        ``graph`` is for objectives that compare neighbourhoods; to others it may be None.
        """

    def set_epoch(self, nodes: Tensor | slice) -> None:
        """Told once, after setup: the nodes that the mini-batches of an epoch go over."""
        for term in self.terms():
            if term is not self:
                term.set_epoch(nodes)

    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Loss, a scalar.

        Args:
            student: states and scores of the nodes at hand.
            teacher: the whole teacher.
            nodes: [B] int64, the teacher rows that the student's rows stand for; None = all.
        """
        raise TypeError(f"{type(self).__name__} must define forward(student, teacher, nodes)")

    def terms(self) -> list[Objective]:
        """The objectives this one is made of, itself for a single one."""
        return [self]

    def __add__(self, other: Objective) -> WeightedSum:
        return WeightedSum([(1.0, self), (1.0, other)])

    def __radd__(self, other: int) -> Objective:
        """``0 + self``, with which sum() begins."""
        return self if other == 0 else NotImplemented

    def __mul__(self, weight: float) -> WeightedSum:
        return WeightedSum([(float(weight), self)])

    __rmul__ = __mul__


class WeightedSum(Objective):
    """sum_k weight_k * objective_k; nested sums are flattened."""

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        super().__init__()
        self.weights: list[float] = []
        flat: list[tuple[float, Objective]] = []
        for weight, objective in terms:
            if isinstance(objective, WeightedSum):
                inner = zip(objective.weights, objective.terms(), strict=True)
                flat += [(weight * w, term) for w, term in inner]
            else:
                flat.append((weight, objective))
        self.weights = [weight for weight, _ in flat]
        self.objectives = nn.ModuleList(objective for _, objective in flat)
        self.needs_states = any(term.needs_states for term in self.terms())
        self.label_weight = 1.0
        for term in self.terms():
            self.label_weight *= term.label_weight

    def extra_repr(self) -> str:
        """Weights."""
        return f"weights={self.weights}"

    def terms(self) -> list[Objective]:
        """The summed objectives, without their weights."""
        return list(self.objectives)  # type: ignore[arg-type]

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Set up every term."""
        for term in self.terms():
            term.setup(teacher, student_widths, graph)

    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted sum of the terms."""
        total = student.logits.new_zeros(())
        self.scalars = {}
        for weight, term in zip(self.weights, self.terms(), strict=True):
            total = total + weight * term(student, teacher, nodes)
            self.scalars |= term.scalars
        return total
