"""Projection form of layer_pair: project every node block, then score the projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abkd_fast.ops._layer_pair_blocks import (
    Problem,
    Totals,
    Wanted,
    add_outer,
    add_products,
    gradient_scale,
    layer_rows,
    project,
    row_squares,
    spread,
    weighted_sum,
)


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
    return _Projection(problem, attention, wanted).run()


class _Projection:
    """Sums and buffers of one pass."""

    def __init__(self, problem: Problem, attention: Tensor, wanted: Wanted) -> None:
        self.problem, self.attention, self.wanted = problem, attention, wanted
        self.totals = Totals(problem)
        num_teacher, num_student = attention.shape
        r = problem.teacher_map.size(1)
        teacher_map, student_map = problem.teacher_map.double(), problem.student_map.double()
        # The bias is rounded first, so that o makes up for exactly what is subtracted.
        self.bias = -layer_rows(problem.teacher_centre.double(), teacher_map, problem.runs)
        self.bias = self.bias.to(problem.dtype)
        self.o = -self.bias.double() - layer_rows(problem.shift, teacher_map, problem.runs)
        self.q = layer_rows(problem.state_centre.double(), student_map, problem.student_runs)
        self.rho, self.gamma = attention.sum(1)[:, None], attention.sum(0)[:, None]
        self.u = self.rho * self.o - attention @ self.q
        self.w = self.gamma * self.q - attention.t() @ self.o
        self.p = problem.empty(num_teacher * problem.block_size * r)
        self.s = problem.empty(num_student * problem.block_size * r)
        self.gs = torch.empty_like(self.s)
        self.dstates = problem.empty(problem.block_size, sum(problem.student_widths))
        self.p_square, self.s_square = problem.zeros(num_teacher), problem.zeros(num_student)
        self.p_sum, self.s_sum = problem.zeros(num_teacher, r), problem.zeros(num_student, r)
        self.cross = problem.zeros(num_teacher, num_student)

    def run(self) -> Totals:
        problem, wanted = self.problem, self.wanted
        (num_teacher, num_student), r = self.attention.shape, problem.teacher_map.size(1)
        for block in problem.blocks():
            size = block.teacher.size(0)
            p = self.p[: num_teacher * size * r].view(num_teacher, size, r)
            s = self.s[: num_student * size * r].view(num_student, size, r)
            project(block.teacher, problem.teacher_map, problem.runs, p, self.bias)
            project(block.states, problem.student_map, problem.student_runs, s)
            self._score(p, s, block.weight)
            if wanted.student:
                gs = self._student_residual(p, s, block.weight)
                add_products(self.totals.dstudent_map, block.states, gs, problem.student_runs)
                dstates = self.dstates[:size]
                spread(gs, problem.student_map, problem.student_runs, dstates)
                self.totals.dstates[block.rows] = dstates.mul_(gradient_scale(problem))
            if wanted.teacher_map:
                gp = self._teacher_residual(p, s, block.weight)
                add_products(self.totals.dteacher_map, block.teacher, gp, problem.runs)
        self._finish()
        return self.totals

    def _score(self, p: Tensor, s: Tensor, weight: Tensor | None) -> None:
        """Add the block's squares, sums and products."""
        self.p_square += row_squares(p, weight)
        self.s_square += row_squares(s, weight)
        self.p_sum += weighted_sum(p, weight)
        self.s_sum += weighted_sum(s, weight)
        ws = s if weight is None else s * weight[:, None]
        # Short products, added up in float64: one long float32 sum would lose a digit or two.
        chunk = math.gcd(p.size(1), 64) * p.size(2)
        p_chunks = p.view(p.size(0), -1, chunk).transpose(0, 1)
        s_chunks = ws.view(s.size(0), -1, chunk).permute(1, 2, 0)
        self.cross += torch.bmm(p_chunks, s_chunks).double().sum(0)

    def _student_residual(self, p: Tensor, s: Tensor, weight: Tensor | None) -> Tensor:
        """w_v (gamma_j s_j - sum_i A_ij p_i), [S, B, r]."""
        gs = self.gs[: s.numel()].view_as(s)
        dtype = self.problem.dtype
        torch.addcmul(self.w.to(dtype)[:, None], s, self.gamma.to(dtype)[:, None], out=gs)
        a = self.attention.to(dtype)
        gs.flatten(1).addmm_(a.t(), p.flatten(1), alpha=-1)
        return gs if weight is None else gs.mul_(weight[:, None])

    def _teacher_residual(self, p: Tensor, s: Tensor, weight: Tensor | None) -> Tensor:
        """w_v (rho_i p_i - sum_j A_ij s_j) in place of p, [T, B, r]."""
        dtype = self.problem.dtype
        torch.addcmul(self.u.to(dtype)[:, None], p, self.rho.to(dtype)[:, None], out=p)
        p.flatten(1).addmm_(self.attention.to(dtype), s.flatten(1), alpha=-1)
        return p if weight is None else p.mul_(weight[:, None])

    def _finish(self) -> None:
        """From sums to the dissimilarity, and the parts of the gradients that sums give."""
        problem, totals, a = self.problem, self.totals, self.attention
        count, scale = problem.count, gradient_scale(problem)
        offset = self.o[:, None] - self.q  # [T, S, r]
        drift = self.p_sum[:, None] - self.s_sum
        constant = count * offset.square().sum(2)
        squares = self.p_square[:, None] + self.s_square
        total = squares - 2 * self.cross + 2 * (drift * offset).sum(2) + constant
        norm = count * problem.teacher_map.size(1)
        totals.dissimilarity = total / norm
        totals.magnitude = (squares + constant) / norm
        if self.wanted.teacher_map:
            gp_sum = self.rho * self.p_sum - a @ self.s_sum + count * self.u
            add_outer(totals.dteacher_map, problem.shift, gp_sum, problem.runs, alpha=-1)
            totals.dteacher_map *= scale
        if self.wanted.student:
            gs_sum = self.gamma * self.s_sum - a.t() @ self.p_sum + count * self.w
            centre = problem.state_centre.double()
            add_outer(totals.dstudent_map, centre, gs_sum, problem.student_runs)
            totals.dstudent_map *= scale
