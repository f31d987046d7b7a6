"""Memory of results on the CPU, which the engine keeps and uses again.

A training step frees and asks for the same sizes over and over. Allocators hand large blocks back
to the system, so every step would write fresh pages, at the cost of a page fault each. The C++
kernels keep the blocks of their results instead, up to a quarter of the machine's memory: beyond,
the block that was unused longest goes back to the system.
"""

from __future__ import annotations

import ctypes
import mmap
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


def use_huge_pages(x: Tensor) -> bool:
    """Move ``x``'s memory, in place, to pages of 2 MB, as those of our results are.

    Neighbours' rows lie anywhere in a large x, so that with pages of 4 KB nearly every row costs a
    walk through the page tables too. The move takes about the time of a few passes over x; address
    and values stay.

    Args:
        x: dense tensor on the CPU, features say, to be read many times.

    Returns:
        Whether it was done: on Linux 6.1 or newer (MADV_COLLAPSE), for 2 MB or more, where the
        system finds whole pages and x is no mapped file.
    """
    size = 1 << 21
    first = -(-x.data_ptr() // size) * size
    end = x.data_ptr() + x.untyped_storage().nbytes() - x.storage_offset() * x.element_size()
    length = end // size * size - first
    if x.device.type != "cpu" or length <= 0 or not sys.platform.startswith("linux"):
        return False
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    collapse = 25  # MADV_COLLAPSE, which the module mmap does not name
    return all(advise(first, length, advice) == 0 for advice in (mmap.MADV_HUGEPAGE, collapse))


def empty_output(like: Tensor, *size: int) -> Tensor:
    """Uninitialised [*size] of the dtype and device of ``like``, in kept memory on the CPU."""
    return torch.ops.abkd_fast.empty_output(like, size)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]`` of [n] and int64 [m]; in kept memory where no gradient is asked for."""
    if torch.is_grad_enabled() and values.requires_grad:
        return values.index_select(0, index)
    return torch.ops.abkd_fast.pick(values.detach(), index)


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


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index)


def _like_index(values: Tensor, index: Tensor) -> Tensor:
    return values.new_empty(index.size(0))


_backend.register("empty_output", _like_size, _like_size)
_backend.register("transposed", _transpose, _transpose)
_backend.register("pick", _pick, _like_index)
