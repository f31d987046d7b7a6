"""Dropout whose mask is a function of a seed and never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast import _seeds
from abkd_fast._backend import register
from abkd_fast._checks import FLOATS, check_tensor
from abkd_fast.reference.dropout import op_dropout


def dropout(x: Tensor, p: float, seed: int | Tensor, layer: int = 0, step: int = 0) -> Tensor:
    r"""Inverted dropout: x_e / (1 - p) with probability 1 - p, else 0.

    Element e (row-major) is dropped where word ``e % 4`` of Philox4x32-10 is below
    :math:`\lfloor 2^{32} p \rfloor`; the counter is (e / 4 low, e / 4 high, layer, step), in words
    of 32 bits, the key the 64 bits of the seed. The same arguments drop the same elements on
    every back end, instruction set and number of threads, and the backward draws the mask again
    instead of storing it. Differentiable to any order. (Salmon, Moraes, Dror, Shaw: Parallel
    random numbers: as easy as 1, 2, 3; SC 2011.)

    Args:
        x: float16/bfloat16/float32/float64, any shape and strides.
        p: probability of an element to be dropped, in [0, 1); 0 returns x.
        seed: key, in [0, 2^63), or an int64 tensor with one element (see :func:`draw_seed`).
        layer: number of the place in a model, in [0, 2^32): places that share a seed drop
            different elements.
        step: number of a training step, in [0, 2^32).

    Returns:
        Shape and dtype of x.

    Raises:
        ValueError: an argument is out of range.
    """
    check_tensor("x", x, dtypes=FLOATS)
    check_dropout(p, layer, step)
    if p == 0.0:
        return x
    return _Dropout.apply(x, p, seed_tensor(seed), layer, step)


def draw_seed() -> Tensor:
    """A seed [] int64 from torch's default CPU generator, which checkpoints keep.

    Within :func:`abkd_fast._seeds.drawing_from`, the next seed of that buffer.
    """
    buffer = _seeds.current()
    return torch.ops.abkd_fast.draw_seed() if buffer is None else buffer.take()


def seed_tensor(seed: int | Tensor) -> Tensor:
    """The seed as an int64 tensor with one element."""
    if isinstance(seed, Tensor):
        check_tensor("seed", seed, dtypes=(torch.int64,))
        if seed.numel() != 1:
            raise ValueError(f"seed must hold one element, got shape {list(seed.shape)}")
        return seed
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return torch.full((), seed, dtype=torch.int64)


def check_dropout(p: float, layer: int, step: int) -> None:
    """Raise ValueError unless all are in range."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p must be in [0, 1), got {p}")
    for name, value in (("layer", layer), ("step", step)):
        if not 0 <= value < 2**32:
            raise ValueError(f"{name} must be in [0, 2^32), got {value}")


class _Dropout(Function):
    """Its gradient is the same dropout of dout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: Tensor, layer: int, step: int) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.constants = (p, layer, step)
        return torch.ops.abkd_fast.dropout(x, p, seed, layer, step)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        p, layer, step = ctx.constants
        return _Dropout.apply(dout, p, seed, layer, step), None, None, None, None


def _like_x(x: Tensor, p: float, seed: Tensor, layer: int, step: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


register("dropout", op_dropout, _like_x)
