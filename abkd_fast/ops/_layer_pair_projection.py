"""Projection form of layer_pair: project every node block, then score the projections."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast.ops._layer_pair_blocks import (
    Problem,
    Totals,
    Wanted,
    add_outer,
    gradient_scale,
)
from abkd_fast.ops._layer_pair_stream import sum_nodes


def run_projection(problem: Problem, attention: Tensor, wanted: Wanted) -> Totals:
    """Work 4 N sum(d_i) r + O(N T S r); the teacher is read once.

    With centres c, p = p~ + o and s = s~ + q where p~ = (t - c) M, o = (c - shift) M,
    s~ = (h - c) N and q = c N, so that the expanded square is taken on p~ and s~:

        sum_v |p - s|^2 = |p~|^2 + |s~|^2 - 2 <p~, s~> + 2 <sum_v p~ - s~, o - q> + N |o - q|^2

    Args:
        problem: the arguments.
        attention: [T, S] float64.
        wanted: gradients to compute.
    """
    dtype, count, scale = problem.dtype, problem.count, gradient_scale(problem)
    centre, shift = problem.teacher_rows(problem.teacher_centre)
    # The bias is rounded first, so that o makes up for exactly what is subtracted.
    bias = -centre.to(dtype)
    o, q = -bias.double(), problem.student_rows(problem.state_centre.double())
    o = o if shift is None else o - shift
    rho, gamma = attention.sum(1)[:, None], attention.sum(0)[:, None]
    u, w = rho * o - attention @ q, gamma * q - attention.t() @ o
    constants = (
        problem.state_centre, problem.teacher_map, problem.student_map, bias, attention,
        u.to(dtype), w.to(dtype), scale, *wanted,
    )  # fmt: skip
    read = torch.ops.abkd_fast.layer_pair_projection
    squares, sums, cross, dstudent_map, dteacher_map, dstates = sum_nodes(
        problem, lambda t, h, nodes, v: read(t, problem.widths, h, nodes, v, *constants)
    )
    p_square, s_square = squares.split(attention.shape)
    p_sum, s_sum = sums.split(attention.shape)
    offset = o[:, None] - q  # [T, S, r]
    constant = count * offset.square().sum(2)
    terms = p_square[:, None] + s_square
    drift = ((p_sum[:, None] - s_sum) * offset).sum(2)
    norm = count * problem.teacher_map.size(1)
    if wanted.teacher_map:
        if problem.shift is not None:
            gp_sum = rho * p_sum - attention @ s_sum + count * u
            add_outer(dteacher_map, problem.shift, gp_sum, problem.runs, alpha=-1)
        dteacher_map *= scale
    if wanted.student:
        gs_sum = gamma * s_sum - attention.t() @ p_sum + count * w
        add_outer(dstudent_map, problem.state_centre.double(), gs_sum, problem.student_runs)
        dstudent_map *= scale
    return Totals(
        (terms - 2 * cross + 2 * drift + constant) / norm,
        (terms + constant) / norm,
        dteacher_map,
        dstudent_map,
        dstates,
    )
