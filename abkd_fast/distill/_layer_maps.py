"""The maps between layers that ABKD starts from, and what it reads of the teacher's layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from abkd_fast._checks import check_finite
from abkd_fast.ops import Moments


def glorot(fan_in: int, fan_out: int, device: torch.device) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(fan_in, fan_out, device=device))


def layer_maps(widths: Sequence[int], a: int, device: torch.device) -> nn.Parameter:
    """One map [d, a] a layer, stacked to [sum d, a] so that one product serves all layers."""
    return nn.Parameter(torch.cat([glorot(width, a, device) for width in widths]))


def block_means(means: Sequence[Tensor]) -> Tensor:
    """Means [d_t] of all layers, block-diagonal [T, sum d_t]: one product maps each of them."""
    return torch.block_diag(*[mean.to(torch.get_default_dtype())[None] for mean in means])


def layer_scales(moments: Moments, widths: Sequence[int]) -> Tensor:
    """Standard deviation [T] of every layer: root of the mean variance of its features."""
    variances = [
        (second.double().diagonal() - mean.double().square()).mean().clamp_min(0.0)
        for second, mean in zip(moments.second, moments.mean.split(list(widths)), strict=True)
    ]
    scale = torch.stack(variances).sqrt()
    return torch.where(scale > 0, scale, 1.0).to(torch.get_default_dtype())


def fixed_map(map: str | Tensor, num_teacher: int, num_student: int) -> Tensor:
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
