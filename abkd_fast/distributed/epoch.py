"""One epoch of data-parallel mini-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from abkd_fast._epoch import BatchEpoch
from abkd_fast._step import Step
from abkd_fast.batches import Batch
from abkd_fast.capture import Capture
from abkd_fast.distributed.step import SharedStep, shared_capture
from abkd_fast.distributed.world import World


@dataclass
class SharedEpoch(BatchEpoch):
    """Makes every step on one batch a rank; each counts with its share of the step's nodes.

    Means of states are over the nodes of all ranks, so running means are the same on all.
    """

    def _step_on(self, batch: Batch) -> tuple[Step, int]:
        step, size = super()._step_on(batch)
        assert isinstance(self.step, SharedStep)
        world = self.step.world
        total = int(world.sum_numbers(size)[0])
        weight = size / total
        share = total / self.batches.data.num_nodes
        return replace(
            step,
            collect=partial(_collect, step, world, weight, share),
            label_weight=weight * step.label_weight,
            objective_weight=weight,
        ), total


def _collect(step: Step, world: World, weight: float, share: float) -> Capture:
    return shared_capture(step.collect(), world, weight, share)
