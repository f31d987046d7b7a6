"""Divergence of what two models hold of every node's neighbourhood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast._backend import register
from abkd_fast._checks import check_choice, check_tensor
from abkd_fast.graph import CSRGraph
from abkd_fast.reference.neighbor_kl import (
    KERNELS,
    as_operator,
    op_neighbor_kl,
    op_neighbor_log_softmax,
)

_WIDE = (torch.float32, torch.float64)


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
    r"""KL divergence of the softmax over every node's neighbours of their similarity to it.

    .. math::
        \frac{1}{N} \sum_i \sum_{j \in N(i)} p^T_{ij} \log \frac{p^T_{ij}}{p^S_{ij}}, \qquad
        p_{ij} = softmax_{j \in N(i)} k(h_i, h_j)

    the local structure that LSP preserves (Yang et al., arXiv 2003.10477, eq. 3 to 7). N(i) is row
    i of the graph, with repeated edges and loops where it has them; its weights play no part, and
    nodes without edges count 0. k is

    - "rbf": :math:`e^{-|h_i - h_j|^2 / 2}`,
    - "cosine": :math:`\langle h_i, h_j \rangle / (|h_i| |h_j|)`, 0 for rows of zeros,
    - "poly": :math:`(\langle h_i, h_j \rangle + c)^{power}`,
    - "l2": :math:`|h_i - h_j|^2`.

    A row at a time is worked on: beside results of size N x d there are four numbers a node, and
    nothing of size E x d. The gradient comes with the value, from one pass over the graph (a
    node as the centre) and one over its transpose (as a neighbour), which the first call computes
    and keeps; both form the similarities again from the rows. A teacher that stays the same is
    cheaper as ``log_target``, E numbers that :func:`neighbor_log_softmax` computes once.
    Differentiable in ``student``; second derivatives go through plain torch. Deterministic, and
    independent of the number of threads.

    Args:
        graph: [N, N].
        student: [N, d_s] float32/float64.
        teacher: [N, d_t], dtype of student; constant.
        log_target: in its place, log p^T [E] in the graph's order, dtype of student; constant.
        kernel: k.
        c: of "poly".
        power: of "poly", >= 1.

    Returns:
        A scalar, dtype of student.

    Raises:
        ValueError: shapes, dtypes or options do not fit.
    """
    _check_rows("student", graph, student)
    _check_kernel(kernel, power)
    if (teacher is None) == (log_target is None):
        raise ValueError("teacher or log_target must be given, and not both")
    if teacher is not None:
        _check_rows("teacher", graph, teacher, student)
        teacher, *_ = as_operator(teacher.detach(), kernel, c, power)
    if log_target is not None:
        check_tensor("log_target", log_target, dim=1, dtypes=(student.dtype,), device=graph.device)
        if log_target.numel() != graph.num_edges:
            raise ValueError(
                f"log_target must be [E={graph.num_edges}], got {list(log_target.shape)}"
            )
        log_target = log_target.detach()
    rows, *options = as_operator(student, kernel, c, power)
    edges = (graph.rowptr, graph.col)
    if not (torch.is_grad_enabled() and student.requires_grad):
        given = (None, None, None, rows, teacher, log_target, *options)
        return torch.ops.abkd_fast.neighbor_kl(*edges, *given)[0]
    return _NeighborKL.apply(*edges, *graph.transposed(), rows, teacher, log_target, *options)


def neighbor_log_softmax(
    graph: CSRGraph, x: Tensor, *, kernel: str = "rbf", c: float = 0.0, power: int = 2
) -> Tensor:
    r"""log p [E], the target of :func:`neighbor_kl` for the rows of a teacher; no gradient.

    Args:
        graph: [N, N].
        x: [N, d] float32/float64.
        kernel: as there.
        c: as there.
        power: as there.

    Returns:
        [E] in the graph's order, dtype of x.

    Raises:
        ValueError: shapes, dtypes or options do not fit.
    """
    _check_rows("x", graph, x)
    _check_kernel(kernel, power)
    rows, *options = as_operator(x.detach(), kernel, c, power)
    return torch.ops.abkd_fast.neighbor_log_softmax(graph.rowptr, graph.col, rows, *options)


def _check_rows(name: str, graph: CSRGraph, x: Tensor, like: Tensor | None = None) -> None:
    if not isinstance(graph, CSRGraph):
        raise ValueError(
            f"graph must be a CSRGraph, got {type(graph).__name__}; "
            "build one with CSRGraph.from_edge_index() or another from_*() method"
        )
    if graph.num_dst != graph.num_src:
        raise ValueError(f"graph must be square, got shape {graph.shape}")
    dtypes = _WIDE if like is None else (like.dtype,)
    check_tensor(name, x, dim=2, dtypes=dtypes, device=graph.device)
    if x.size(0) != graph.num_dst:
        raise ValueError(f"{name} must be [N={graph.num_dst}, d], got {list(x.shape)}")


def _check_kernel(kernel: str, power: int) -> None:
    check_choice("kernel", kernel, KERNELS)
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"power must be an integer >= 1, got {power}")


class _NeighborKL(Function):
    """Keeps the gradient; the inputs for second derivatives only."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        rowptr_t: Tensor,
        col_t: Tensor,
        perm: Tensor,
        student: Tensor,
        teacher: Tensor | None,
        log_target: Tensor | None,
        similarity: int,
        offset: float,
        power: int,
    ) -> Tensor:
        constants = (teacher, log_target, similarity, offset, power)
        loss, dstudent = torch.ops.abkd_fast.neighbor_kl(
            rowptr, col, rowptr_t, col_t, perm, student, *constants
        )
        ctx.options = (similarity, offset, power)
        ctx.save_for_backward(rowptr, col, student, teacher, log_target, dstudent)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        rowptr, col, student, teacher, log_target, dstudent = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = (None, None, None, student, teacher, log_target, *ctx.options)
            loss, _ = op_neighbor_kl(rowptr, col, *given)
            (gradient,) = torch.autograd.grad(loss, student, dloss, create_graph=True)
        else:
            gradient = dloss * dstudent
        return (*(None,) * 5, gradient, *(None,) * 5)


def _like_outputs(
    rowptr: Tensor,
    col: Tensor,
    rowptr_t: Tensor | None,
    col_t: Tensor | None,
    perm: Tensor | None,
    student: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    shape = (0,) if rowptr_t is None else student.shape
    return student.new_empty(()), student.new_empty(shape)


def _like_edges(rowptr: Tensor, col: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(col.numel())


register("neighbor_kl", op_neighbor_kl, _like_outputs)
register("neighbor_log_softmax", op_neighbor_log_softmax, _like_edges)
