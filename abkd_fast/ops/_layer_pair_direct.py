"""Pairs whose projections nearly coincide: |p - s|^2 without expanding the square."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast import _backend
from abkd_fast.ops._layer_pair_blocks import (
    Block,
    NodeSet,
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
from abkd_fast.ops._layer_pair_stream import node_blocks, sum_nodes


def add_near_pairs(
    problem: Problem, attention: Tensor, near: Tensor, wanted: Wanted, totals: Totals
) -> None:
    """Put the pairs where ``near`` [T, S] holds into ``totals``: their D and their gradients.

    Both sides are projected about their centres, so a common offset costs no digits either.
    Work grows with the number of such pairs.
    """
    _Direct(problem, attention, near, wanted, totals).run()


def correct_near_pairs(problem: Problem, near: Tensor, totals: Totals) -> None:
    """Take D of the pairs where ``near`` [T, S] holds from their differences.

    For a device: no step depends on which pairs these are, so the host waits for nothing. The
    gradients stay as the pass left them: off by the rounding of p and s, as differences are too.
    """
    constants = (
        problem.teacher_centre, problem.state_centre, problem.teacher_map, problem.student_map,
        _offsets(problem), near,
    )  # fmt: skip
    read, no_gradient = torch.ops.abkd_fast.layer_pair_near, problem.state_gradients(False)
    sums, _ = sum_nodes(
        problem,
        lambda t, h, nodes, w: (read(t, problem.widths, h, nodes, w, *constants), no_gradient),
    )
    norm = problem.count * problem.teacher_map.size(1)
    totals.dissimilarity = torch.where(near, sums / norm, totals.dissimilarity)


def near_squares(
    teacher: Tensor,
    widths: list[int],
    states: list[Tensor],
    nodes: Tensor | None,
    weight: Tensor | None,
    teacher_centre: Tensor,
    centre: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    offset: Tensor,
    near: Tensor,
) -> Tensor:
    """Sums over nodes w |(t_i - teacher_centre_i) M_i - (h_j - centre_j) N_j + offset_ij|^2.

    Args:
        teacher: as in ``_layer_pair_passes.moment_pass``, like all down to weight.
        widths: d_i.
        states: S of [N, d_j].
        nodes: indices or None.
        weight: w of the nodes, or None.
        teacher_centre: [sum d_i] in the compute dtype, like all that follow but ``near``.
        centre: [sum d_j].
        teacher_map: M [sum d_i, r].
        student_map: N [sum d_j, r].
        offset: [T, S, r].
        near: [T, S] bool, the pairs that are wanted.

    Returns:
        [T, S] float64, 0 for the other pairs.
    """
    given = NodeSet(teacher, widths, states, nodes, weight, centre)
    total, wanted = given.zeros(*near.shape), near.nonzero().tolist()
    maps, student_maps = teacher_map.split(widths), student_map.split(given.student_widths)
    for block in given.blocks() if wanted else ():
        t = (block.teacher - teacher_centre).split(widths, 1)
        h = block.states.split(given.student_widths, 1)
        for i, j in wanted:
            difference = (t[i] @ maps[i] - h[j] @ student_maps[j]).add_(offset[i, j])
            total[i, j] += row_squares(difference, block.weight)
    return total


def _offsets(problem: Problem) -> Tensor:
    """What the centres contribute to p_i - s_j: [T, S, r] in the compute dtype."""
    centre, shift = problem.teacher_rows(problem.teacher_centre)
    q = problem.student_rows(problem.state_centre.double())
    offset = centre if shift is None else centre - shift
    return (offset[:, None] - q).to(problem.dtype)


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
        self.offset = _offsets(problem)
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


def _pairs_shape(teacher: Tensor, widths: list[int], states: list[Tensor], *args: object) -> Tensor:
    near = args[-1]
    assert isinstance(near, Tensor)
    return near.new_empty(near.shape, dtype=torch.float64)


_backend.register("layer_pair_near", near_squares, _pairs_shape)
