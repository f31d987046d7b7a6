"""Divergence of neighbourhood softmaxes in plain torch: the definition, the oracle, the fallback.

All of it gathers both ends of every edge, [E, d].
"""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast.graph import CSRGraph
from abkd_fast.reference.edge_attention import edge_rows, row_max, row_sum

KERNELS = ("rbf", "cosine", "poly", "l2")
RBF, L2, POWER = 0, 1, 2  # of the operators; csrc/cpu/neighbor_kl.h


def neighbor_kl(
    graph: CSRGraph,
    student: Tensor,
    teacher: Tensor | None = None,
    *,
    log_target: Tensor | None = None,
    kernel: str = "rbf",
    c: float = 0.0,
    power: int = 2,
) -> Tensor:
    """Divergence, differentiable by autograd; see :func:`abkd_fast.ops.neighbor_kl`."""
    if log_target is None:
        assert teacher is not None
        log_target = neighbor_log_softmax(graph, teacher, kernel=kernel, c=c, power=power)
    log_p = neighbor_log_softmax(graph, student, kernel=kernel, c=c, power=power)
    return (log_target.exp() * (log_target - log_p)).sum() / graph.num_dst


def neighbor_log_softmax(
    graph: CSRGraph, x: Tensor, *, kernel: str = "rbf", c: float = 0.0, power: int = 2
) -> Tensor:
    """Log-probabilities [E], differentiable; see :func:`abkd_fast.ops.neighbor_log_softmax`."""
    return op_neighbor_log_softmax(graph.rowptr, graph.col, *as_operator(x, kernel, c, power))


def as_operator(x: Tensor, kernel: str, c: float, power: int) -> tuple[Tensor, int, float, int]:
    """(rows, similarity, offset, power) for the operators: a cosine is a product of unit rows."""
    if kernel == "cosine":
        return unit_rows(x), POWER, 0.0, 1
    return x, {"rbf": RBF, "l2": L2, "poly": POWER}[kernel], float(c), int(power)


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their lengths; zeros stay, and get no gradient, where 1 / 0 would be one."""
    square = x.square().sum(1, keepdim=True)
    positive = square > 0
    return x * (torch.where(positive, square, 1.0).rsqrt() * positive)


def _scores(
    row: Tensor, source: Tensor, x: Tensor, similarity: int, offset: float, power: int
) -> tuple[Tensor, Tensor]:
    """Similarities [E] of both ends of every edge, and their slopes in the other end."""
    if similarity == POWER:
        base = (x[row] * x[source]).sum(1) + offset
        return base**power, power * base ** (power - 1)
    square = (x[row] - x[source]).square().sum(1)
    if similarity == L2:
        return square, torch.full_like(square, -2.0)
    score = (-0.5 * square).exp()
    return score, score


def _log_softmax(score: Tensor, row: Tensor, rows: int) -> Tensor:
    score = score.unsqueeze(1)
    shifted = score - row_max(score, row, rows)[row]
    return (shifted - row_sum(shifted.exp(), row, rows).log()[row]).squeeze(1)


def op_neighbor_log_softmax(
    rowptr: Tensor, col: Tensor, x: Tensor, similarity: int, offset: float, power: int
) -> Tensor:
    """Log of the softmax over every row of the similarities of x [N, d] along edges, [E]."""
    row, source = edge_rows(rowptr, col)
    score, _ = _scores(row, source, x, similarity, offset, power)
    return _log_softmax(score, row, rowptr.numel() - 1)


def op_neighbor_kl(
    rowptr: Tensor,
    col: Tensor,
    rowptr_t: Tensor | None,
    col_t: Tensor | None,
    perm: Tensor | None,
    student: Tensor,
    teacher: Tensor | None,
    log_target: Tensor | None,
    similarity: int,
    offset: float,
    power: int,
) -> tuple[Tensor, Tensor]:
    """(loss [], dstudent [N, d]); dstudent is [0] without the transpose."""
    rows, (row, source) = rowptr.numel() - 1, edge_rows(rowptr, col)
    options = (similarity, offset, power)
    if log_target is None:
        assert teacher is not None
        log_target = op_neighbor_log_softmax(rowptr, col, teacher, *options)
    score, slope = _scores(row, source, student, *options)
    log_p = _log_softmax(score, row, rows)
    target = log_target.exp()
    loss = (target * (log_target - log_p)).sum() / rows
    if rowptr_t is None:
        return loss, student.new_empty(0)
    weight = ((log_p.exp() - target) * slope / rows).unsqueeze(1)
    here, there = student[source], student[row]
    if similarity != POWER:
        here = here - student[row]
        there = there - student[source]
    return loss, row_sum(weight * here, row, rows) + row_sum(weight * there, source, rows)
