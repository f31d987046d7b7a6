"""One epoch over mini-batches: a step on each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from abkd_fast._checkpoint import Progress
from abkd_fast._step import Step
from abkd_fast.batches import Batch, Batches
from abkd_fast.capture import Capture, Recorder
from abkd_fast.data import GraphData


@dataclass
class BatchEpoch:
    r"""Runs ``step`` on every batch of an epoch.

    Only the first B rows of a batch count, beside the teacher's rows of those nodes. With l of the
    L training nodes among the M nodes of an epoch in a batch, the mean cross-entropy of the l is
    weighted by :math:`l M / (L B)`: its expectation over batches is the mean over all training
    nodes, though batches hold different numbers of them.

    Attributes:
        step: the step over all nodes, made over for every batch.
        batches: where the batches come from.
        recorder: of the student's states.
        forward: the student's class scores on data.
        progress: tells the epoch.
    """

    step: Step
    batches: Batches
    recorder: Recorder
    forward: Callable[[GraphData], Tensor]
    progress: Progress

    def run(self) -> dict[str, float]:
        """Make the steps; returns the means of their scalars over nodes, and the last rate."""
        totals: dict[str, float] = {}
        count, rate = 0, 0.0
        for batch in self.batches.epoch(self.progress.epoch):
            step, size = self._step_on(batch)
            record = step.run()
            rate = record.pop("lr")
            count += size
            for name, value in record.items():
                totals[name] = totals.get(name, 0.0) + size * value
        return {name: total / count for name, total in totals.items()} | {"lr": rate}

    def _step_on(self, batch: Batch) -> tuple[Step, int]:
        """The step on a batch, and how many nodes count in it."""
        rows = slice(batch.batch_size)
        train_mask = batch.data.train_mask[rows]
        share = float(train_mask.double().mean())
        step = replace(
            self.step,
            collect=partial(self._collect, batch, rows),
            y=batch.data.y[rows],
            train_mask=train_mask,
            nodes=batch.nodes[rows],
            label_weight=share / self.batches.train_share,
        )
        return step, batch.batch_size

    def _collect(self, batch: Batch, rows: slice) -> Capture:
        whole = self.recorder.collect(partial(self.forward, batch.data), batch.data.graph)
        if batch.batch_size == batch.nodes.numel():
            return whole
        states = [state[rows] for state in whole.states]
        return Capture(states, whole.logits[rows], whole.names)
