"""Pairs whose projections nearly coincide: |p - s|^2 without expanding the square."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast.ops._layer_pair_blocks import (
    Block,
    Problem,
    Totals,
    Wanted,
    add_outer,
    add_products,
    gradient_scale,
    project,
    row_squares,
    spread,
    weighted_sum,
)
from abkd_fast.ops._layer_pair_stream import node_blocks


def add_near_pairs(
    problem: Problem, attention: Tensor, near: Tensor, wanted: Wanted, totals: Totals
) -> None:
    """Put the pairs where ``near`` [T, S] holds into ``totals``: their D and their gradients.

    Both sides are projected about their centres, so a common offset costs no digits either.
    Work grows with the number of such pairs.
    """
    _Direct(problem, attention, near, wanted, totals).run()


class _Direct:
    """Sums and buffers of one pass."""

    def __init__(
        self, problem: Problem, attention: Tensor, near: Tensor, wanted: Wanted, totals: Totals
    ) -> None:
        self.problem, self.wanted, self.totals = problem, wanted, totals
        self.attention: list[list[float]] = attention.tolist()
        self.students = [row.nonzero().flatten().tolist() for row in near]
        self.near = near
        self.teacher_offset = problem.teacher_centre.double()
        if problem.shift is not None:
            self.teacher_offset = self.teacher_offset - problem.shift
        self.state_offset = problem.state_centre.double()
        centre, shift = problem.teacher_rows(problem.teacher_centre)
        q = problem.student_rows(self.state_offset)
        offset = centre if shift is None else centre - shift
        self.offset = (offset[:, None] - q).to(problem.dtype)  # [T, S, r]
        num_teacher, num_student = near.shape
        r = problem.teacher_map.size(1)
        self.gs = problem.empty(num_student * problem.block_size * r)
        self.square = problem.zeros(num_teacher, num_student)
        self.gp_sum, self.gs_sum = problem.zeros(num_teacher, r), problem.zeros(num_student, r)
        self.dteacher_map = problem.zeros(*totals.dteacher_map.shape)
        self.dstudent_map = problem.zeros(*totals.dstudent_map.shape)

    def run(self) -> None:
        problem, totals, student_runs = self.problem, self.totals, self.problem.student_runs
        scale = gradient_scale(problem)
        for block in node_blocks(problem):
            size, r = block.teacher.size(0), problem.teacher_map.size(1)
            s = problem.empty(len(problem.states), size, r)
            project(block.states, problem.student_map, student_runs, s)
            gs = self.gs[: s.numel()].view_as(s).zero_()
            for i, students in enumerate(self.students):
                if students:
                    self._add_layer(i, students, block, s, gs)
            if self.wanted.student:
                self.gs_sum += weighted_sum(gs, block.weight)
                gs = gs if block.weight is None else gs.mul_(block.weight[:, None])
                add_products(self.dstudent_map, block.states, gs, student_runs)
                dstates = torch.empty_like(block.states)
                spread(gs, problem.student_map, student_runs, dstates)
                totals.dstates[block.rows] += dstates.mul_(scale)
        norm = problem.count * problem.teacher_map.size(1)
        totals.dissimilarity = torch.where(self.near, self.square / norm, totals.dissimilarity)
        if self.wanted.teacher_map:
            add_outer(self.dteacher_map, self.teacher_offset, self.gp_sum, problem.runs)
            totals.dteacher_map += scale * self.dteacher_map
        if self.wanted.student:
            add_outer(self.dstudent_map, self.state_offset, self.gs_sum, student_runs)
            totals.dstudent_map += scale * self.dstudent_map

    def _add_layer(self, i: int, students: list[int], block: Block, s: Tensor, gs: Tensor) -> None:
        """One teacher layer against its near student layers; adds to gs, [S, B, r]."""
        problem, weight = self.problem, block.weight
        columns = slice(sum(problem.widths[:i]), sum(problem.widths[: i + 1]))
        t = block.teacher[:, columns] - problem.teacher_centre[columns]
        p = t @ problem.teacher_map[columns]
        gp = torch.zeros_like(p)
        for j in students:
            difference = (p - s[j]).add_(self.offset[i, j])
            self.square[i, j] += row_squares(difference, weight)
            gp.add_(difference, alpha=self.attention[i][j])
            gs[j].sub_(difference, alpha=self.attention[i][j])
        if self.wanted.teacher_map:
            gp = gp if weight is None else gp.mul_(weight[:, None])
            self.gp_sum[i] += gp.sum(0)
            self.dteacher_map[columns] += t.t() @ gp
