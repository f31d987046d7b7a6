"""What objectives beside ABKD read of a teacher and a student, for some of the nodes or all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abkd_fast._autocast import widened
from abkd_fast._mapped import mapped_file
from abkd_fast.capture import Capture
from abkd_fast.graph import CSRGraph
from abkd_fast.subgraph import induced_subgraph
from abkd_fast.teacher import TeacherCache


def check_weight(name: str, value: float) -> float:
    """``value``; ValueError unless it is a finite number >= 0."""
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} must be >= 0 and finite, got {value}")
    return float(value)


def check_size(name: str, value: int) -> int:
    """``value``; ValueError unless it is >= 1."""
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return value


def check_temperature(name: str, value: float) -> float:
    """``value``, which divides scores; ValueError unless it is a finite number > 0."""
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} must be > 0 and finite, got {value}")
    return float(value)


def check_widths(student: Capture, widths: list[int]) -> None:
    """Raise ValueError unless the student's states are as wide as in setup."""
    if student.widths != widths:
        raise ValueError(
            f"student states must have widths {widths} as in setup, got {student.widths}"
        )


def student_layers(name: str, widths: list[int]) -> list[int]:
    """``widths``; ValueError if there are none."""
    if not widths:
        raise ValueError(f"{name} needs at least one captured student layer, got none")
    return widths


def teacher_layer(teacher: TeacherCache, layer: int, nodes: Tensor | None = None) -> Tensor:
    """State [B, d] of one layer at ``nodes`` [B] int64 (None = all), on the teacher's device.

    Of a float64 cache in torch's default dtype, which the objectives' own weights have.
    """
    state = teacher.layer(layer)
    rows = state if nodes is None else state[nodes.to(state.device)]
    rows = widened(rows.to(teacher.device))
    file = mapped_file(teacher.states)
    if file is not None and rows.data_ptr() != state.data_ptr():
        file.drop(teacher.states)
    return rows.to(torch.get_default_dtype()) if rows.dtype == torch.float64 else rows


def last_layer(teacher: TeacherCache) -> Tensor:
    """The last state [N, d] for all of a run: in memory, and in one piece."""
    state = teacher_layer(teacher, -1)
    return state.clone() if teacher.storage == "mmap" else state.contiguous()


def teacher_logits(name: str, teacher: TeacherCache, student: Capture, at: Tensor | None) -> Tensor:
    """Class scores [B, C] at ``at``; ValueError unless the student's have that shape."""
    if teacher.logits is None:
        raise ValueError(f"{name} needs the teacher's class scores; build the cache with logits")
    logits = teacher.logits if at is None else teacher.logits[at]
    if logits.shape != student.logits.shape:
        raise ValueError(
            f"student logits must be {list(logits.shape)} as the teacher's are, "
            f"got {list(student.logits.shape)}"
        )
    return widened(logits)


def draw_rows(count: int, samples: int, device: torch.device) -> Tensor | None:
    """Rows [samples] int64 out of ``count``, distinct and ascending; None where all are wanted."""
    if count <= samples:
        return None
    return torch.randperm(count)[:samples].sort().values.to(device)


def picked(student: Capture, nodes: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """The teacher rows that ``rows`` of the student's stand for; None = all."""
    if rows is None or nodes is None:
        return rows if nodes is None else nodes
    return nodes[rows]


def graph_among(
    name: str, student: Capture, graph: CSRGraph | None, nodes: Tensor | None
) -> CSRGraph:
    """The edges among the student's rows: of all nodes, of its batch, or of ``nodes``."""
    if nodes is not None and student.graph is not None:
        return student.graph
    if graph is None:
        raise ValueError(f"{name} needs the graph in setup, got None")
    return graph if nodes is None else induced_subgraph(graph, nodes)
