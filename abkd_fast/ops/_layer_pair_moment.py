"""Moment form of layer_pair: all that depends on nodes in D is C_ij = mean t_i^T h_j."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd_fast._mapped import mapped_file
from abkd_fast.memory import empty_output
from abkd_fast.ops import _layer_pair_checks as checks
from abkd_fast.ops._layer_pair_blocks import (
    Problem,
    Totals,
    Wanted,
    add_outer,
    gradient_scale,
    layer_sums,
    repeat_layers,
    select_nodes,
)
from abkd_fast.ops._layer_pair_stream import sum_nodes


@dataclass(frozen=True)
class Moments:
    """First and second moments of a teacher, over all nodes, a mask or weights.

    Attributes:
        mean: [sum(widths)] float64, (1/N) sum_v w_v t_v.
        second: T of [d_i, d_i] float64, (1/N) sum_v w_v t_iv^T t_iv.
        count: N, the number of nodes or the sum of weights.
    """

    mean: Tensor
    second: Sequence[Tensor]
    count: float


def teacher_moments(
    teacher: Tensor,
    widths: Sequence[int],
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    block: int | None = None,
) -> Moments:
    """First and second moments of every layer, for :func:`layer_pair`; computed in float64.

    Costs more than a call of layer_pair: compute once per teacher and keep.

    Args:
        teacher: [N, sum(widths)] bfloat16/float32/float64.
        widths: width d_i of each of T layers.
        mask: [N] bool, nodes that count, or their indices, int64 in increasing order.
        weight: [N] float32/float64 >= 0. Not together with mask.
        block: nodes of a layer converted to float64 at a time; None = 1024, which a processor's
            cache has room for, and 16384 on a GPU.

    Raises:
        ValueError: as :func:`layer_pair`, and if block < 1.
    """
    checks.check_teacher(teacher, widths)
    checks.check_nodes(teacher, None, mask, weight, teacher.device)
    if block is None:
        block = 16384 if teacher.is_cuda else 1024
    if block < 1:
        raise ValueError(f"block must be >= 1, got {block}")
    checks.check_index(mask, teacher.size(0))
    nodes, weight = select_nodes(mask, weight, torch.float64)
    num_rows = teacher.size(0) if nodes is None else nodes.numel()
    count = checks.check_values(teacher.size(0), nodes, weight, None)
    total = teacher.new_zeros(teacher.size(1), dtype=torch.float64)
    second = [total.new_zeros(width, width) for width in widths]
    buffer = total.new_empty(min(block, num_rows) * max(widths))
    ones = total.new_ones(min(block, num_rows))
    file = mapped_file(teacher)
    for start in range(0, num_rows, block):
        span = slice(start, min(start + block, num_rows))
        rows = teacher[span] if nodes is None else teacher[nodes[span]]
        each = ones[: rows.size(0)] if weight is None else weight[span]
        layers = zip(rows.split(list(widths), 1), total.split(list(widths)), second, strict=True)
        for layer, first, products in layers:
            t = buffer[: layer.numel()].view(layer.shape).copy_(layer)
            first.addmv_(t.t(), each)
            products.addmm_((t if weight is None else t * each[:, None]).t(), t)
        if file is not None:
            file.drop(rows if nodes is None else teacher)
    return Moments(total / count, [out / count for out in second], count)


def run_moment(
    problem: Problem, attention: Tensor, wanted: Wanted, mean: Tensor, second: list[Tensor]
) -> Totals:
    """Work 4 N sum(d_i) sum(d_j), bound by reading the teacher once.

    With centred states t~ = t - mean, h~ = h - mean and C = mean(t~^T h~):

        D_ij = [<M_i, C^TT_i M_i> + <N_j, C^SS_j N_j> - 2 <M_i, C_ij N_j> + |pbar_i - sbar_j|^2]/r
        dH_j = gamma_j h_j N_j N_j^T - sum_i A_ij (t_i - shift_i) M_i N_j^T

    Args:
        problem: the arguments.
        attention: [T, S] float64.
        wanted: gradients to compute.
        mean: [sum d_i] float64 mean of the teacher.
        second: T of [d_i, d_i] float64 raw second moments of the teacher.
    """
    ops, maps = torch.ops.abkd_fast, (problem.teacher_map, problem.student_map)
    widths, student_widths, count = problem.widths, problem.student_widths, problem.count
    a = attention * (gradient_scale(problem) * count)
    products = ops.layer_pair_products(*maps, widths)  # M_i N_j^T
    projected, shift = problem.teacher_rows(mean)
    states = _read_teacher(problem, a, products, shift, wanted)

    # D, from maps, central moments and projected means.
    n, runs = problem.student_map.double(), problem.student_runs
    p, s = projected if shift is None else projected - shift, problem.student_rows(states.mean)
    rho, gamma = a.sum(1)[:, None], a.sum(0)
    u = torch.mul(rho, p, out=empty_output(p, *p.shape)).addmm_(a, s, alpha=-1)
    w = gamma[:, None] * s - a.t() @ p
    offset = mean if problem.shift is None else mean - problem.shift
    square, inner, dteacher_map, cross_map = ops.layer_pair_moment_maps(
        *maps, widths, student_widths, second, mean, states.rest, products, states.cross, count,
        a, offset, u, *wanted,
    )  # fmt: skip
    n_second = torch.cat(
        [x @ y for x, y in zip(states.second, n.split(student_widths), strict=True)]
    )
    squares = square[:, None] + layer_sums(n * n_second, runs).sum(1)
    r = n.size(1)
    distance = torch.sub(p[:, None], s, out=empty_output(p, len(p), len(s), r))
    squares += distance.square_().sum(2)
    dstudent_map = cross_map
    if wanted.student:
        dstudent_map = repeat_layers(gamma, student_widths)[:, None] * n_second - cross_map
        add_outer(dstudent_map, states.mean, w, runs)
    return Totals(
        (squares - 2 * inner) / r, squares / r, dteacher_map, dstudent_map, states.gradient
    )


class _States(NamedTuple):
    """What the pass finds out about the student states; float64 but for the gradient."""

    mean: Tensor  # [sum d_j]
    rest: Tensor  # [sum d_j] mean less state_centre
    second: list[Tensor]  # S of [d_j, d_j] about the mean
    cross: Tensor  # [sum d_i, sum d_j] sums of t^T (h - state_centre)
    gradient: Tensor  # [N, sum d_j] compute dtype


def _read_teacher(
    problem: Problem, a: Tensor, products: Tensor, shift: Tensor | None, wanted: Wanted
) -> _States:
    """The pass: second moments, and dH = h~ G + row - t K with h~ = h - state_centre.

    Args:
        problem: the arguments.
        a: [T, S] float64, scaled.
        products: [sum d_i, sum d_j] float64, M_i N_j^T.
        shift: [T, r] float64, shift_i M_i; None = 0.
        wanted: gradients to compute.
    """
    count, widths, centre = problem.count, problem.student_widths, problem.state_centre.double()
    n = problem.student_map.double()
    parts = n.split(widths)
    grams = [gamma * part @ part.t() for gamma, part in zip(a.sum(0), parts, strict=True)]
    g = torch.block_diag(*grams)
    row = centre @ g
    if shift is not None:
        row += (n * repeat_layers(a.t() @ shift, widths)).sum(1)
    constants = (
        problem.state_centre, (g / count).to(problem.dtype), (row / count).to(problem.dtype)[None],
        products, a / count, wanted.student,
    )  # fmt: skip
    read = torch.ops.abkd_fast.layer_pair_moment
    cross, second, total, gradient = sum_nodes(
        problem, lambda t, h, nodes, w: read(t, problem.widths, h, nodes, w, *constants)
    )
    rest = total / count
    central = (second / count).addr_(rest, rest, alpha=-1)
    layers = [part.split(widths, 1)[j] for j, part in enumerate(central.split(widths))]
    return _States(centre + rest, rest, layers, cross, gradient)
