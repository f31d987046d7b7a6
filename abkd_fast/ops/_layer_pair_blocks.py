"""Shared by the forms of layer_pair: the problem, node blocks, and products per layer.

Symbols: N nodes, T teacher and S student layers, r subspace width, p_i = (t_i - shift_i) M_i and
s_j = h_j N_j. Layers lie side by side: the teacher is [N, sum d_i], its maps [sum d_i, r].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 2**22  # of one teacher block: 16 MB in float32, within the last-level cache
_CENTRE_ROWS = 64


@dataclass(frozen=True)
class Run:
    """Neighbouring layers of equal width: one batched product serves them all."""

    first: int  # index of the first layer
    count: int
    start: int  # first column
    width: int

    @property
    def layers(self) -> slice:
        """Indices of the layers."""
        return slice(self.first, self.first + self.count)

    @property
    def columns(self) -> slice:
        """Columns of the layers."""
        return slice(self.start, self.start + self.count * self.width)

    def batch(self, x: Tensor) -> Tensor:
        """[B, sum d] -> view [count, B, width]."""
        return x[:, self.columns].unflatten(1, (self.count, self.width)).transpose(0, 1)

    def stack(self, maps: Tensor) -> Tensor:
        """[sum d, ...] -> view [count, width, ...]."""
        return maps[self.columns].unflatten(0, (self.count, self.width))


def find_runs(widths: list[int]) -> list[Run]:
    """Split layers into runs of equal width."""
    runs: list[Run] = []
    start = 0
    for layer, width in enumerate(widths):
        if runs and runs[-1].width == width:
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
        else:
            runs.append(Run(layer, 1, start, width))
        start += width
    return runs


def project(
    x: Tensor, maps: Tensor, runs: list[Run], out: Tensor, bias: Tensor | None = None
) -> Tensor:
    """out[i] = x_i maps_i (+ bias_i): [B, sum d] x [sum d, r] -> [L, B, r]."""
    for run in runs:
        if bias is None:
            torch.bmm(run.batch(x), run.stack(maps), out=out[run.layers])
        else:
            row = bias[run.layers, None]
            torch.baddbmm(row, run.batch(x), run.stack(maps), out=out[run.layers])
    return out


def add_products(total: Tensor, x: Tensor, g: Tensor, runs: list[Run]) -> None:
    """total_i += x_i^T g_i: [B, sum d] x [L, B, r] -> [sum d, r], summed in dtype of total."""
    for run in runs:
        product = torch.bmm(run.batch(x).transpose(1, 2), g[run.layers])
        total[run.columns] += product.flatten(0, 1)


def spread(g: Tensor, maps: Tensor, runs: list[Run], out: Tensor) -> Tensor:
    """out_i = g_i maps_i^T: [L, B, r] x [sum d, r] -> [B, sum d]."""
    for run in runs:
        torch.bmm(g[run.layers], run.stack(maps).transpose(1, 2), out=run.batch(out))
    return out


def layer_rows(rows: Tensor, maps: Tensor, runs: list[Run]) -> Tensor:
    """Per layer, one row vector times its map: [sum d] x [sum d, r] -> [L, r]."""
    parts = [torch.bmm(run.stack(rows)[:, None], run.stack(maps)) for run in runs]
    return torch.cat(parts).squeeze(1)


def add_outer(
    total: Tensor, rows: Tensor, g: Tensor, runs: list[Run], alpha: float = 1.0
) -> Tensor:
    """total_i += alpha * rows_i^T g_i: [sum d] x [L, r] -> [sum d, r]."""
    for run in runs:
        columns = run.stack(rows)[:, :, None]
        run.stack(total).baddbmm_(columns, g[run.layers, None], alpha=alpha)
    return total


def layer_sums(x: Tensor, runs: list[Run]) -> Tensor:
    """Sum the rows of every layer: [sum d, c] -> [L, c]."""
    return torch.cat([run.stack(x).sum(1) for run in runs])


def repeat_layers(x: Tensor, widths: list[int]) -> Tensor:
    """Repeat entry i widths[i] times: [L, ...] -> [sum d, ...]; nothing is copied to the device."""
    runs = find_runs(widths)
    return torch.cat([x[run.layers].repeat_interleave(run.width, 0) for run in runs])


def row_squares(x: Tensor, weight: Tensor | None) -> Tensor:
    """sum_v w_v |x_lv|^2 of [L, B, r] -> [L] float64.

    The norms of short rows are exact to rounding, unlike one long float32 sum of squares.
    """
    squares = torch.linalg.vector_norm(x, dim=-1).double().square_()
    return squares.sum(-1) if weight is None else squares @ weight.double()


def weighted_sum(x: Tensor, weight: Tensor | None) -> Tensor:
    """sum_v w_v x_lv of [L, B, r] -> [L, r] float64."""
    return (x.sum(1) if weight is None else torch.einsum("lbr,b->lr", x, weight)).double()


def select_nodes(
    mask: Tensor | None, weight: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Indices of the nodes that count (None = all) and their weights (None = 1)."""
    nodes = mask if mask is None or mask.dtype == torch.int64 else mask.nonzero().flatten()
    return nodes, None if weight is None else weight.to(dtype)


class Block(NamedTuple):
    """Some nodes: ``rows`` indexes [N, ...] tensors."""

    rows: slice | Tensor
    teacher: Tensor  # [B, sum d_i] as given, in the compute dtype
    states: Tensor  # [B, sum d_j] less the problem's state_centre
    weight: Tensor | None  # [B]


@dataclass
class NodeSet:
    """Teacher and student states of the nodes that count."""

    teacher: Tensor  # [N, sum d_i], any float dtype
    widths: list[int]
    states: list[Tensor]  # S of [N, d_j], compute dtype
    nodes: Tensor | None  # int64 indices of the nodes that count, None = all
    weight: Tensor | None  # [number of nodes that count], compute dtype
    state_centre: Tensor  # [sum d_j] compute dtype, near the mean of the student states

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute dtype: that of the student states."""
        return self.states[0].dtype

    @cached_property
    def student_widths(self) -> list[int]:
        """Width of every student layer."""
        return [state.size(1) for state in self.states]

    @cached_property
    def runs(self) -> list[Run]:
        """Runs of teacher layers."""
        return find_runs(self.widths)

    @cached_property
    def student_runs(self) -> list[Run]:
        """Runs of student layers."""
        return find_runs(self.student_widths)

    @cached_property
    def teacher_centre(self) -> Tensor:
        """[sum d_i] compute dtype, near the mean of the teacher."""
        nodes = None if self.nodes is None else self.nodes.to(self.teacher.device)
        return near_mean(self.teacher, nodes, self.dtype).to(self.states[0].device)

    @property
    def block_size(self) -> int:
        """Nodes in a block."""
        return min(max(_BLOCK_ELEMENTS // sum(self.widths), 64), 4096, self.num_rows)

    @property
    def num_rows(self) -> int:
        """Number of nodes that count."""
        return self.teacher.size(0) if self.nodes is None else self.nodes.numel()

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised buffer in the compute dtype."""
        return self.states[0].new_empty(shape)

    def zeros(self, *shape: int) -> Tensor:
        """float64 total."""
        return self.states[0].new_zeros(shape, dtype=torch.float64)

    def state_gradients(self, wanted: bool) -> Tensor:
        """[N, sum d_j] zeros, or no rows where not wanted."""
        num_nodes = self.teacher.size(0) if wanted else 0
        return self.states[0].new_zeros(num_nodes, sum(self.student_widths))

    def blocks(self) -> Iterator[Block]:
        """Yield all nodes that count, block by block; buffers are reused by the next block."""
        converts = self.nodes is not None or self.teacher.dtype != self.dtype
        teacher_buffer = self.empty(self.block_size, sum(self.widths)) if converts else None
        state_buffer = self.empty(self.block_size, sum(self.student_widths))
        centres = self.state_centre.split(self.student_widths)
        for start in range(0, self.num_rows, self.block_size):
            span = slice(start, min(start + self.block_size, self.num_rows))
            rows = span if self.nodes is None else self.nodes[span]
            size = span.stop - span.start
            teacher = self.teacher[rows]
            if teacher_buffer is not None:
                teacher = teacher_buffer[:size].copy_(teacher)
            states = state_buffer[:size]
            parts = states.split(self.student_widths, dim=1)
            for state, centre, part in zip(self.states, centres, parts, strict=True):
                torch.sub(state[rows], centre, out=part)
            yield Block(rows, teacher, states, None if self.weight is None else self.weight[span])


def near_mean(x: Tensor, nodes: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Mean of fewer than 2 * _CENTRE_ROWS rows spread evenly over the nodes that count.

    Any centre gives the same result: it only keeps a common offset from cancelling digits. Where
    the offset is below the spread it cancels none, and 0 saves the rounding of x - centre.
    """
    step = max((x.size(0) if nodes is None else nodes.numel()) // _CENTRE_ROWS, 1)
    sample = x[::step] if nodes is None else x[nodes[::step]]
    rows = sample.to(dtype, copy=True)
    mean = rows.mean(0)
    variance = rows.sub_(mean).square_().mean(0)  # torch.var_mean is slower over rows
    return mean.masked_fill_(mean.square() <= variance, 0.0)


@dataclass
class Problem(NodeSet):
    """Checked arguments of one call."""

    teacher_map: Tensor  # [sum d_i, r]
    student_map: Tensor  # [sum d_j, r]
    shift: Tensor | None  # [sum d_i] float64
    count: float  # sum of weights

    def teacher_rows(self, row: Tensor) -> tuple[Tensor, Tensor | None]:
        """(row_i M_i, shift_i M_i or None) of a row [sum d_i]; [T, r] float64."""
        rows = row.double()[None] if self.shift is None else torch.stack([row.double(), self.shift])
        out = torch.ops.abkd_fast.layer_pair_rows(rows, self.teacher_map, self.widths)
        return out[0], None if self.shift is None else out[1]

    def student_rows(self, row: Tensor) -> Tensor:
        """row_j N_j of a float64 row [sum d_j]; [S, r] float64."""
        rows = torch.ops.abkd_fast.layer_pair_rows(row[None], self.student_map, self.student_widths)
        return rows[0]


class Wanted(NamedTuple):
    """Which gradients to compute; the one of the attention is always there."""

    teacher_map: bool
    student: bool  # student maps and student states


@dataclass
class Totals:
    """What a pass leaves behind; gradients are of mean(attention * D), and empty if unwanted."""

    dissimilarity: Tensor  # [T, S] float64
    # Size of the terms whose difference is the dissimilarity: tells how much cancelled.
    magnitude: Tensor
    dteacher_map: Tensor  # [sum d_i, r], float64 or the compute dtype
    dstudent_map: Tensor  # [sum d_j, r] float64
    dstates: Tensor  # [N, sum d_j] compute dtype


def zero_totals(problem: Problem, wanted: Wanted) -> Totals:
    """Totals of a pass in which no pair took part."""
    num_teacher, num_student = len(problem.widths), len(problem.states)
    r = problem.teacher_map.size(1)
    return Totals(
        dissimilarity=problem.zeros(num_teacher, num_student),
        magnitude=problem.zeros(num_teacher, num_student),
        dteacher_map=problem.zeros(sum(problem.widths) if wanted.teacher_map else 0, r),
        dstudent_map=problem.zeros(sum(problem.student_widths) if wanted.student else 0, r),
        dstates=problem.state_gradients(wanted.student),
    )


def gradient_scale(problem: Problem) -> float:
    """2/(N r T S): what turns sums of (p - s) into gradients of the loss."""
    num_pairs = len(problem.widths) * len(problem.states)
    return 2.0 / (problem.count * problem.teacher_map.size(1) * num_pairs)
