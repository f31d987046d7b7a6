"""Dropout from Philox4x32-10: word e % 4 of counter e / 4 decides on element e."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.launch import tl_dtype


class Mask:
    """What kernels are told of a mask: they take ``mask.arguments`` and read them by load_mask."""

    def __init__(self, p: float, seed: Tensor, layer: int, step: int, device: torch.device) -> None:
        # A seed on the host is an argument, and is not waited for; one on the device stays there.
        key = seed if seed.device == device else int(seed)
        self.arguments = (key, layer, step, int(p * 2.0**32), float_bits(1.0 / (1.0 - p)))


def float_bits(number: float) -> int:
    """The 64 bits of a number: Triton takes floats as float32."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


@triton.jit
def from_bits(bits, ACC: tl.constexpr):
    """The number of :func:`float_bits`, rounded to ACC."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def load_seed(seed):
    """The seed, given as a number or as a pointer to one."""
    if seed.dtype.is_ptr():
        return tl.load(seed)
    else:
        return seed.to(tl.int64)


@triton.jit
def _words(counter, seed, layer, step):
    counter = counter.to(tl.int64)
    return tl.philox(
        seed,
        (counter & 0xFFFFFFFF).to(tl.uint32),
        (counter >> 32).to(tl.uint32),
        layer.to(tl.uint32),
        step.to(tl.uint32),
    )


@triton.jit
def keeps_quads(counter, seed, layer, step, threshold):
    """Whether the elements of counters are kept: [..., C] -> [..., C, 2, 2], in their order."""
    c0, c1, c2, c3 = _words(counter, seed, layer, step)
    return tl.join(tl.join(c0, c2), tl.join(c1, c3)) >= threshold.to(tl.uint32)


@triton.jit
def keeps(element, seed, layer, step, threshold):
    """Whether elements of any shape and order are kept; draws four words for each."""
    c0, c1, c2, c3 = _words(element >> 2, seed, layer, step)
    even = tl.where(element & 2 == 0, c0, c2)
    odd = tl.where(element & 2 == 0, c1, c3)
    return tl.where(element & 1 == 0, even, odd) >= threshold.to(tl.uint32)


@triton.jit(do_not_specialize=["seed", "layer", "step", "threshold", "scale"])
def dropout_kernel(
    x_ptr, out_ptr, count, seed, layer, step, threshold, scale,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns 4 * BLOCK elements: out = scale * x where kept, else 0."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    counter = first + tl.arange(0, BLOCK)
    kept = keeps_quads(counter, load_seed(seed), layer, step, threshold)
    kept = tl.reshape(kept, [4 * BLOCK])
    element = 4 * first + tl.arange(0, 4 * BLOCK)
    x = tl.load(x_ptr + element, mask=element < count, other=0).to(ACC)
    out = tl.where(kept, x * from_bits(scale, ACC), 0)
    tl.store(out_ptr + element, out, mask=element < count)


def dropout(x: Tensor, p: float, seed: Tensor, layer: int, step: int) -> Tensor:
    """x / (1 - p) where the element's random word is at least p 2^32, else 0."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    block = 256
    mask = Mask(p, seed, layer, step, x.device)
    dropout_kernel[(triton.cdiv(x.numel(), 4 * block),)](
        x, out, x.numel(), *mask.arguments,
        ACC=tl_dtype(accumulation_dtype(x)), BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out
