"""What a training run gives back, and the error of one that cannot go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the epoch, the cause and the last checkpoint."""


@dataclass
class DistillResult:
    """What :meth:`Distiller.fit` returns.

    Attributes:
        student: the student with its best weights, in eval mode.
        metrics: accuracies in percent, parameters, compression ratio, best epoch, step time in
            ms, peak resident bytes of the process.
        history: one record an epoch.
        attention: [T, S] map at the best epoch, None without ABKD.
        dissimilarity: [T, S] D at the best epoch, None without ABKD.
        attention_history: [K, T, S] maps at ``attention_epochs``, None without ABKD.
        attention_epochs: the epochs of ``attention_history``.
        checkpoint: the checkpoint file, None without ``out``.
    """

    student: nn.Module
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    attention: Tensor | None
    dissimilarity: Tensor | None
    attention_history: Tensor | None
    attention_epochs: list[int]
    checkpoint: Path | None
