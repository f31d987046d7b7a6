"""Small products of layer_pair, without nodes: the torch twins of csrc/cpu/layer_pair_maps.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast import _backend
from abkd_fast.ops._layer_pair_blocks import (
    Run,
    add_outer,
    find_runs,
    layer_rows,
    layer_sums,
    repeat_layers,
)


def project_rows(rows: Tensor, maps: Tensor, widths: list[int]) -> Tensor:
    """Per layer, rows times its map: [count, sum d] float64 x [sum d, r] -> [count, L, r]."""
    runs, maps = find_runs(widths), maps.double()
    return torch.stack([layer_rows(row, maps, runs) for row in rows])


def multiply_maps(teacher_map: Tensor, student_map: Tensor, widths: list[int]) -> Tensor:
    """M N^T: [sum d_i, r] x [sum d_j, r] -> [sum d_i, sum d_j] float64."""
    return teacher_map.double() @ student_map.double().t()


def combine_moments(
    teacher_map: Tensor,
    student_map: Tensor,
    widths: list[int],
    student_widths: list[int],
    second: list[Tensor],
    mean: Tensor,
    rest: Tensor,
    products: Tensor,
    cross: Tensor,
    count: float,
    attention: Tensor,
    offset: Tensor,
    u: Tensor,
    want_teacher_map: bool,
    want_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Teacher layers' share of D and of the gradients of the maps, in the moment form.

    With C_ij = cross_ij / count - mean_i^T rest_j and C_ii = second_i - mean_i^T mean_i:

    Args:
        teacher_map: M [sum d_i, r]; widths d_i.
        student_map: N [sum d_j, r]; student_widths d_j.
        widths: as above.
        student_widths: as above.
        second: T of [d_i, d_i].
        mean: [sum d_i].
        rest: [sum d_j].
        products: M_i N_j^T, [sum d_i, sum d_j].
        cross: [sum d_i, sum d_j].
        count: number of nodes.
        attention: A [T, S].
        offset: [sum d_i].
        u: [T, r].
        want_teacher_map: else dteacher_map is empty.
        want_student: else cross_map is empty.

    Returns:
        square [T], <M_i, C_ii M_i>; inner [T, S], <M_i N_j^T, C_ij>; dteacher_map [sum d_i, r],
        rho_i C_ii M_i - sum_j A_ij C_ij N_j + offset_i^T u_i, in the dtype of the maps; cross_map
        [sum d_j, r], sum_i A_ij C_ij^T M_i. Everything else, in and out, is float64.
    """
    runs, student_runs = find_runs(widths), find_runs(student_widths)
    m, n, r = teacher_map.double(), student_map.double(), teacher_map.size(1)
    cross = (cross / count).addr_(mean, rest, alpha=-1)
    m_second = _times_maps(second, m, runs)
    add_outer(m_second, mean, layer_rows(mean, m, runs), runs, alpha=-1)
    square = layer_sums(m * m_second, runs).sum(1)
    inner = layer_sums(products * cross, runs)  # [T, sum d_j]
    inner = layer_sums(inner.t(), student_runs).t().contiguous()
    pairs = repeat_layers(repeat_layers(attention, widths).t(), student_widths).t()
    cross *= pairs  # A_ij over block ij
    dteacher_map, cross_map = teacher_map.new_empty(0, r), m.new_empty(0, r)
    if want_teacher_map:
        m_second *= repeat_layers(attention.sum(1), widths)[:, None]
        dm = add_outer(m_second.addmm_(cross, n, alpha=-1), offset, u, runs)
        dteacher_map = dm.to(teacher_map.dtype, copy=True)
    if want_student:
        cross_map = cross.t() @ m
    return square, inner, dteacher_map, cross_map


def _times_maps(second: list[Tensor], maps: Tensor, runs: list[Run]) -> Tensor:
    """second_i maps_i for every layer, [sum d, r]."""
    out = torch.empty_like(maps)
    for run in runs:
        torch.bmm(torch.stack(second[run.layers]), run.stack(maps), out=run.stack(out))
    return out


def _rows_shape(rows: Tensor, maps: Tensor, widths: list[int]) -> Tensor:
    return rows.new_empty(rows.size(0), len(widths), maps.size(1))


def _products_shape(teacher_map: Tensor, student_map: Tensor, widths: list[int]) -> Tensor:
    shape = teacher_map.size(0), student_map.size(0)
    return teacher_map.new_empty(shape, dtype=torch.float64)


def _moments_shape(
    teacher_map: Tensor, student_map: Tensor, *args: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    attention, want_teacher_map, want_student = args[8], args[11], args[12]
    assert isinstance(attention, Tensor)
    r = teacher_map.size(1)
    return (
        attention.new_empty(attention.size(0)),
        torch.empty_like(attention),
        teacher_map.new_empty(teacher_map.size(0) if want_teacher_map else 0, r),
        attention.new_empty(student_map.size(0) if want_student else 0, r),
    )


_backend.register("layer_pair_rows", project_rows, _rows_shape)
_backend.register("layer_pair_products", multiply_maps, _products_shape)
_backend.register("layer_pair_moment_maps", combine_moments, _moments_shape)
