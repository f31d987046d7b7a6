"""The fused layer as a chain of torch operations around whatever reads the graph.

One piece of code for the back ends that have no fused kernel: the reference and CUDA C++ differ in
how they gather rows along edges and how they draw a dropout mask.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Mask = tuple[float, Tensor | None, int, int]  # p, seed, layer, step
Dropout = Callable[[Tensor, float, Tensor, int, int], Tensor]
_UNMASKED: Mask = (0.0, None, 0, 0)


def gradients(
    gather: Callable[[Tensor, float, Mask], Tensor],
    dropout: Dropout,
    dout: Tensor,
    dsums: Tensor | None,
    out: Tensor | None,
    features: Tensor | None,
    weight: Tensor | None,
    alpha: float,
    beta: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
    aggregate_first: bool,
    want_x: bool,
    want_weight: bool,
    want_x_0: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dx_0); [0] where a gradient is not wanted.

    ``gather`` takes (x, scale, mask) to drop(scale * A^T x), where p = 0 drops nothing; ``dropout``
    takes (x, p, seed, layer, step) to drop(x). What follows them are the arguments of the operator
    ``conv_backward`` behind the transposed graph.
    """
    mask = _UNMASKED if seed is None else (p, seed, layer, step)
    dx, dweight, dx_0 = (dout.new_empty(0) for _ in range(3))
    dz = dout if dsums is None else dout + dsums.to(dout.dtype)
    dz = dz if out is None else dz.masked_fill(out <= 0, 0)
    weight_t = None if weight is None else weight.t()
    if aggregate_first:
        ds = transform(dz, weight_t, beta)
        if want_weight:
            assert features is not None
            dweight = beta * (features.t() @ dz)
        dx = gather(ds, 1 - alpha, mask) if want_x else dx
        dx_0 = alpha * ds if want_x_0 else dx_0
    elif want_x or want_weight:
        gathered = gather(dz, 1.0, _UNMASKED)
        if want_weight:
            assert features is not None
            dweight = beta * (drop(dropout, features, mask).t() @ gathered)
        dx = drop(dropout, transform(gathered, weight_t, beta), mask) if want_x else dx
    return dx, dweight, dz.sum(0), dx_0


def transform(x: Tensor, weight: Tensor | None, beta: float) -> Tensor:
    """x ((1 - beta) I + beta W), or x without a weight."""
    if weight is None:
        return x
    return x @ weight if beta == 1 else torch.addmm(x, x, weight, beta=1 - beta, alpha=beta)


def drop(dropout: Dropout, x: Tensor, mask: Mask) -> Tensor:
    """The dropped x, or x where nothing is dropped."""
    p, seed, layer, step = mask
    return x if seed is None or p == 0.0 else dropout(x, p, seed, layer, step)
