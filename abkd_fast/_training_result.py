"""What a finished training hands back: the best student, its figures and its attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abkd_fast._checkpoint import Progress
from abkd_fast.data import GraphData
from abkd_fast.metrics import count_parameters, peak_bytes, quantiles, split_scores
from abkd_fast.result import DistillResult
from abkd_fast.teacher import TeacherCache

PREFIX = "student."


def load_best(student: nn.Module, progress: Progress) -> None:
    """Put the weights of the best epoch into the student."""
    student.load_state_dict(
        {k.removeprefix(PREFIX): v for k, v in progress.best.items() if k.startswith(PREFIX)}
    )


def distill_result(
    student: nn.Module,
    progress: Progress,
    data: GraphData,
    logits: Tensor,
    teacher_logits: Tensor | None,
    teacher: TeacherCache | None,
    checkpoint: Path | None,
) -> DistillResult:
    """The result of a run, with the class scores of both sides on all of ``data`` [N, C]."""
    parameters = count_parameters(student)
    metrics: dict[str, Any] = {
        "student": {"parameters": parameters, **split_scores(logits, data)},
        "teacher": None,
        "compression_ratio": None,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "step_ms": quantiles([record["step_ms"] for record in progress.history]),
        "peak_bytes": peak_bytes(),
    }
    if teacher is not None and teacher_logits is not None:
        scores = split_scores(teacher_logits, data)
        metrics["teacher"] = {"parameters": teacher.parameters, **scores}
        if teacher.parameters is not None:
            metrics["compression_ratio"] = teacher.parameters / parameters
    return DistillResult(
        student=student,
        metrics=metrics,
        history=progress.history,
        attention=progress.best.get("attention"),
        dissimilarity=progress.best.get("dissimilarity"),
        attention_history=torch.stack(progress.maps) if progress.maps else None,
        attention_epochs=progress.map_epochs,
        checkpoint=checkpoint,
    )
