"""Weights kept narrower than they are computed with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abkd_fast._checks import check_choice

WEIGHTS = ("bfloat16", "int8")


def pack(holder: nn.Module, model: nn.Module, weights: str | None) -> dict[str, str]:
    r"""Move the matrices among the weights of ``model`` to narrow buffers of ``holder``.

    bfloat16 rounds. int8 keeps, with one scale for every row of the stored matrix,

    .. math:: q = round(W / s), \quad s_i = \max_j |W_{ij}| / 127,

    and the program computes with s q. Vectors (biases, norms, attention) stay as they are.

    Args:
        holder: gets buffers ``packed_<n>`` and ``scale_<n>``.
        model: its packed parameters become empty.
        weights: None packs nothing.

    Returns:
        Name of the parameter -> suffix <n> of its buffers.
    """
    if weights is None:
        return {}
    check_choice("weights", weights, WEIGHTS)
    names = {}
    for number, (name, weight) in enumerate(list(model.named_parameters())):
        if weight.dim() != 2:
            continue
        path, _, leaf = name.rpartition(".")
        scale, packed = weight.new_ones(()), weight.detach().bfloat16()
        if weights == "int8":
            most = weight.detach().abs().amax(1, keepdim=True) / 127
            scale = torch.where(most > 0, most, 1.0)
            packed = (weight.detach() / scale).round().to(torch.int8)
        holder.register_buffer(f"packed_{number}", packed)
        holder.register_buffer(f"scale_{number}", scale)
        empty = nn.Parameter(weight.new_empty(0), requires_grad=False)
        setattr(model.get_submodule(path), leaf, empty)
        names[name] = str(number)
    return names


def unpack(holder: nn.Module, packed: dict[str, str]) -> dict[str, Tensor]:
    """The weights that :func:`pack` moved, in the dtype that they had."""
    found = {}
    for name, number in packed.items():
        scale = holder.get_buffer(f"scale_{number}")
        found[name] = holder.get_buffer(f"packed_{number}").to(scale.dtype) * scale
    return found
