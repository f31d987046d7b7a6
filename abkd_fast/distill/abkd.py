"""Attention-based knowledge distillation (ABKD, arXiv 2310.15938)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from abkd_fast import ops
from abkd_fast._autocast import widened, without_autocast
from abkd_fast._checks import check_choice
from abkd_fast.capture import Capture
from abkd_fast.distill._layer_maps import (
    block_means,
    fixed_map,
    glorot,
    layer_maps,
    layer_scales,
)
from abkd_fast.distill._rows import check_size, check_temperature, check_widths, student_layers
from abkd_fast.distill._unit_rows import unit_rows_distance
from abkd_fast.distill.objective import Objective
from abkd_fast.distill.running_means import RunningMeans
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
            nodes, say); None = all. Queries and keys keep the means over all nodes. A mini-batch
            weighs as many nodes as count in it.
        freeze_teacher_map: keep W_i and P of the teacher side fixed at random, so that D cannot
            be lowered by shrinking them; the student side gets its own P.
        beta: weight.
        temperature: divides the scores under the softmax of the map.
        heads: maps with queries and keys of their own, ``attention_dim`` wide; A is their mean.
        shared_maps: one query (key, embedding) for all layers of equal width on a side, instead of
            one a layer.
        identity_subspace: P = I, so that M_i = W_i and r = a.
    """

    node_mean = True
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
        temperature: float = 1.0,
        heads: int = 1,
        shared_maps: bool = False,
        identity_subspace: bool = False,
    ) -> None:
        super().__init__()
        check_choice("softmax_over", softmax_over, ("student", "teacher"))
        check_choice("normalize", normalize, ("none", "standardize", "rows"))
        if isinstance(map, str):
            check_choice("map", map, MAPS)
        if not torch.isfinite(torch.tensor(float(beta))):
            raise ValueError(f"beta must be finite, got {beta}")
        check_temperature("temperature", temperature)
        subspace_dim = attention_dim if subspace_dim is None else subspace_dim
        sizes = {"attention_dim": attention_dim, "subspace_dim": subspace_dim, "heads": heads}
        for name, value in sizes.items():
            check_size(name, value)
        if identity_subspace and subspace_dim != attention_dim:
            raise ValueError(
                f"subspace_dim must be attention_dim={attention_dim} with identity_subspace, got "
                f"{subspace_dim}; leave it out"
            )
        self.attention_dim, self.subspace_dim = attention_dim, subspace_dim
        self.temperature, self.heads = temperature, heads
        self.shared_maps, self.identity_subspace = shared_maps, identity_subspace
        self.map, self.softmax_over, self.pool = map, softmax_over, pool
        self.normalize, self.freeze_teacher_map, self.beta = normalize, freeze_teacher_map, beta
        self.register_buffer("mask", mask, persistent=False)

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Draw the maps (Glorot-uniform per layer) and keep the teacher's constants."""
        del graph
        self.teacher_widths = list(teacher.widths)
        self.student_widths = student_layers("ABKD", list(student_widths))
        a, device = self.attention_dim, teacher.device
        is_attention = isinstance(self.map, str) and self.map == "attention"
        if is_attention:
            self.query = self._maps_of(self.teacher_widths, self.heads * a, device)
            self.key = self._maps_of(self.student_widths, self.heads * a, device)
            self.running_means = RunningMeans(self.student_widths, device)
        else:
            fixed = fixed_map(self.map, len(self.teacher_widths), len(self.student_widths))
            self.register_buffer("fixed_map", fixed.to(device))
        self.teacher_embedding = self._maps_of(self.teacher_widths, a, device)
        self.student_embedding = self._maps_of(self.student_widths, a, device)
        if self.freeze_teacher_map:
            self.teacher_embedding.requires_grad_(False)
        if not self.identity_subspace:
            self.subspace = nn.Parameter(glorot(a, self.subspace_dim, device))
            if self.freeze_teacher_map:
                self.register_buffer("teacher_subspace", glorot(a, self.subspace_dim, device))
        self.register_buffer("teacher_means", block_means(teacher.means), persistent=False)
        self.masked_moments, counted = None, None
        if self.mask is not None:
            self.mask = self.mask.to(device)
            counted = self.mask.nonzero().flatten()
            self.masked_moments = teacher.moments_of(self.mask)
            self.mask_share = float(self.mask.double().mean())
        self.register_buffer("counted", counted, persistent=False)
        scale = None
        if self.normalize == "standardize":
            widths = torch.tensor(self.teacher_widths, device=device)
            layers = layer_scales(self.masked_moments or teacher.whole_moments, teacher.widths)
            scale = layers.repeat_interleave(widths)[:, None]
        self.register_buffer("teacher_scale", scale, persistent=False)

    def attention_map(self, student: Capture, share: float = 1.0) -> Tensor:
        """A [T, S] of total mass T; differentiable in the queries, keys and student means.

        ``share`` of the nodes are in ``student``; from fewer than all, means over all nodes are
        estimated (:class:`RunningMeans`).
        """
        if not isinstance(self.map, str) or self.map != "attention":
            return self.fixed_map
        num_teacher, num_student = len(self.teacher_widths), len(self.student_widths)
        means = student.means if share == 1.0 else self.running_means(student.means, share)
        means = torch.block_diag(*[mean[None] for mean in means])
        query, key = self._every(self.query, self.teacher_widths), self.key
        queries = ops.linear(self.teacher_means, query.t()).split(self.attention_dim, dim=1)
        keys = (means @ self._every(key, self.student_widths)).split(self.attention_dim, dim=1)
        scale = self.attention_dim**0.5 * self.temperature
        scores = [ops.linear(q, k) / scale for q, k in zip(queries, keys, strict=True)]
        dim = 1 if self.softmax_over == "student" else 0
        attention = scores[0].softmax(dim)
        if self.heads > 1:
            attention = torch.stack([head.softmax(dim) for head in scores]).mean(0)
        return attention if dim == 1 else attention * (num_teacher / num_student)

    def maps(self) -> tuple[list[Tensor], list[Tensor]]:
        """M_i = W_i P / scale_i, each [d_i, r], and N_j = V_j P, each [d_j, r]."""
        teacher_map, student_map = self._stacked_maps()
        return (
            list(teacher_map.split(self.teacher_widths)),
            list(student_map.split(self.student_widths)),
        )

    def _stacked_maps(self) -> tuple[Tensor, Tensor]:
        """M [sum d_i, r] and N [sum d_j, r]."""
        teacher_map = self._every(self.teacher_embedding, self.teacher_widths)
        student_map = self._every(self.student_embedding, self.student_widths)
        if not self.identity_subspace:
            subspace = transposed(self.subspace)  # once: its two gradients then add up in place
            frozen = self.freeze_teacher_map
            teacher_subspace = transposed(self.teacher_subspace) if frozen else subspace
            teacher_map = ops.linear(teacher_map, teacher_subspace)
            student_map = ops.linear(student_map, subspace)
        if self.teacher_scale is not None:
            product = not self.identity_subspace  # and no parameter, which must stay as it is
            divide = teacher_map.div_ if product else teacher_map.div
            teacher_map = divide(self.teacher_scale)
        return teacher_map, student_map

    def _maps_of(self, widths: list[int], wide: int, device: torch.device) -> nn.Parameter:
        """Maps [d, wide] of every layer, or of every width, stacked."""
        kept = list(dict.fromkeys(widths)) if self.shared_maps else widths
        return layer_maps(kept, wide, device)

    def _every(self, stacked: Tensor, widths: list[int]) -> Tensor:
        """Stacked maps of every layer, [sum of widths, wide]."""
        if not self.shared_maps:
            return stacked
        kept = list(dict.fromkeys(widths))
        maps = dict(zip(kept, stacked.split(kept), strict=True))
        return torch.cat([maps[width] for width in widths])

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """beta * S * mean(A * D); leaves ``.attention`` and ``.dissimilarity`` [T, S]."""
        check_widths(student, self.student_widths)
        share = student.share
        if share is None:
            share = 1.0 if nodes is None else nodes.numel() / teacher.num_nodes
        attention = self.attention_map(student, share)
        counted = self._counted(nodes)
        weight = self.batch_weight = self._weight(nodes, counted)
        if weight == 0.0:  # no row at hand counts
            # The map takes part all the same: its means may wait for other processes.
            sums = [attention.sum(), *(widened(state).sum() for state in student.states)]
            mean, former = 0.0 * torch.stack(sums).sum(), self.dissimilarity
            dissimilarity = torch.full_like(attention, torch.nan) if former is None else former
        else:
            mean, dissimilarity = self._compare(student, teacher, attention, nodes, counted)
        self.attention, self.dissimilarity = attention.detach(), dissimilarity.detach()
        loss = weight * len(self.student_widths) * mean
        self.scalars = {"abkd": loss.detach()}
        return self.beta * loss

    def _compare(
        self,
        student: Capture,
        teacher: TeacherCache,
        attention: Tensor,
        nodes: Tensor | None,
        counted: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(mean(A * D), D) over the rows at hand that count, None = all."""
        moments = self.masked_moments or teacher.moments
        centre = self.masked_moments or teacher.whole_moments
        rows = teacher.states if nodes is None else teacher.rows(nodes)
        if self.pool:
            means = student.means
            if counted is not None:
                means = [widened(state[counted]).mean(0) for state in student.states]
            return self._pooled(centre, means, attention, *self.maps())
        states = [widened(state) for state in student.states]
        if self.normalize == "rows":
            return unit_rows_distance(
                rows, teacher.widths, states, counted, attention, *self._stacked_maps()
            )
        return layer_pair(
            rows,
            teacher.widths,
            states,
            attention,
            *self._stacked_maps(),
            moments=moments if nodes is None else None,
            shift=centre.mean if self.normalize == "standardize" else None,
            mask=counted,
        )

    def _weight(self, nodes: Tensor | None, counted: Tensor | None) -> float:
        """What a batch counts, so that the batches of an epoch together are all its nodes."""
        if counted is None or nodes is None:
            return 1.0
        return counted.numel() / nodes.numel() / self.mask_share

    def set_epoch(self, nodes: Tensor | slice) -> None:
        """Which share of an epoch's nodes counts; ValueError if none does."""
        if self.mask is not None:
            self.mask_share = float(self.mask[nodes].double().mean())
            if self.mask_share == 0.0:
                raise ValueError("mask must let nodes of the epoch's batches count, got none")

    def _counted(self, nodes: Tensor | None) -> Tensor | None:
        """Rows at hand that the mask lets count; None = all.

        Indices, where they are known: the host waits to count a mask.
        """
        if self.mask is not None and nodes is not None:
            return self.mask[nodes].nonzero().flatten()
        return self.counted

    def _pooled(
        self,
        moments: Moments,
        means: Sequence[Tensor],
        attention: Tensor,
        teacher_maps: list[Tensor],
        student_maps: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """D_ij = |p_i - s_j|^2 / r of the projected mean states."""
        teacher_means = block_means(moments.mean.split(self.teacher_widths))
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
            f"{self._more()}"
        )

    def _more(self) -> str:
        """Settings that runs of former versions do not name, where they are not the defaults."""
        usual = {"temperature": 1.0, "heads": 1, "shared_maps": False, "identity_subspace": False}
        found = {name: getattr(self, name) for name in usual}
        return "".join(f", {k}={v}" for k, v in found.items() if v != usual[k])
