"""Argument checks of layer_pair: shapes before the op, values inside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abkd_fast._checks import check_finite, check_tensor

if TYPE_CHECKING:
    from abkd_fast.ops._layer_pair_moment import Moments

TEACHER_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.float32, torch.float64)


def check_teacher(teacher: Tensor, widths: Sequence[int]) -> None:
    """Raise ValueError unless teacher is a frozen [N > 0, sum(widths)] matrix."""
    check_tensor("teacher", teacher, dim=2, dtypes=TEACHER_DTYPES)
    if teacher.requires_grad:
        raise ValueError(
            "teacher must not require grad: it is frozen and gets no gradient; "
            "pass teacher.detach()"
        )
    if len(widths) == 0 or min(widths) < 1:
        raise ValueError(f"widths must hold a width >= 1 per teacher layer, got {list(widths)}")
    if sum(widths) != teacher.size(1):
        raise ValueError(
            f"widths must sum to teacher.size(1)={teacher.size(1)}, got sum({list(widths)})="
            f"{sum(widths)}; the teacher holds all layers side by side, [N, sum(widths)]"
        )
    if teacher.size(0) == 0:
        raise ValueError(f"teacher must hold at least one node, got {list(teacher.shape)}")


def check_states(teacher: Tensor, student_states: Sequence[Tensor]) -> None:
    """Raise ValueError unless the states are [N, d_j] of one dtype and device.

    A teacher in host memory serves a GPU too.
    """
    if len(student_states) == 0:
        raise ValueError("student_states must hold at least one layer, got none")
    streamed = teacher.device.type == "cpu" and getattr(student_states[0], "is_cuda", False)
    device = student_states[0].device if streamed else teacher.device
    for j, state in enumerate(student_states):
        name = f"student_states[{j}]"
        check_tensor(name, state, dim=2, dtypes=DTYPES, device=device)
        if state.size(0) != teacher.size(0):
            raise ValueError(
                f"{name} must be [N={teacher.size(0)}, d], got {list(state.shape)}: mismatched "
                "teacher and graph; run teacher and student on the same nodes"
            )
        if state.size(1) == 0:
            raise ValueError(f"{name} must have at least one column, got {list(state.shape)}")
        _check_dtype(name, state, student_states[0].dtype)


def check_pairing(
    widths: Sequence[int],
    student_states: Sequence[Tensor],
    attention: Tensor,
    teacher_maps: Sequence[Tensor] | Tensor,
    student_maps: Sequence[Tensor] | Tensor,
) -> None:
    """Raise ValueError unless attention and maps fit the layers."""
    first = student_states[0]
    check_tensor("attention", attention, dim=2, device=first.device)
    _check_dtype("attention", attention, first.dtype)
    shape = [len(widths), len(student_states)]
    if list(attention.shape) != shape:
        raise ValueError(
            f"attention must be [T={shape[0]}, S={shape[1]}], got {list(attention.shape)}; "
            "rows are teacher layers"
        )
    teachers = _per_layer("teacher_maps", teacher_maps, widths)
    _check_maps("teacher", teachers, widths, first, None)
    student_widths = [state.size(1) for state in student_states]
    students = _per_layer("student_maps", student_maps, student_widths)
    _check_maps("student", students, student_widths, first, teachers[0].size(1))


def _per_layer(
    name: str, maps: Sequence[Tensor] | Tensor, widths: Sequence[int]
) -> Sequence[Tensor]:
    if not isinstance(maps, Tensor):
        return maps
    check_tensor(name, maps, dim=2)
    if maps.size(0) != sum(widths):
        raise ValueError(f"{name} must be [{sum(widths)}, r], got {list(maps.shape)}")
    return maps.detach().split(list(widths))


def check_moments(moments: Moments, widths: Sequence[int], device: torch.device) -> None:
    """Raise ValueError unless the moments have the teacher's shapes, in float64."""
    names = (torch.float64,)
    check_tensor("moments.mean", moments.mean, dim=1, dtypes=names, device=device)
    if moments.mean.numel() != sum(widths):
        raise ValueError(
            f"moments.mean must be [sum(widths)={sum(widths)}], got {list(moments.mean.shape)}; "
            "compute moments of this teacher with teacher_moments"
        )
    if len(moments.second) != len(widths):
        raise ValueError(
            f"moments.second must hold T={len(widths)} matrices, got {len(moments.second)}"
        )
    for i, (second, width) in enumerate(zip(moments.second, widths, strict=True)):
        check_tensor(f"moments.second[{i}]", second, dim=2, dtypes=names, device=device)
        if list(second.shape) != [width, width]:
            raise ValueError(
                f"moments.second[{i}] must be [{width}, {width}], got {list(second.shape)}"
            )


def check_nodes(
    teacher: Tensor,
    shift: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    device: torch.device,
) -> None:
    """Raise ValueError unless shift, mask and weight are constants that fit the teacher."""
    num_nodes, width = teacher.shape
    if mask is not None and weight is not None:
        raise ValueError("mask and weight must not both be given; fold the mask into weight")
    if mask is not None and mask.dtype == torch.int64:
        check_tensor("mask", mask, dim=1, device=teacher.device)
        mask = None
    for name, value, dtypes, size, letter in (
        ("shift", shift, DTYPES, width, "sum(widths)"),
        ("mask", mask, (torch.bool,), num_nodes, "N"),
        ("weight", weight, DTYPES, num_nodes, "N"),
    ):
        if value is None:
            continue
        check_tensor(name, value, dim=1, dtypes=dtypes, device=device)
        if value.numel() != size:
            raise ValueError(f"{name} must be [{letter}={size}], got {list(value.shape)}")
        if value.requires_grad:
            raise ValueError(f"{name} must not require grad: it gets no gradient; detach it")


def check_index(mask: Tensor | None, num_nodes: int) -> None:
    """Check indices that stand for a mask; on a device without a word to the host."""
    if mask is None or mask.dtype != torch.int64 or mask.numel() == 0:
        return
    # Kernels read and write at these rows, each of them once.
    increase = (mask.diff() > 0).all() & (mask[0] >= 0) & (mask[-1] < num_nodes)
    what = f"mask must hold increasing indices in [0, N={num_nodes})"
    if mask.device.type != "cpu":
        torch._assert_async(increase, what)
    elif not bool(increase):
        raise ValueError(f"{what}, got {mask.tolist()[:8]} ...; sort them, or pass [N] bool")


def check_values(
    num_nodes: int, nodes: Tensor | None, weight: Tensor | None, moments_count: float | None
) -> float:
    """Check what only the values tell; return the count N, or the sum of weights."""
    count = float(num_nodes if nodes is None else nodes.numel())
    if count == 0:
        raise ValueError("mask must hold at least one True, got all False")
    if weight is not None:
        check_finite("weight", weight)
        low, count = float(weight.min()), float(weight.double().sum())
        if low < 0 or count == 0:
            raise ValueError(
                f"weight must be >= 0 with a positive sum, got minimum {low} and sum {count}"
            )
    if moments_count is not None and abs(moments_count - count) > 1e-6 * count:
        raise ValueError(
            f"moments.count must be the number of nodes (the sum of mask or weight) {count}, got "
            f"{moments_count}; compute moments with the same mask or weight"
        )
    return count


def check_inputs_finite(
    student_states: Sequence[Tensor], tensors: dict[str, Tensor | None], teacher: Tensor
) -> None:
    """Name the input that made the result NaN or infinite; return if it is none of them."""
    for j, state in enumerate(student_states):
        check_finite(f"student_states[{j}]", state)
    for name, tensor in tensors.items():
        if tensor is not None:
            check_finite(name, tensor)
    check_finite("teacher", teacher)


def _check_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype:
        raise ValueError(
            f"{name} must be {dtype} like student_states[0], got {value.dtype}; cast with .to()"
        )


def _check_maps(
    side: str, maps: Sequence[Tensor], widths: Sequence[int], state: Tensor, r: int | None
) -> None:
    name = f"{side}_maps"
    if len(maps) != len(widths):
        raise ValueError(f"{name} must hold one map per layer, {len(widths)}, got {len(maps)}")
    for i, (layer_map, width) in enumerate(zip(maps, widths, strict=True)):
        check_tensor(f"{name}[{i}]", layer_map, dim=2, device=state.device)
        _check_dtype(f"{name}[{i}]", layer_map, state.dtype)
        r = layer_map.size(1) if r is None else r
        if list(layer_map.shape) != [width, r] or r == 0:
            raise ValueError(
                f"{name}[{i}] must be [d={width}, r={r}], got {list(layer_map.shape)}; "
                "all maps share the subspace width r >= 1"
            )
