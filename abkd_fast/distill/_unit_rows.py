"""ABKD's dissimilarity between projected rows of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_BLOCK_ELEMENTS = 1 << 20  # of a block's projections, which are read a few times: 4 MB


def unit_rows_distance(
    teacher: Tensor,
    widths: Sequence[int],
    states: Sequence[Tensor],
    nodes: Tensor | None,
    attention: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
) -> tuple[Tensor, Tensor]:
    """(mean(A * D), D [T, S] detached) of rows scaled to length 1 over ``nodes``, None = all.

    D_ij = 1/(n r) sum_v |p_iv/|p_iv| - s_jv/|s_jv||^2. A row of zeros stays one, and has no
    gradient. The square is expanded, so D is exact to the rounding of 2. Nodes go by in blocks, and
    the gradients are there after the forward: nothing of size N x T r is kept.
    """
    student_widths = [state.size(1) for state in states]
    return _UnitRows.apply(
        teacher, list(widths), student_widths, nodes, torch.cat(list(states), 1), attention,
        teacher_map, student_map,
    )  # fmt: skip


class _Side(NamedTuple):
    """Projections of a block's rows on one side."""

    rows: Tensor  # [B, sum d]
    widths: list[int]
    maps: Tensor  # [sum d, r]
    unit: Tensor  # [layers, B, r]
    length: Tensor  # [layers, B, 1], inf for rows of zeros

    @property
    def squares(self) -> Tensor:
        """Sum of |unit row|^2 [layers]: how many rows are not zero."""
        return self.length.isfinite().sum((1, 2)).double()

    def map_gradient(self, dunit: Tensor, out: Tensor) -> None:
        """out [sum d, r] += the gradient of the maps."""
        layers = zip(self.rows.split(self.widths, 1), out.split(self.widths), strict=True)
        for i, (x, total) in enumerate(layers):
            total.addmm_(x.t(), dunit[i])

    def row_gradient(self, dunit: Tensor) -> Tensor:
        """The gradient [B, sum d] of the rows."""
        maps = self.maps.split(self.widths)
        return torch.cat([dunit[i] @ m.t() for i, m in enumerate(maps)], 1)

    def through_length(self, dunit: Tensor) -> Tensor:
        """From the gradient of the unit rows, [layers, B r], to that of the projections."""
        dunit = dunit.view_as(self.unit)
        radial = (dunit * self.unit).sum(2, keepdim=True)
        return dunit.addcmul_(radial, self.unit, value=-1).div_(self.length)


def _project(rows: Tensor, widths: list[int], maps: Tensor) -> _Side:
    unit = rows.new_empty(len(widths), rows.size(0), maps.size(1))
    for i, (x, m) in enumerate(zip(rows.split(widths, 1), maps.split(widths), strict=True)):
        torch.mm(x, m, out=unit[i])
    length = torch.linalg.vector_norm(unit, dim=2, keepdim=True)
    length.masked_fill_(length == 0, torch.inf)
    return _Side(rows, widths, maps, unit.div_(length), length)


class _UnitRows(Function):
    @staticmethod
    def forward(
        ctx: Any,
        teacher: Tensor,
        widths: list[int],
        student_widths: list[int],
        nodes: Tensor | None,
        h: Tensor,
        attention: Tensor,
        teacher_map: Tensor,
        student_map: Tensor,
    ) -> tuple[Tensor, Tensor]:
        count = h.size(0) if nodes is None else nodes.numel()
        block = max(_BLOCK_ELEMENTS // (len(widths) * teacher_map.size(1)), 64)
        a = attention * (-2.0 / (count * teacher_map.size(1) * attention.numel()))
        total = torch.zeros_like(attention, dtype=torch.float64)
        dh, dteacher_map, dstudent_map = map(torch.zeros_like, (h, teacher_map, student_map))
        for start in range(0, count, block):
            span = slice(start, min(start + block, count))
            at = span if nodes is None else nodes[span]
            read = teacher[at if isinstance(at, slice) else at.to(teacher.device)]
            p = _project(read.to(h), widths, teacher_map)
            s = _project(h[at], student_widths, student_map)
            total += p.squares[:, None] + s.squares
            total -= 2.0 * (p.unit.flatten(1) @ s.unit.flatten(1).t()).double()
            if ctx.needs_input_grad[6]:
                p.map_gradient(p.through_length(a @ s.unit.flatten(1)), dteacher_map)
            ds = s.through_length(a.t() @ p.unit.flatten(1))
            s.map_gradient(ds, dstudent_map)
            dh[at] = s.row_gradient(ds)
        dissimilarity = (total / (count * teacher_map.size(1))).clamp_min_(0.0).to(h)
        ctx.save_for_backward(dh, dissimilarity / attention.numel(), dteacher_map, dstudent_map)
        ctx.mark_non_differentiable(dissimilarity)
        return (attention * dissimilarity).mean(), dissimilarity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad[4:], strict=True)
        return None, None, None, None, *(g * dloss if want else None for g, want in wanted)
