"""Memory of results on the CPU, which the engine keeps and uses again.

A training step frees and asks for the same sizes over and over. Allocators hand large blocks back
to the system, so every step would write fresh pages, at the cost of a page fault each. The C++
kernels keep the blocks of their results instead, up to a quarter of the machine's memory.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from abkd_fast import _backend


def memory_reserved() -> int:
    """Bytes held by live results of our ops and by the blocks kept for the next ones."""
    extension = sys.modules.get("abkd_fast._C")
    return 0 if extension is None else int(extension.memory_reserved())


def empty_cache() -> None:
    """Give the kept blocks back to the system; live results stay."""
    extension = sys.modules.get("abkd_fast._C")
    if extension is not None:
        extension.empty_cache()


def empty_output(like: Tensor, *size: int) -> Tensor:
    """Uninitialised [*size] of the dtype and device of ``like``, in kept memory on the CPU."""
    return torch.ops.abkd_fast.empty_output(like, size)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``; in kept memory where no gradient is asked for."""
    if torch.is_grad_enabled() and values.requires_grad or torch.compiler.is_compiling():
        return values.index_select(0, index)
    return torch.index_select(values.detach(), 0, index, out=empty_output(values, index.numel()))


def transposed(x: Tensor) -> Tensor:
    """x^T of [m, n], contiguous, in kept memory; differentiable to any order."""
    return _Transposed.apply(x)


class _Transposed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.ops.abkd_fast.transposed(x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        return _Transposed.apply(dout)


def _transpose(x: Tensor) -> Tensor:
    return x.t().clone(memory_format=torch.contiguous_format)


def _like_size(like: Tensor, size: list[int]) -> Tensor:
    return like.new_empty(size)


_backend.register("empty_output", _like_size, _like_size)
_backend.register("transposed", _transpose, _transpose)
