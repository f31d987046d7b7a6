"""Moment form of layer_pair: all that depends on nodes in D is C_ij = mean t_i^T h_j."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from abkd_fast.ops import _layer_pair_checks as checks
from abkd_fast.ops._layer_pair_blocks import (
    Block,
    Problem,
    Run,
    Totals,
    Wanted,
    add_outer,
    gradient_scale,
    layer_rows,
    layer_sums,
    repeat_layers,
    select_nodes,
)


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
    block: int = 2048,
) -> Moments:
    """First and second moments of every layer, for :func:`layer_pair`; computed in float64.

    Costs more than a call of layer_pair: compute once per teacher and keep.

    Args:
        teacher: [N, sum(widths)] bfloat16/float32/float64.
        widths: width d_i of each of T layers.
        mask: [N] bool, nodes that count.
        weight: [N] float32/float64 >= 0. Not together with mask.
        block: nodes converted to float64 at a time.

    Raises:
        ValueError: as :func:`layer_pair`, and if block < 1.
    """
    checks.check_teacher(teacher, widths)
    checks.check_nodes(teacher, None, mask, weight)
    if block < 1:
        raise ValueError(f"block must be >= 1, got {block}")
    nodes, weight = select_nodes(mask, weight, torch.float64)
    num_rows = teacher.size(0) if nodes is None else nodes.numel()
    count = checks.check_values(teacher.size(0), nodes, weight, None)
    total = teacher.new_zeros(teacher.size(1), dtype=torch.float64)
    second = [total.new_zeros(width, width) for width in widths]
    for start in range(0, num_rows, block):
        span = slice(start, min(start + block, num_rows))
        t = teacher[span if nodes is None else nodes[span]].double()
        weighted = t if weight is None else t * weight[span, None]
        total += weighted.sum(0)
        layers = zip(second, weighted.split(list(widths), 1), t.split(list(widths), 1), strict=True)
        for out, left, right in layers:
            out.addmm_(left.t(), right)
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
    totals = Totals(problem)
    m, n = problem.teacher_map.double(), problem.student_map.double()
    widths, student_widths = problem.widths, problem.student_widths
    a = attention * (gradient_scale(problem) * problem.count)
    rho, gamma = a.sum(1), a.sum(0)
    products = m @ n.t()  # M_i N_j^T
    pairs = repeat_layers(repeat_layers(a, widths).t(), student_widths).t()  # A_ij over block ij
    grams = [part @ part.t() for part in n.split(student_widths)]
    g = torch.block_diag(*grams) * repeat_layers(gamma, student_widths)
    states = _read_teacher(problem, g, pairs * products, mean, wanted, totals)

    # Maps times central second moments, and projected means.
    offset = mean - problem.shift
    p, s = layer_rows(offset, m, problem.runs), layer_rows(states.mean, n, problem.student_runs)
    m_second = _times_maps(second, m, problem.runs)
    add_outer(m_second, mean, layer_rows(mean, m, problem.runs), problem.runs, alpha=-1)
    n_second = _times_maps(states.second, n, problem.student_runs)

    squares = layer_sums(m * m_second, problem.runs).sum(1)[:, None]
    squares = squares + layer_sums(n * n_second, problem.student_runs).sum(1)
    squares += (p[:, None] - s).square().sum(2)
    inner = layer_sums(products * states.cross, problem.runs)  # [T, sum d_j]
    inner = layer_sums(inner.t(), problem.student_runs).t()
    r = m.size(1)
    totals.dissimilarity, totals.magnitude = (squares - 2 * inner) / r, squares / r

    cross = pairs * states.cross
    if wanted.teacher_map:
        dm = _scale_layers(m_second, rho, problem.runs).addmm_(cross, n, alpha=-1)
        u = rho[:, None] * p - a @ s
        totals.dteacher_map = add_outer(dm, offset, u, problem.runs)
    if wanted.student:
        dn = _scale_layers(n_second, gamma, problem.student_runs).addmm_(cross.t(), m, alpha=-1)
        w = gamma[:, None] * s - a.t() @ p
        totals.dstudent_map = add_outer(dn, states.mean, w, problem.student_runs)
    return totals


class _States(NamedTuple):
    """What the pass finds out about the student states, float64."""

    mean: Tensor  # [sum d_j]
    second: list[Tensor]  # S of [d_j, d_j] about the mean
    cross: Tensor  # [sum d_i, sum d_j] covariance with the teacher


def _read_teacher(
    problem: Problem, g: Tensor, k: Tensor, mean: Tensor, wanted: Wanted, totals: Totals
) -> _States:
    """The pass; also writes dstates from G [sum d_j, sum d_j] and K [sum d_i, sum d_j].

    The states come less state_centre, so that a common offset does not cost digits.
    """
    count, widths = problem.count, problem.student_widths
    row = problem.state_centre.double() @ g + problem.shift @ k
    row, g, k = ((x / count).to(problem.dtype) for x in (row, g, k))
    cross, product = problem.zeros(*k.shape), problem.empty(*k.shape)
    second, total = problem.zeros(*g.shape), problem.zeros(g.size(0))
    buffer = problem.empty(problem.block_size, g.size(0))
    for block in problem.blocks():
        weighted = block.states if block.weight is None else block.states * block.weight[:, None]
        cross += torch.mm(block.teacher.t(), weighted, out=product)
        weighted = weighted.double()
        second += weighted.t() @ block.states.double()
        total += weighted.sum(0)
        if wanted.student:
            totals.dstates[block.rows] = _state_gradient(block, g, k, row, buffer)
    rest = total / count  # of the mean, beyond state_centre
    central = (second / count).addr_(rest, rest, alpha=-1)
    layers = [part.split(widths, 1)[j] for j, part in enumerate(central.split(widths))]
    cross = (cross / count).addr_(mean, rest, alpha=-1)
    return _States(problem.state_centre.double() + rest, layers, cross)


def _state_gradient(block: Block, g: Tensor, k: Tensor, row: Tensor, buffer: Tensor) -> Tensor:
    """w_v (h G - t K + row), [B, sum d_j]."""
    out = torch.addmm(row, block.states, g, out=buffer[: block.states.size(0)])
    out.addmm_(block.teacher, k, alpha=-1)
    return out if block.weight is None else out.mul_(block.weight[:, None])


def _times_maps(second: list[Tensor], maps: Tensor, runs: list[Run]) -> Tensor:
    """second_i maps_i for every layer, [sum d, r]."""
    out = torch.empty_like(maps)
    for run in runs:
        torch.bmm(torch.stack(second[run.layers]), run.stack(maps), out=run.stack(out))
    return out


def _scale_layers(x: Tensor, scale: Tensor, runs: list[Run]) -> Tensor:
    """x_i *= scale_i: [sum d, r] x [L]."""
    for run in runs:
        run.stack(x).mul_(scale[run.layers, None, None])
    return x
