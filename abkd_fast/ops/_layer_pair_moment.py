"""Moment form of layer_pair: all that depends on nodes in D is C_ij = mean t_i^T h_j."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abkd_fast.ops import _layer_pair_checks as checks
from abkd_fast.ops._layer_pair_blocks import (
    Block,
    Problem,
    Totals,
    Wanted,
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
    teacher_map, student_map = problem.teacher_map.double(), problem.student_map.double()
    widths, student_widths = problem.widths, problem.student_widths
    pairs = repeat_layers(attention, widths)
    pairs = repeat_layers(pairs.t(), student_widths).t()  # A_ij over block ij of C
    products = teacher_map @ student_map.t()  # M_i N_j^T
    layers = torch.block_diag(*[n @ n.t() for n in student_map.split(student_widths)])
    gamma, rho = attention.sum(0), attention.sum(1)
    g = layers * repeat_layers(gamma, student_widths)
    cross, student_second, residue = _read_teacher(problem, g, pairs * products, wanted, totals)

    # Exact means, and moments about them; `residue` is what state_centre missed.
    cross = cross - mean[:, None] * residue
    student_second = student_second - residue[:, None] * residue
    offset = mean - problem.shift
    state_mean = problem.state_centre.double() + residue
    p = layer_rows(offset, teacher_map, widths)
    s = layer_rows(state_mean, student_map, student_widths)
    spread_t = _second_times_maps(problem, mean, second, teacher_map)  # C^TT_i M_i
    rows = zip(student_second.split(student_widths), student_map.split(student_widths), strict=True)
    spread_s = torch.cat([row.split(student_widths, 1)[j] @ n for j, (row, n) in enumerate(rows)])

    p_square = layer_sums(teacher_map * spread_t, widths).sum(1)
    s_square = layer_sums(student_map * spread_s, student_widths).sum(1)
    inner = layer_sums(layer_sums(products * cross, widths).t(), student_widths).t()
    squares = p_square[:, None] + s_square + (p[:, None] - s).square().sum(2)
    r = teacher_map.size(1)
    totals.dissimilarity, totals.magnitude = (squares - 2 * inner) / r, squares / r

    scale = gradient_scale(problem) * problem.count
    cross = pairs * cross
    u = repeat_layers(rho[:, None] * p - attention @ s, widths)
    w = repeat_layers(gamma[:, None] * s - attention.t() @ p, student_widths)
    rho, gamma = repeat_layers(rho[:, None], widths), repeat_layers(gamma[:, None], student_widths)
    totals.dteacher_map = scale * (rho * spread_t - cross @ student_map + offset[:, None] * u)
    totals.dstudent_map = scale * (
        gamma * spread_s - cross.t() @ teacher_map + state_mean[:, None] * w
    )
    return totals


def _read_teacher(
    problem: Problem, g: Tensor, k: Tensor, wanted: Wanted, totals: Totals
) -> tuple[Tensor, Tensor, Tensor]:
    """The pass: writes dstates, returns mean t^T h [sum d_i, sum d_j], h^T h and mean h.

    Here h is the state less state_centre, so that a common offset does not cost digits.
    """
    teacher_width, student_width = k.shape
    scale = gradient_scale(problem)
    row = scale * (problem.state_centre.double() @ g + problem.shift @ k)
    row, g, k = row.to(problem.dtype), (scale * g).to(problem.dtype), (scale * k).to(problem.dtype)
    cross, product = problem.zeros(teacher_width, student_width), problem.empty(*k.shape)
    second, total = problem.zeros(student_width, student_width), problem.zeros(student_width)
    buffer = problem.empty(problem.block_size, student_width)
    for block in problem.blocks():
        weighted = block.states if block.weight is None else block.states * block.weight[:, None]
        cross += torch.mm(block.teacher.t(), weighted, out=product)
        weighted = weighted.double()
        second += weighted.t() @ block.states.double()
        total += weighted.sum(0)
        if wanted.student:
            totals.dstates[block.rows] = _state_gradient(block, g, k, row, buffer)
    count = problem.count
    return cross / count, second / count, total / count


def _state_gradient(block: Block, g: Tensor, k: Tensor, row: Tensor, buffer: Tensor) -> Tensor:
    """w_v (h G - t K + row), [B, sum d_j]."""
    out = torch.addmm(row, block.states, g, out=buffer[: block.states.size(0)])
    out.addmm_(block.teacher, k, alpha=-1)
    return out if block.weight is None else out.mul_(block.weight[:, None])


def _second_times_maps(
    problem: Problem, mean: Tensor, second: list[Tensor], maps: Tensor
) -> Tensor:
    """Central second moment of every layer times its map, [sum d_i, r]."""
    out = torch.empty_like(maps)
    for run in problem.runs:
        torch.bmm(torch.stack(second[run.layers]), run.stack(maps), out=run.stack(out))
    return out - mean[:, None] * repeat_layers(
        layer_rows(mean, maps, problem.widths), problem.widths
    )
