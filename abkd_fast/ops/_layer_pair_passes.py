"""layer_pair's passes over nodes, in torch: twins of csrc/cpu/layer_pair.cpp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from abkd_fast import _backend
from abkd_fast.ops._layer_pair_blocks import (
    Block,
    NodeSet,
    add_products,
    project,
    repeat_layers,
    row_squares,
    spread,
    weighted_sum,
)


def moment_pass(
    teacher: Tensor,
    widths: list[int],
    states: list[Tensor],
    nodes: Tensor | None,
    weight: Tensor | None,
    centre: Tensor,
    g: Tensor,
    row: Tensor,
    products: Tensor,
    attention: Tensor,
    want_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Second moments with the teacher and the gradient of the states, in the moment form.

    Args:
        teacher: [N, sum d_i] bfloat16/float32/float64.
        widths: d_i.
        states: S of [N, d_j] float32/float64, the compute dtype.
        nodes: int64 indices of the nodes that count, None = all.
        weight: w of these nodes, None = 1.
        centre: [sum d_j], h~ = h - centre.
        g: G [sum d_j, sum d_j].
        row: [1, sum d_j].
        products: M_i N_j^T, [sum d_i, sum d_j] float64.
        attention: A [T, S] float64, scaled.
        want_student: else the gradient is empty.

    Returns:
        sums over nodes w t^T h~ [sum d_i, sum d_j], w h~^T h~ [sum d_j, sum d_j] and w h~
        [sum d_j], float64; w (h~ G + row - t K) [N, sum d_j] with K_ij = A_ij M_i N_j^T.
    """
    given = NodeSet(teacher, widths, states, nodes, weight, centre)
    pairs = repeat_layers(repeat_layers(attention, widths).t(), given.student_widths).t()
    k = (pairs * products).to(given.dtype)
    cross, product = given.zeros(*k.shape), given.empty(*k.shape)
    second, total = given.zeros(*g.shape), given.zeros(g.size(0))
    buffer = given.empty(given.block_size, g.size(0))
    dstates = given.state_gradients(want_student)
    for block in given.blocks():
        weighted = block.states if block.weight is None else block.states * block.weight[:, None]
        cross += torch.mm(block.teacher.t(), weighted, out=product)
        weighted = weighted.double()
        second += weighted.t() @ block.states.double()
        total += weighted.sum(0)
        if want_student:
            dstates[block.rows] = _state_gradient(block, g, k, row, buffer)
    return cross, second, total, dstates


def _state_gradient(block: Block, g: Tensor, k: Tensor, row: Tensor, buffer: Tensor) -> Tensor:
    """w_v (h G - t K + row), [B, sum d_j]."""
    out = torch.addmm(row, block.states, g, out=buffer[: block.states.size(0)])
    out.addmm_(block.teacher, k, alpha=-1)
    return out if block.weight is None else out.mul_(block.weight[:, None])


def projection_pass(
    teacher: Tensor,
    widths: list[int],
    states: list[Tensor],
    nodes: Tensor | None,
    weight: Tensor | None,
    centre: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    bias: Tensor,
    attention: Tensor,
    u: Tensor,
    w: Tensor,
    scale: float,
    want_teacher_map: bool,
    want_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums over p_i = t_i M_i + bias_i and s_j = (h_j - centre_j) N_j, and gradients.

    Args:
        teacher: as in :func:`moment_pass`, like all down to centre.
        widths: d_i.
        states: S of [N, d_j].
        nodes: indices or None.
        weight: v of the nodes, or None.
        centre: [sum d_j].
        teacher_map: M [sum d_i, r].
        student_map: N [sum d_j, r].
        bias: [T, r].
        attention: A [T, S] float64.
        u: [T, r].
        w: [S, r].
        scale: of dstates.
        want_teacher_map: else dteacher_map is empty.
        want_student: else dstudent_map and dstates are empty.

    Returns:
        With gp_i = v (rho_i p_i - sum_j A_ij s_j + u_i), gs_j = v (gamma_j s_j - sum_i A_ij p_i +
        w_j): squares [T + S], v |p|^2 and v |s|^2; sums [T + S, r], v p and v s; cross [T, S],
        v <p, s>; dstudent_map, (h - centre)^T gs; dteacher_map, t^T gp; all float64 sums over
        nodes; dstates [N, sum d_j], scale gs N^T.
    """
    given = NodeSet(teacher, widths, states, nodes, weight, centre)
    run = _Projection(given, (teacher_map, student_map), attention, (bias, u, w))
    return run.run(scale, want_teacher_map, want_student)


class _Projection:
    """Sums and buffers of one pass."""

    def __init__(
        self,
        given: NodeSet,
        maps: tuple[Tensor, Tensor],
        attention: Tensor,
        rows: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        self.given = given
        self.teacher_map, self.student_map = maps
        self.bias, self.u, self.w = rows
        self.attention = attention.to(given.dtype)
        self.rho, self.gamma = (attention.sum(dim).to(given.dtype)[:, None] for dim in (1, 0))
        (num_teacher, num_student), r = attention.shape, self.teacher_map.size(1)
        self.p = given.empty(num_teacher * given.block_size * r)
        self.s = given.empty(num_student * given.block_size * r)
        self.gs = torch.empty_like(self.s)
        self.squares = given.zeros(num_teacher + num_student)
        self.sums = given.zeros(num_teacher + num_student, r)
        self.cross = given.zeros(num_teacher, num_student)

    def run(
        self, scale: float, want_teacher_map: bool, want_student: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        given, r = self.given, self.teacher_map.size(1)
        dstudent_map = given.zeros(self.student_map.size(0) if want_student else 0, r)
        dteacher_map = given.zeros(self.teacher_map.size(0) if want_teacher_map else 0, r)
        dstates = given.state_gradients(want_student)
        for block in given.blocks():
            size = block.teacher.size(0)
            p = self.p[: len(given.widths) * size * r].view(-1, size, r)
            s = self.s[: len(given.states) * size * r].view(-1, size, r)
            project(block.teacher, self.teacher_map, given.runs, p, self.bias)
            project(block.states, self.student_map, given.student_runs, s)
            self._score(p, s, block.weight)
            if want_student:
                gs = self._student_residual(p, s, block.weight)
                add_products(dstudent_map, block.states, gs, given.student_runs)
                part = torch.empty_like(block.states)
                spread(gs, self.student_map, given.student_runs, part)
                dstates[block.rows] = part.mul_(scale)
            if want_teacher_map:
                gp = self._teacher_residual(p, s, block.weight)
                add_products(dteacher_map, block.teacher, gp, given.runs)
        return self.squares, self.sums, self.cross, dstudent_map, dteacher_map, dstates

    def _score(self, p: Tensor, s: Tensor, weight: Tensor | None) -> None:
        """Add the block's squares, sums and products."""
        self.squares += torch.cat([row_squares(p, weight), row_squares(s, weight)])
        self.sums += torch.cat([weighted_sum(p, weight), weighted_sum(s, weight)])
        ws = s if weight is None else s * weight[:, None]
        # Short products, added up in float64: one long float32 sum would lose a digit or two.
        chunk = math.gcd(p.size(1), 64) * p.size(2)
        p_chunks = p.view(p.size(0), -1, chunk).transpose(0, 1)
        s_chunks = ws.view(s.size(0), -1, chunk).permute(1, 2, 0)
        self.cross += torch.bmm(p_chunks, s_chunks).double().sum(0)

    def _student_residual(self, p: Tensor, s: Tensor, weight: Tensor | None) -> Tensor:
        """v (gamma_j s_j - sum_i A_ij p_i + w_j), [S, B, r]."""
        gs = self.gs[: s.numel()].view_as(s)
        torch.addcmul(self.w[:, None], s, self.gamma[:, None], out=gs)
        gs.flatten(1).addmm_(self.attention.t(), p.flatten(1), alpha=-1)
        return gs if weight is None else gs.mul_(weight[:, None])

    def _teacher_residual(self, p: Tensor, s: Tensor, weight: Tensor | None) -> Tensor:
        """v (rho_i p_i - sum_j A_ij s_j + u_i) in place of p, [T, B, r]."""
        torch.addcmul(self.u[:, None], p, self.rho[:, None], out=p)
        p.flatten(1).addmm_(self.attention, s.flatten(1), alpha=-1)
        return p if weight is None else p.mul_(weight[:, None])


def _moment_shapes(
    teacher: Tensor, widths: list[int], states: list[Tensor], *args: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    products, want_student = args[5], args[7]
    assert isinstance(products, Tensor)
    width = products.size(1)
    return (
        torch.empty_like(products),
        products.new_empty(width, width),
        products.new_empty(width),
        states[0].new_empty(teacher.size(0) if want_student else 0, width),
    )


def _projection_shapes(
    teacher: Tensor, widths: list[int], states: list[Tensor], *args: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    teacher_map, student_map, attention = args[3], args[4], args[6]
    want_teacher_map, want_student = args[10], args[11]
    assert isinstance(teacher_map, Tensor) and isinstance(student_map, Tensor)
    assert isinstance(attention, Tensor)
    r, layers = teacher_map.size(1), sum(attention.shape)
    return (
        attention.new_empty(layers),
        attention.new_empty(layers, r),
        torch.empty_like(attention),
        attention.new_empty(student_map.size(0) if want_student else 0, r),
        attention.new_empty(teacher_map.size(0) if want_teacher_map else 0, r),
        states[0].new_empty(teacher.size(0) if want_student else 0, student_map.size(0)),
    )


_backend.register("layer_pair_moment", moment_pass, _moment_shapes)
_backend.register("layer_pair_projection", projection_pass, _projection_shapes)
