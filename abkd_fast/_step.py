"""One training step over all nodes: forward, loss, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd_fast import ops
from abkd_fast._checkpoint import Trained
from abkd_fast.capture import Capture
from abkd_fast.data import GraphData
from abkd_fast.distill import Objective
from abkd_fast.teacher import TeacherCache

Scalars = dict[str, Tensor]


@dataclass
class Step:
    """loss = objective.label_weight * CE(train nodes) + objective(student, teacher), and its step.

    Attributes:
        collect: runs the student and returns its states and scores.
        data: labels and splits.
        objective: None = labels alone.
        teacher: what the objective reads.
        trained: what the step changes.
        check: raises unless all of the scalars are finite; the host waits for them.
    """

    collect: Callable[[], Capture]
    data: GraphData
    objective: Objective | None
    teacher: TeacherCache | None
    trained: Trained
    check: Callable[[Scalars], None]

    def run(self) -> dict[str, float]:
        """Make a step; returns its scalars and learning rate."""
        self.trained.student.train()
        loss, scalars = self._losses(self.check)
        self.check(scalars)
        self.trained.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        record = {name: float(value) for name, value in scalars.items()}
        record["lr"] = self.learning_rate()
        self.trained.optimizer.step()
        self.advance_schedule()
        return record

    def run_on_device(self) -> Scalars:
        """The same without a word from the host: nothing is read, no step depends on a value.

        The scalars are checked later, so an update from a loss that is not finite is skipped.
        The schedule is left to :meth:`advance_schedule`, and the student's mode to the caller.
        """
        loss, scalars = self._losses(lambda _: None)
        optimizer = self.trained.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        finite = torch.stack([value.isfinite() for value in scalars.values()]).all()
        # What torch.amp tells fused optimisers of gradients that overflowed.
        optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
        return scalars

    def learning_rate(self) -> float:
        """That of the first group of parameters."""
        return float(self.trained.optimizer.param_groups[0]["lr"])

    def advance_schedule(self) -> None:
        """Set the learning rates of the next step."""
        if self.trained.scheduler is not None:
            self.trained.scheduler.step()

    def _losses(self, check: Callable[[Scalars], None]) -> tuple[Tensor, Scalars]:
        """The loss, and what is logged of it."""
        capture = self.collect()
        loss, _ = ops.kl_div(capture.logits, self.data.y, self.data.train_mask)
        scalars = {"ce": loss.detach()}
        check(scalars)
        if self.objective is not None:
            assert self.teacher is not None
            loss = self.objective.label_weight * loss + self.objective(capture, self.teacher)
            scalars |= self.objective.scalars
        return loss, {"loss": loss.detach(), **scalars}
