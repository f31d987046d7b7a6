"""Column sums that a layer computed on the way, kept with the hidden state they belong to.

They are an attribute of the state: they live exactly as long, and stay differentiable. A state
that was changed in place since has lost them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attach_column_sums(state: Tensor, sums: Tensor) -> Tensor:
    """Return ``state`` [N, d], which from now on knows its column sums [d]."""
    # Attributes do not leave a compiled graph, and inference tensors count no versions.
    if torch.compiler.is_compiling() or state.is_inference():
        return state
    state.column_sums = (sums, state._version)  # type: ignore[attr-defined]
    return state


def column_means(state: Tensor) -> Tensor:
    """Mean over nodes [d], from the column sums where the layer left them; differentiable."""
    sums, version = getattr(state, "column_sums", (None, 0))
    if sums is None or state.size(0) == 0 or state._version != version:
        return state.mean(0)
    return (sums / state.size(0)).to(state.dtype)
