"""Attention-based knowledge distillation (ABKD, arXiv 2310.15938)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._autocast import widened, without_autocast
from abkd_fast._checks import check_choice, check_finite
from abkd_fast.capture import Capture
from abkd_fast.distill._unit_rows import unit_rows
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.memory import transposed
from abkd_fast.ops import Moments, layer_pair
from abkd_fast.teacher import TeacherCache

MAPS = ("attention", "uniform", "last", "diagonal")


class ABKD(Objective):
    r"""beta * S * mean_ij A_ij D_ij over all teacher-layer x student-layer pairs.

    A = softmax over a row of <q_i, k_j> / sqrt(attention_dim), with q_i, k_j linear images of
    the layers' mean states (:meth:`attention_map`); D_ij = 1/(N r) sum_v ||t_iv M_i - s_jv N_j||^2
    with M_i = W_i P and N_j = V_j P trained (``ops.layer_pair``). The paper states the
    row-wise softmax, the loss and the trainable P; the options below are choices where it is
    silent, none of them is the paper's. The factor S makes beta mean the same at every depth.

    Args:
        attention_dim: a, width of queries, keys and layer embeddings.
        subspace_dim: r, width after P; None = a.
        map: "attention", or a fixed map to compare with: "uniform" (1/S), "last" (only last with
            last), "diagonal" (proportional depth), or a tensor [T, S]. Every map is scaled to
            total mass T.
        softmax_over: "student": each teacher layer spreads mass 1 over the student layers;
            "teacher": each student layer spreads mass T/S over the teacher layers.
        pool: compare mean states instead of node by node (version 1 of the paper).
        normalize: "none"; "standardize": teacher states centred, and scaled to unit variance per
            layer; "rows": projected rows of unit length.
        mask: [N] bool, the nodes that D, its means and its scales are taken over (the training
            nodes, say); None = all. Queries and keys keep the means over all nodes.
        freeze_teacher_map: keep W_i and P of the teacher side fixed at random, so that D cannot
            be lowered by shrinking them; the student side gets its own P.
        beta: weight.
    """

    teacher_means: Tensor
    teacher_scale: Tensor | None  # [sum d_i, 1]
    teacher_subspace: Tensor
    fixed_map: Tensor
    mask: Tensor | None
    counted: Tensor | None  # indices of the mask

    def __init__(
        self,
        attention_dim: int = 64,
        subspace_dim: int | None = None,
        map: str | Tensor = "attention",
        softmax_over: str = "student",
        pool: bool = False,
        normalize: str = "none",
        mask: Tensor | None = None,
        freeze_teacher_map: bool = False,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("softmax_over", softmax_over, ("student", "teacher"))
        check_choice("normalize", normalize, ("none", "standardize", "rows"))
        if isinstance(map, str):
            check_choice("map", map, MAPS)
        if not torch.isfinite(torch.tensor(float(beta))):
            raise ValueError(f"beta must be finite, got {beta}")
        subspace_dim = attention_dim if subspace_dim is None else subspace_dim
        for name, value in (("attention_dim", attention_dim), ("subspace_dim", subspace_dim)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.attention_dim, self.subspace_dim = attention_dim, subspace_dim
        self.map, self.softmax_over, self.pool = map, softmax_over, pool
        self.normalize, self.freeze_teacher_map, self.beta = normalize, freeze_teacher_map, beta
        self.register_buffer("mask", mask, persistent=False)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw the maps (Glorot-uniform per layer) and keep the teacher's constants."""
        del graph
        if not student_widths:
            raise ValueError("ABKD needs at least one captured student layer, got none")
        self.teacher_widths, self.student_widths = list(teacher.widths), list(student_widths)
        a, device = self.attention_dim, teacher.device
        is_attention = isinstance(self.map, str) and self.map == "attention"
        if is_attention:
            self.query = _layer_maps(self.teacher_widths, a, device)
            self.key = _layer_maps(self.student_widths, a, device)
        else:
            fixed = _fixed_map(self.map, len(self.teacher_widths), len(self.student_widths))
            self.register_buffer("fixed_map", fixed.to(device))
        self.teacher_embedding = _layer_maps(self.teacher_widths, a, device)
        self.student_embedding = _layer_maps(self.student_widths, a, device)
        self.subspace = nn.Parameter(_glorot(a, self.subspace_dim, device))
        if self.freeze_teacher_map:
            self.teacher_embedding.requires_grad_(False)
            self.register_buffer("teacher_subspace", _glorot(a, self.subspace_dim, device))
        self.register_buffer("teacher_means", _block_means(teacher.means), persistent=False)
        self.masked_moments, counted = None, None
        if self.mask is not None:
            self.mask = self.mask.to(device)
            counted = self.mask.nonzero().flatten()
            self.masked_moments = teacher.moments_of(self.mask)
        self.register_buffer("counted", counted, persistent=False)
        scale = None
        if self.normalize == "standardize":
            widths = torch.tensor(self.teacher_widths, device=device)
            layers = _layer_scales(self.masked_moments or teacher.moments, teacher.widths)
            scale = layers.repeat_interleave(widths)[:, None]
        self.register_buffer("teacher_scale", scale, persistent=False)

    def attention_map(self, student: Capture) -> Tensor:
        """A [T, S] of total mass T; differentiable in the queries, keys and student means."""
        if not isinstance(self.map, str) or self.map != "attention":
            return self.fixed_map
        num_teacher, num_student = len(self.teacher_widths), len(self.student_widths)
        means = torch.block_diag(*[mean[None] for mean in student.means])
        queries = ops.linear(self.teacher_means, self.query.t())
        scores = ops.linear(queries, means @ self.key)
        scores = scores / self.attention_dim**0.5
        if self.softmax_over == "student":
            return scores.softmax(dim=1)
        return scores.softmax(dim=0) * (num_teacher / num_student)

    def maps(self) -> tuple[list[Tensor], list[Tensor]]:
        """M_i = W_i P / scale_i, each [d_i, r], and N_j = V_j P, each [d_j, r]."""
        teacher_map, student_map = self._stacked_maps()
        return (
            list(teacher_map.split(self.teacher_widths)),
            list(student_map.split(self.student_widths)),
        )

    def _stacked_maps(self) -> tuple[Tensor, Tensor]:
        """M [sum d_i, r] and N [sum d_j, r]."""
        subspace = transposed(self.subspace)  # once: its two gradients then add up in place
        frozen = self.freeze_teacher_map
        teacher_subspace = transposed(self.teacher_subspace) if frozen else subspace
        teacher_map = ops.linear(self.teacher_embedding, teacher_subspace)
        if self.teacher_scale is not None:
            teacher_map = teacher_map.div_(self.teacher_scale)
        return teacher_map, ops.linear(self.student_embedding, subspace)

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """beta * S * mean(A * D); leaves ``.attention`` and ``.dissimilarity`` [T, S]."""
        if student.widths != self.student_widths:
            raise ValueError(
                f"student states must have widths {self.student_widths} as in setup, "
                f"got {student.widths}"
            )
        attention = self.attention_map(student)
        mean, dissimilarity = self._compare(student, teacher, attention, nodes)
        self.attention, self.dissimilarity = attention.detach(), dissimilarity.detach()
        loss = len(self.student_widths) * mean
        self.scalars = {"abkd": loss.detach()}
        return self.beta * loss

    def _compare(
        self, student: Capture, teacher: TeacherCache, attention: Tensor, nodes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(mean(A * D), D) over the nodes at hand that count."""
        moments = self.masked_moments or teacher.moments
        # Indices, where they are known: the host waits to count a mask.
        mask = self.counted if self.mask is None or nodes is None else self.mask[nodes]
        rows = teacher.states if nodes is None else teacher.rows(nodes)
        if self.pool:
            means = student.means
            if mask is not None:
                means = [widened(state[mask]).mean(0) for state in student.states]
            return self._pooled(moments, means, attention, *self.maps())
        states = [widened(state) for state in student.states]
        if self.normalize == "rows":
            return unit_rows(rows, states, mask, attention, *self.maps())
        return layer_pair(
            rows,
            teacher.widths,
            states,
            attention,
            *self._stacked_maps(),
            moments=moments if nodes is None else None,
            shift=moments.mean if self.normalize == "standardize" else None,
            mask=mask,
        )

    def _pooled(
        self,
        moments: Moments,
        means: Sequence[Tensor],
        attention: Tensor,
        teacher_maps: list[Tensor],
        student_maps: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """D_ij = |p_i - s_j|^2 / r of the projected mean states."""
        teacher_means = _block_means(moments.mean.split(self.teacher_widths))
        p = teacher_means @ torch.cat(teacher_maps)
        s = torch.stack([mean @ m for mean, m in zip(means, student_maps, strict=True)])
        if self.normalize == "rows":
            p, s = nn.functional.normalize(p, dim=1), nn.functional.normalize(s, dim=1)
        dissimilarity = (p[:, None] - s[None]).square().mean(2)
        return (attention * dissimilarity).mean(), dissimilarity

    def extra_repr(self) -> str:
        """Settings."""
        mask = None if self.mask is None else f"{int(self.mask.sum())} of {len(self.mask)} nodes"
        given = self.map if isinstance(self.map, str) else f"tensor {self.map.tolist()}"
        return (
            f"attention_dim={self.attention_dim}, subspace_dim={self.subspace_dim}, map={given!r}, "
            f"softmax_over={self.softmax_over!r}, pool={self.pool}, normalize={self.normalize!r}, "
            f"mask={mask}, freeze_teacher_map={self.freeze_teacher_map}, beta={self.beta}"
        )


def _glorot(fan_in: int, fan_out: int, device: torch.device) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(fan_in, fan_out, device=device))


def _layer_maps(widths: Sequence[int], a: int, device: torch.device) -> nn.Parameter:
    """One map [d, a] a layer, stacked to [sum d, a] so that one product serves all layers."""
    return nn.Parameter(torch.cat([_glorot(width, a, device) for width in widths]))


def _block_means(means: Sequence[Tensor]) -> Tensor:
    """Means [d_t] of all layers, block-diagonal [T, sum d_t]: one product maps each of them."""
    return torch.block_diag(*[mean.to(torch.get_default_dtype())[None] for mean in means])


def _layer_scales(moments: Moments, widths: Sequence[int]) -> Tensor:
    """Standard deviation [T] of every layer: root of the mean variance of its features."""
    variances = [
        (second.double().diagonal() - mean.double().square()).mean().clamp_min(0.0)
        for second, mean in zip(moments.second, moments.mean.split(list(widths)), strict=True)
    ]
    scale = torch.stack(variances).sqrt()
    return torch.where(scale > 0, scale, 1.0).to(torch.get_default_dtype())


def _fixed_map(map: str | Tensor, num_teacher: int, num_student: int) -> Tensor:
    """The [T, S] map called ``map``, of total mass T."""
    if isinstance(map, Tensor):
        if list(map.shape) != [num_teacher, num_student]:
            raise ValueError(
                f"map must be [T={num_teacher}, S={num_student}], got {list(map.shape)}"
            )
        check_finite("map", map)
        if bool((map < 0).any()) or not bool(map.sum() > 0):
            raise ValueError("map must be >= 0 with a positive sum; negative pairs repel")
        return map.detach().to(torch.get_default_dtype()) * (num_teacher / map.sum().item())
    if map == "uniform":
        return torch.full((num_teacher, num_student), 1.0 / num_student)
    fixed = torch.zeros(num_teacher, num_student)
    if map == "last":
        fixed[-1, -1] = num_teacher
    else:
        rows = torch.arange(num_teacher)
        fixed[rows, rows * num_student // num_teacher] = 1.0
    return fixed
