"""DistributedDistiller: the loop of Distiller in several processes at once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._captured_step import CapturedStep
from abkd_fast._checkpoint import Progress, RunFolder, Trained, load_checkpoint
from abkd_fast._epoch import BatchEpoch
from abkd_fast._step import Step
from abkd_fast.capture import Capture, Recorder
from abkd_fast.data import GraphData
from abkd_fast.distill import ABKD, Objective
from abkd_fast.distributed.batches import RankBatches
from abkd_fast.distributed.epoch import SharedEpoch
from abkd_fast.distributed.part import PartData, TeacherPart
from abkd_fast.distributed.step import shared, shared_capture
from abkd_fast.distributed.world import World
from abkd_fast.nn import GATConv, GATv2Conv, RGCNConv
from abkd_fast.result import TrainingError
from abkd_fast.teacher import TeacherCache
from abkd_fast.trainer import Distiller


class DistributedDistiller(Distiller):
    """:class:`abkd_fast.Distiller` whose steps are shared out to the ranks of a :class:`World`.

    Without ``batches`` every rank trains on its part of the whole graph (METIS; rows of other
    parts are fetched before every aggregation), and the loss and gradients are those of one
    process. With ``batches`` every rank takes its share of the seed nodes of a step. Rank 0
    writes checkpoint and log, and all ranks go on from them: ``out`` must be one folder for all.

    Args:
        world: the processes.
        teacher: as for Distiller; every rank keeps its own rows of the states alone.
        student: its weights are taken from rank 0.
        data: the same on every rank.
        objective: KD, ABKD, a sum of them, or others that say ``node_mean``.
        options: the other arguments of Distiller; callbacks run on rank 0 alone.

    Raises:
        ValueError: an option that is not distributed, by its name.
    """

    def __init__(
        self,
        world: World,
        teacher: nn.Module | TeacherCache | None,
        student: nn.Module,
        data: GraphData,
        objective: Objective | None = None,
        **options: Any,
    ) -> None:
        self.world = world
        super().__init__(teacher, student, data, objective, **options)
        if self.capture_step:
            raise ValueError("capture_step must be False in several processes, got True")
        if self.training is not data:
            raise ValueError(f"data must be trained on as a whole, got inductive {data.name!r}")
        if not world.is_first:
            self.callbacks = []
        self._folder = _RankFolder(self._folder, self.out, self._identity, world)
        if self.batches is not None:
            self.batches = RankBatches(self.batches, world)  # type: ignore[assignment]
            return
        _check_parts(student, objective)
        self.part = PartData.of(data, world)
        self.training = self.part
        if self.teacher is not None:
            self.teacher = TeacherPart(self.teacher, self.part.nodes)

    def _setup(self, recorder: Recorder) -> Trained:
        with torch.no_grad():
            for value in self.student.state_dict().values():
                self.world.broadcast_(value)
        return super()._setup(recorder)

    def _make_step(
        self, recorder: Recorder, trained: Trained, progress: Progress
    ) -> Step | CapturedStep | BatchEpoch:
        made = super()._make_step(recorder, trained, progress)
        if isinstance(made, BatchEpoch):
            step = shared(made.step, self.world)
            return SharedEpoch(step, made.batches, recorder, self._forward, progress)
        assert isinstance(made, Step)
        data, whole, collect = self.part, self.data, made.collect
        weight = data.num_rows / whole.num_rows
        labels = _count(data) / _count(whole)

        def collect_shared() -> Capture:
            return shared_capture(collect(), self.world, weight, share=1.0)

        return replace(
            shared(made, self.world),
            collect=collect_shared,
            label_weight=labels,
            objective_weight=weight,
        )

    @torch.no_grad()
    def _predict(self) -> Tensor:
        """Class scores of all nodes, on every rank."""
        if self.batches is not None:
            return super()._predict()
        self.student.eval()
        own = self._forward(self.training)
        scores = own.new_zeros(self.data.num_rows, own.size(1))
        scores[self.part.nodes] = own
        return self.world.sum_(scores)  # every row is one rank's


class _RankFolder(RunFolder):
    """The folder of a run, which rank 0 alone writes to."""

    def __init__(self, folder: RunFolder, out: Any, identity: Any, world: World) -> None:
        super().__init__(out, identity)
        self._world = world

    def lock(self) -> AbstractContextManager[None]:
        return super().lock() if self._world.is_first else nullcontext()

    def resume(self, trained: Trained) -> Progress:
        """Restore the last checkpoint on every rank."""
        if self._world.is_first:
            progress = super().resume(trained)
        else:
            progress = Progress()
            if self.checkpoint is not None and self.checkpoint.exists():
                progress = load_checkpoint(self.checkpoint, trained, self._identity)
        total = self._world.sum_numbers(progress.epoch)[0]
        if total != progress.epoch * self._world.size:
            raise TrainingError(
                f"all ranks must go on from one epoch, but rank {self._world.rank} read epoch "
                f"{progress.epoch} from {self.checkpoint}; use a folder that all of them see"
            )
        return progress

    def write(self, trained: Trained, progress: Progress, every: int) -> None:
        if self._world.is_first:
            super().write(trained, progress, every)
        elif progress.finished or progress.epoch % every == 0:
            progress.saved = progress.epoch


def _check_parts(student: nn.Module, objective: Objective | None) -> None:
    """Raise ValueError for what does not add up over the parts of a graph."""
    for name, module in student.named_modules():
        kind = type(module)
        ours = isinstance(module, GATConv | GATv2Conv | RGCNConv)
        if ours or isinstance(module, nn.modules.batchnorm._BatchNorm) or _from_pyg(kind):
            raise ValueError(
                f"student must have layers that read a part of a graph, got {kind.__name__} "
                f"({name}); GCNConv, GCN2Conv, SAGEConv and linear layers do, others can be "
                "distributed over batches"
            )
    for term in [] if objective is None else objective.terms():
        masked = isinstance(term, ABKD) and term.mask is not None
        if masked or not term.node_mean:
            kind_name = "ABKD with a mask" if masked else type(term).__name__
            raise ValueError(
                "objective must be a mean over all nodes to be summed over parts of a graph, got "
                f"{kind_name}; KD and ABKD over all nodes are"
            )


def _from_pyg(kind: type) -> bool:
    return any(base.__module__.startswith("torch_geometric.nn") for base in kind.__mro__)


def _count(data: GraphData) -> int:
    """What the loss on labels is a mean over: training rows, or their known labels."""
    mask, y = data.train_mask, data.y
    return int((mask if y.dim() == 1 else mask[:, None] & ~y.isnan()).count_nonzero())
