"""layer_pair: attention-weighted dissimilarity of all layer pairs, and every gradient, at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from abkd_fast._autocast import autocast_dtype, widened, without_autocast
from abkd_fast.ops import _layer_pair_checks as checks
from abkd_fast.ops import _layer_pair_maps as _layer_pair_maps  # registers its ops
from abkd_fast.ops import _layer_pair_passes as _layer_pair_passes
from abkd_fast.ops._layer_pair_autograd import LayerPair
from abkd_fast.ops._layer_pair_blocks import (
    Problem,
    Totals,
    Wanted,
    near_mean,
    select_nodes,
    zero_totals,
)
from abkd_fast.ops._layer_pair_direct import add_near_pairs, correct_near_pairs
from abkd_fast.ops._layer_pair_moment import Moments as Moments
from abkd_fast.ops._layer_pair_moment import run_moment
from abkd_fast.ops._layer_pair_moment import teacher_moments as teacher_moments
from abkd_fast.ops._layer_pair_projection import run_projection

# Below this share of the terms it is a difference of, D has lost too many digits.
_NEAR = 1e-3


def layer_pair(
    teacher: Tensor,
    widths: Sequence[int],
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor] | Tensor,
    student_maps: Sequence[Tensor] | Tensor,
    *,
    moments: Moments | None = None,
    shift: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mean(A * D) with D_ij = 1/(N r) sum_v w_v |(t_iv - shift_i) M_i - s_jv N_j|^2.

    One pass over the teacher in node blocks gives the loss and all its gradients (attention,
    maps, student states); nothing of size N x T x r or N x T x S is ever held. With ``moments``
    and a narrow student the pass needs only t^T h ("moment form"), else the projections are
    scored ("projection form"); both are exact, and the cheaper one is taken. On the CPU, C++
    kernels do both. Pairs whose
    projections nearly coincide (D below 1/1000 of the squares it is a difference of) are summed
    again, without expanding the square. Sums over blocks are float64. Deterministic.

    On a GPU the host waits for nothing, but to count a bool ``mask`` and to add up a ``weight``:
    pass indices for a mask that is used again and again. A CUDA graph can hold the call then.

    Precision: products are taken in the dtype of the student states, and autocast changes that as
    little as it does for torch's losses: 16-bit arguments are taken in float32. A bfloat16 teacher
    is widened block by block, so the only error it adds is the rounding of its stored values.

    Args:
        teacher: [N, sum(widths)] bfloat16/float32/float64, all layers of a node side by side;
            frozen; may be memory-mapped, or in host memory while all else is on a GPU: then it is
            copied in row blocks, the next one while this one is read.
        widths: width d_i of each of T teacher layers.
        student_states: S of [N, d_j] float32/float64.
        attention: A [T, S].
        teacher_maps: M_i, T of [d_i, r], or one below the other [sum(widths), r].
        student_maps: N_j, S of [d_j, r], or one below the other [sum d_j, r].
        moments: moments of the raw teacher under the same mask or weight
            (:func:`teacher_moments`); allows the moment form.
        shift: [sum(widths)] float32/float64, subtracted from the teacher.
        mask: [N] bool, nodes that count, or their indices, int64 in increasing order; N is then
            their number.
        weight: [N] float32/float64 >= 0, w; N is then its sum. Not together with mask.

    Returns:
        (loss, D): scalar, differentiable once, and [T, S], detached; dtype of student_states.

    Raises:
        ValueError: names the argument, the expectation and the value. Teacher and states are
            searched for NaN only after the result turned out not to be finite; on a GPU they are
            not, and such a result is returned as it is.
    """
    checks.check_teacher(teacher, widths)
    device = getattr(next(iter(student_states), None), "device", teacher.device)
    if autocast_dtype(device.type) is not None:
        attention, student_states = widened(attention), [widened(h) for h in student_states]
        teacher_maps, student_maps = _widened(teacher_maps), _widened(student_maps)
    checks.check_states(teacher, student_states)
    checks.check_pairing(widths, student_states, attention, teacher_maps, student_maps)
    checks.check_nodes(teacher, shift, mask, weight, device)
    if moments is not None:
        checks.check_moments(moments, widths, device)
    teacher_map, student_map = _stacked(teacher_maps), _stacked(student_maps)
    use_moments = prefers_moment_form(
        len(widths), len(student_states), sum(widths), teacher_map.size(1), student_map.size(0),
        frozen=not teacher_map.requires_grad,
    )  # fmt: skip
    return _layer_pair(
        teacher, widths, student_states, attention, teacher_map, student_map, moments, shift,
        mask, weight, use_moments,
    )  # fmt: skip


def _widened(parts: Sequence[Tensor] | Tensor) -> list[Tensor] | Tensor:
    return widened(parts) if isinstance(parts, Tensor) else [widened(part) for part in parts]


def _stacked(maps: Sequence[Tensor] | Tensor) -> Tensor:
    return maps if isinstance(maps, Tensor) else torch.cat(list(maps))


def prefers_moment_form(
    num_teacher: int,
    num_student: int,
    teacher_width: int,
    r: int,
    student_width: int,
    *,
    frozen: bool = False,
) -> bool:
    """Cost model, multiply-adds per node: is the moment form cheaper than the projection form?

    What is done with a projection once it is there costs as much as 16 + 4 S multiply-adds per
    element, measured.

    Args:
        num_teacher: T.
        num_student: S.
        teacher_width: sum of all d_i.
        r: subspace width.
        student_width: sum of all d_j.
        frozen: the teacher's maps get no gradient, which spares the projection form a product.
    """
    moment = 2 * teacher_width * student_width
    products = 1 if frozen else 2
    projection = products * teacher_width * r + num_teacher * r * (16 + 4 * num_student)
    return moment < projection


torch.library.define(
    "abkd_fast::layer_pair",
    "(Tensor teacher, SymInt[] widths, Tensor[] student_states, Tensor attention,"
    " Tensor teacher_map, Tensor student_map, Tensor? mean, Tensor[] second, float? count,"
    " Tensor? shift, Tensor? mask, Tensor? weight, bool want_teacher_map, bool want_student)"
    " -> (Tensor loss, Tensor dissimilarity, Tensor dattention, Tensor dteacher_map,"
    " Tensor dstudent_map, Tensor dstates)",
)


def _blocked(
    teacher: Tensor,
    widths: Sequence[int],
    student_states: list[Tensor],
    attention: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    mean: Tensor | None,
    second: list[Tensor],
    count: float | None,
    shift: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    want_teacher_map: bool,
    want_student: bool,
) -> tuple[Tensor, ...]:
    """Loss, D and gradients of one call; ``mean`` and ``second`` choose the moment form."""
    dtype = student_states[0].dtype
    checks.check_index(mask, teacher.size(0))
    nodes, weight = select_nodes(mask, weight, dtype)
    total = checks.check_values(teacher.size(0), nodes, weight, count)
    problem = Problem(
        teacher, list(widths), student_states, nodes, weight,
        torch.cat([near_mean(state, nodes, dtype) for state in student_states]),
        teacher_map, student_map, None if shift is None else shift.double(), total,
    )  # fmt: skip
    wanted = Wanted(want_teacher_map, want_student)
    totals = _run(problem, attention.double(), mean, second, wanted)
    d = totals.dissimilarity
    if d.device.type == "cpu" and not bool(d.isfinite().all()):  # a device's host does not wait
        small = {
            "attention": attention,
            "teacher_maps": teacher_map,
            "student_maps": student_map,
            "moments.mean": mean,
            "shift": shift,
        }
        checks.check_inputs_finite(student_states, small, teacher)
    loss = (attention.double() * d).mean()
    return (
        loss.to(dtype),
        d.to(dtype),
        (d / d.numel()).to(dtype),
        totals.dteacher_map.to(dtype) if want_teacher_map else attention.new_empty(0),
        totals.dstudent_map.to(dtype) if want_student else attention.new_empty(0),
        totals.dstates if want_student else attention.new_empty(0, student_map.size(0)),
    )


torch.library.impl("abkd_fast::layer_pair", ("cpu", "cuda"), _blocked)


@torch.library.register_fake("abkd_fast::layer_pair")
def _shapes(
    teacher: Tensor,
    widths: Sequence[int],
    student_states: list[Tensor],
    attention: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    want_teacher_map, want_student = args[-2:]
    return (
        attention.new_empty(()),
        torch.empty_like(attention),
        torch.empty_like(attention),
        attention.new_empty(teacher_map.shape if want_teacher_map else [0]),
        attention.new_empty(student_map.shape if want_student else [0]),
        attention.new_empty(teacher.size(0) if want_student else 0, student_map.size(0)),
    )


@without_autocast
def _run(
    problem: Problem,
    attention: Tensor,
    mean: Tensor | None,
    second: list[Tensor],
    wanted: Wanted,
) -> Totals:
    """The chosen form, then the pairs for which its expanded square lost too many digits."""

    def run(a: Tensor) -> Totals:
        if mean is None:
            return run_projection(problem, a, wanted)
        return run_moment(problem, a, wanted, mean, second)

    totals = run(attention)
    near = totals.dissimilarity < _NEAR * totals.magnitude
    if near.device.type != "cpu":
        correct_near_pairs(problem, near, totals)
    elif bool(near.any()):
        d = totals.dissimilarity
        if bool(near.all()):
            totals = zero_totals(problem, wanted)
        elif any(wanted):
            totals = run(attention.masked_fill(near, 0.0))
            totals.dissimilarity = d
        add_near_pairs(problem, attention, near, wanted, totals)
    return totals


def _layer_pair(
    teacher: Tensor,
    widths: Sequence[int],
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    moments: Moments | None,
    shift: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    use_moments: bool,
) -> tuple[Tensor, Tensor]:
    """Run one form on packed maps; arguments are checked."""
    mean, second, count = None, [], None
    if moments is not None:
        count = float(moments.count)
        if use_moments:
            mean, second = moments.mean, list(moments.second)
    grad = torch.is_grad_enabled()
    student = (student_map, *student_states)
    want_teacher_map = grad and teacher_map.requires_grad
    want_student = grad and any(tensor.requires_grad for tensor in student)
    constants = (mean, second, count, shift, mask, weight, want_teacher_map, want_student)
    out = LayerPair.apply(teacher, widths, constants, attention, teacher_map, *student)
    return out[0], out[1]
