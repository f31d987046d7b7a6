"""pair_infonce: contrastive dissimilarity of all layer pairs, and every gradient, at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast._autocast import widened, without_autocast
from abkd_fast._backend import register
from abkd_fast._checks import check_tensor
from abkd_fast.ops._layer_pair_autograd import scaled
from abkd_fast.reference.pair_infonce import op_pair_infonce

_DTYPES = (torch.float32, torch.float64)
_STORED = (torch.float16, torch.bfloat16, *_DTYPES)


@without_autocast
def pair_infonce(
    student: Tensor,
    teacher: Tensor,
    attention: Tensor | None = None,
    *,
    temperature: float = 0.075,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""mean(A * D): how well a row of one layer tells its node from all others in the other.

    .. math:: D_{ij} = \frac{1}{B} \sum_v -\log
        \frac{\exp(\langle u_{jv}, w_{iv} \rangle / \tau)}
             {\sum_x \exp(\langle u_{jv}, w_{ix} \rangle / \tau)}

    InfoNCE, as in G-CRD (Joshi et al., arXiv 2111.04964), for every pair of a teacher layer i and
    a student layer j. Scores are taken span by span of rows and their exponentials are used while
    they are there, for the loss and for the gradients of A and of both sides: 6 B^2 d multiplies
    and additions a pair, the least that both gradients take, and memory that grows with B. The
    backward scales what the forward found. Scores may differ by any amount: exponents are relative
    to the largest of a row; numbers that are not finite make the loss NaN. Deterministic.

    Rows are taken as they are; where <u, w> is to be a cosine, normalise them before, e.g. with
    ``torch.nn.functional.normalize``.

    Args:
        student: u, rows of S layers [S, B, d], or of one [B, d]; float32/float64. 16-bit rows are
            computed in float32.
        teacher: w, rows of the same nodes in T layers [T, B, d], or in one [B, d].
        attention: A [T, S]; None = 1 for every pair.
        temperature: tau > 0.
        mask: [B] bool, rows that count on both sides, or their indices, int64 in increasing order;
            None = all. B is then their number. Without rows the mean is NaN.

    Returns:
        (loss, D): scalar, differentiable once, and [T, S], detached; dtype of the rows.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
    """
    student = widened(_as_stack("student", student))
    teacher = widened(_as_stack("teacher", teacher))
    attention = None if attention is None else widened(attention)
    _check(student, teacher, attention, temperature)
    if mask is not None:
        index = _indices(mask, student)
        student, teacher = student.index_select(1, index), teacher.index_select(1, index)
    if attention is None:
        attention = student.new_ones(teacher.size(0), student.size(0))
    grad = torch.is_grad_enabled()
    wanted = (grad and student.requires_grad, grad and teacher.requires_grad)
    inputs = (student, teacher, attention.contiguous())
    loss, dissimilarity = _PairInfonce.apply(*inputs, temperature, *wanted)
    return loss, dissimilarity


def _as_stack(name: str, rows: Tensor) -> Tensor:
    """[layers, B, d] of rows that may be one layer's."""
    check_tensor(name, rows, dtypes=_STORED)
    if rows.dim() not in (2, 3) or 0 in (rows.size(0) if rows.dim() == 3 else 1, rows.size(-1)):
        raise ValueError(
            f"{name} must be [layers >= 1, B, d >= 1] or [B, d >= 1], got {list(rows.shape)}"
        )
    return rows if rows.dim() == 3 else rows[None]


def _check(student: Tensor, teacher: Tensor, attention: Tensor | None, temperature: float) -> None:
    check_tensor("teacher", teacher, dtypes=(student.dtype,), device=student.device)
    if teacher.shape[1:] != student.shape[1:]:
        raise ValueError(
            f"teacher must have rows [B, d] = {list(student.shape[1:])} as student has, got "
            f"{list(teacher.shape[1:])}; project both to one width"
        )
    if attention is not None:
        check_tensor("attention", attention, dtypes=(student.dtype,), device=student.device)
        pairs = [teacher.size(0), student.size(0)]
        if list(attention.shape) != pairs:
            raise ValueError(f"attention must be [T, S] = {pairs}, got {list(attention.shape)}")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be finite and > 0, got {temperature}")


def _indices(mask: Tensor, student: Tensor) -> Tensor:
    check_tensor("mask", mask, dim=1, dtypes=(torch.bool, torch.int64), device=student.device)
    if mask.dtype == torch.int64:
        return mask
    if mask.numel() != student.size(1):
        raise ValueError(f"mask must be [B={student.size(1)}], got {list(mask.shape)}")
    return mask.nonzero().flatten()


class _PairInfonce(Function):
    """The gradients are there after the forward; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        attention: Tensor,
        temperature: float,
        want_student: bool,
        want_teacher: bool,
    ) -> tuple[Tensor, Tensor]:
        share = attention / attention.numel()
        dissimilarity, dstudent, dteacher = torch.ops.abkd_fast.pair_infonce(
            student, teacher, share, temperature, want_student, want_teacher
        )
        loss = (attention.double() * dissimilarity).mean().to(student.dtype)
        dattention = (dissimilarity / dissimilarity.numel()).to(student.dtype)
        ctx.save_for_backward(dstudent, dteacher, dattention)
        dissimilarity = dissimilarity.to(student.dtype)
        ctx.mark_non_differentiable(dissimilarity)
        return loss, dissimilarity

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "pair_infonce has no second derivative; differentiate without create_graph=True, "
                "or use abkd_fast.reference.pair_infonce"
            )
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        gradients = [scaled(gradient, dloss) if want else None for gradient, want in wanted]
        return *gradients, None, None, None


def _shapes(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    temperature: float,
    want_student: bool,
    want_teacher: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        weight.new_empty(weight.shape, dtype=torch.float64),
        student.new_empty(student.size(0) if want_student else 0, *student.shape[1:]),
        teacher.new_empty(teacher.size(0) if want_teacher else 0, *teacher.shape[1:]),
    )


register("pair_infonce", op_pair_infonce, _shapes)
