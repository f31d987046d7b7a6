"""CKA: a dissimilarity of layers without parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from abkd_fast._autocast import widened, without_autocast
from abkd_fast._checks import check_choice
from abkd_fast._mapped import mapped_file
from abkd_fast.capture import Capture
from abkd_fast.distill._layer_maps import fixed_map
from abkd_fast.distill._rows import check_weight, check_widths, student_layers
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.ops import Moments, teacher_moments
from abkd_fast.teacher import TeacherCache

MAPS = ("uniform", "last", "diagonal")
_BLOCK = 4096  # rows of the teacher at a time


class CKA(Objective):
    r"""weight / T * sum_ij A_ij (1 - CKA(H^T_i, H^S_j)) over layer pairs, with nothing to train.

    .. math:: CKA(X, Y) = \frac{|X^\top Y|_F^2}{|X^\top X|_F \, |Y^\top Y|_F}

    of centred states: linear centred kernel alignment, which no rotation or common scale of
    either side changes (Kornblith et al., arXiv 1905.00414, equation 5). It is 0 for a layer whose
    rows are all equal. A is a fixed map of total mass T (ours: uniform). In
    N (sum d_i) (sum d_j) operations, the teacher's own moments known; nothing of size N x N.

    Args:
        map: "uniform" (1/S), "last" (only last with last), "diagonal" (proportional depth), or
            a tensor [T, S].
        weight: ours: 1.
    """

    fixed_map: Tensor

    def __init__(self, map: str | Tensor = "uniform", weight: float = 1.0) -> None:
        super().__init__()
        if isinstance(map, str):
            check_choice("map", map, MAPS)
        self.map, self.weight = map, check_weight("weight", weight)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Keep the map of the layer pairs."""
        del graph
        self.student_widths = student_layers("CKA", list(student_widths))
        pairs = fixed_map(self.map, len(teacher.widths), len(self.student_widths))
        self.register_buffer("fixed_map", pairs.to(teacher.device), persistent=False)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Weighted mean over layer pairs; leaves ``.attention`` and ``.dissimilarity`` [T, S]."""
        check_widths(student, self.student_widths)
        rows = teacher.states if nodes is None else teacher.rows(nodes)
        moments = teacher.moments if nodes is None else teacher_moments(rows, teacher.widths)
        states = [widened(state) for state in student.states]
        dissimilarity = cka_dissimilarity(rows, teacher.widths, moments, states)
        self.attention, self.dissimilarity = self.fixed_map, dissimilarity.detach()
        pairs = self.fixed_map.to(dissimilarity.dtype)
        loss = (pairs * dissimilarity).sum() / len(teacher.widths)
        self.scalars = {"cka": loss.detach()}
        return self.weight * loss

    def extra_repr(self) -> str:
        """Settings."""
        given = self.map if isinstance(self.map, str) else f"tensor {self.map.tolist()}"
        return f"map={given!r}, weight={self.weight}"


def cka_dissimilarity(
    teacher: Tensor, widths: Sequence[int], moments: Moments, states: Sequence[Tensor]
) -> Tensor:
    """1 - CKA [T, S] of all layer pairs, differentiable once in the student's states.

    Args:
        teacher: [N, sum(widths)] bfloat16/float32/float64; read in blocks, wherever it lies.
        widths: width d_i of each of T teacher layers.
        moments: of the teacher over these rows.
        states: S of [N, d_j] float32/float64.
    """
    h = torch.cat(list(states), dim=1)
    h = h - h.mean(0)
    means = moments.mean.split(list(widths))
    own = [
        torch.linalg.matrix_norm(second - mean[:, None] * mean)
        for second, mean in zip(moments.second, means, strict=True)
    ]
    parts = h.split([state.size(1) for state in states], dim=1)
    # Fourth powers of the states, in float64: float32 has no room for them.
    squares = torch.stack([(part.t() @ part).double().square().sum() for part in parts])
    cross = _Cross.apply(teacher, moments.mean.to(h), h).double().square()
    rows, columns = (_membership(w, cross) for w in (widths, [p.size(1) for p in parts]))
    cross = rows.t() @ cross @ columns
    norms = torch.stack(own).to(cross)[:, None] * h.size(0)
    known = (norms > 0) & (squares > 0)
    scale = norms * torch.where(squares > 0, squares, 1.0).sqrt()
    return (1.0 - cross / torch.where(known, scale, 1.0) * known).to(h)


def _membership(widths: Sequence[int], like: Tensor) -> Tensor:
    """[sum(widths), layers]: 1 where a column is one of the layer's."""
    return torch.block_diag(*[like.new_ones(width, 1) for width in widths])


def _blocks(teacher: Tensor, mean: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, centred states) of the teacher, in the dtype and on the device of ``mean``."""
    file = mapped_file(teacher)
    for start in range(0, teacher.size(0), _BLOCK):
        span = slice(start, start + _BLOCK)
        read = teacher[span]
        yield span, read.to(mean) - mean
        if file is not None:
            file.drop(read)


class _Cross(Function):
    """T^T H [sum(widths), sum d_j] of centred states."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, mean: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(teacher, mean)
        total = h.new_zeros(teacher.size(1), h.size(1))
        for span, block in _blocks(teacher, mean):
            total.addmm_(block.t(), h[span])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dcross: Tensor) -> tuple[None, None, Tensor]:
        teacher, mean = ctx.saved_tensors
        return None, None, torch.cat([block @ dcross for _, block in _blocks(teacher, mean)])
