"""What the settings of every objective have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from abkd_fast.data import GraphData
from abkd_fast.distill import Objective
from abkd_fast.task import MULTICLASS
from abkd_fast.teacher import TeacherCache


@dataclass(frozen=True)
class RunFacts:
    """What an objective has to know of its run beside its settings."""

    task: str = MULTICLASS.name
    train_mask: Tensor | None = None
    """[N] bool, among the rows that steps see; None = all."""
    labels: Tensor | None = None
    """[N] int64 of the rows that steps see, -1 where none is known; None = those of no class."""
    teachers: Sequence[TeacherCache] = ()
    """The further teachers that :attr:`ObjectiveConfig.further_teachers` names."""

    @classmethod
    def of(cls, data: GraphData, teachers: Sequence[TeacherCache] = ()) -> RunFacts:
        """Those of a run on ``data``."""
        part, labels = data.training, None
        if data.task == MULTICLASS.name:
            labels = torch.where(part.train_mask, part.y, -1)
        # Where steps see training rows only, those are all.
        train_mask = data.train_mask if part is data else None
        return cls(data.task, train_mask, labels, teachers)

    @property
    def activation(self) -> str:
        """Of class scores: softmax, or sigmoid where classes do not exclude each other."""
        return "softmax" if self.task == MULTICLASS.name else "sigmoid"


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of an objective: the keyword arguments of its class."""

    objective: ClassVar[type[Objective]]

    def __post_init__(self) -> None:
        self.build(RunFacts())  # its checks

    @property
    def further_teachers(self) -> tuple[Path, ...]:
        """Teachers that the objective needs beside the run's."""
        return ()

    def check_complete(self) -> None:
        """Raise ValueError unless a run of the shell can use these settings as they are."""

    def build(self, run: RunFacts) -> Objective:
        """The objective, for a run."""
        del run
        return self.objective(**asdict(self))
