"""Column sums that a layer computed on the way, kept with the hidden state they belong to.

They are an attribute of the state: they live exactly as long, and stay differentiable. A state
that was changed in place since has lost them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast._checks import accumulation_dtype
from abkd_fast.memory import empty_output


def attach_column_sums(state: Tensor, sums: Tensor) -> Tensor:
    """Return ``state`` [N, d], which from now on knows its column sums [d]."""
    # Attributes do not leave a compiled graph, and inference tensors count no versions.
    if torch.compiler.is_compiling() or state.is_inference():
        return state
    state.column_sums = (sums, state._version)  # type: ignore[attr-defined]
    return state


class _ColumnMeans(Function):
    """Mean over nodes, whose gradient lies in kept memory."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        ctx.shape = state.shape
        return state.mean(0, dtype=accumulation_dtype(state))

    @staticmethod
    def backward(ctx: Any, dmeans: Tensor) -> Tensor:
        dstate = (dmeans / max(ctx.shape[0], 1)).expand(ctx.shape)
        if torch.is_grad_enabled():
            return dstate
        return empty_output(dmeans, *ctx.shape).copy_(dstate)


def column_means(state: Tensor) -> Tensor:
    """Mean over nodes [d], from the column sums where the layer left them; differentiable.

    In float32 for 16-bit states.
    """
    sums, version = getattr(state, "column_sums", (None, 0))
    if sums is None or state.size(0) == 0 or state._version != version:
        if torch.compiler.is_compiling():
            return state.mean(0, dtype=accumulation_dtype(state))
        return _ColumnMeans.apply(state)
    return sums / state.size(0)
