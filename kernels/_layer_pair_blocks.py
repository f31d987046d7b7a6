"""Shared by the kernels of layer_pair: products on tensor cores, rows of nodes, reductions.

Precision. Products are as exact as in float32: a float32 (or float16, widened) teacher is
multiplied by three TensorFloat-32 products ("tf32x3"), a bfloat16 teacher natively by the other
factor split into three bfloat16 numbers, whose 24 bits hold a float32; float64 stays float64.
Tensor cores truncate when they accumulate, so a product never runs on from an earlier one: its
result is *subtracted* from a total in registers (a sum would be folded into the accumulator), and
the total negated at the end. Totals of at most MAX_CHUNK_ROWS rows are in the compute dtype; from
there on in float64.

Two-stage sums. A program owns a chunk of rows and writes one row of ``parts``; ``reduce_parts``
adds these rows in order. The chunks depend on shapes only: no atomics, same bits every time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_CHUNK_ROWS = 1024
_PROGRAMS = 512  # of a launch, where the rows suffice: a few per multiprocessor
_SCRATCH = 2**25  # elements of a scratch buffer; more rows take several passes
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(x, dtype: tl.constexpr):
    """Convert x to dtype; by way of float32 from bfloat16, which the interpreter asks for."""
    if x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x.to(dtype)


@triton.jit
def product(t, x):
    """Return t @ x in dtype of x: [M, K] bf16/f16/f32/f64 times [K, N] f32/f64; see the module."""
    if t.dtype == tl.bfloat16 and x.dtype == tl.float32:
        high = x.to(tl.bfloat16)
        rest = x - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        if _INTERPRETED:  # multiplies the bits of bfloat16 numbers
            t, low = t.to(tl.float32), low.to(tl.float32)
            middle, high = middle.to(tl.float32), high.to(tl.float32)
        out = tl.dot(t, low)
        out = tl.dot(t, middle, out)
        return tl.dot(t, high, out)
    elif x.dtype == tl.float64:
        return tl.dot(widen(t, tl.float64), x, out_dtype=tl.float64)
    else:
        return tl.dot(t.to(tl.float32), x, input_precision="tf32x3")


@triton.jit
def find_nodes(nodes, rows, mask):
    """Node of each row that counts: nodes[rows], or the rows themselves; int64."""
    if nodes is None:
        return rows
    else:
        return tl.load(nodes + rows, mask=mask, other=0)


@triton.jit
def load_weight(weight, rows, mask, dtype: tl.constexpr):
    """Weight of each row, 1 where none is given, 0 beyond the last row."""
    if weight is None:
        return mask.to(dtype)
    else:
        return tl.load(weight + rows, mask=mask, other=0.0)


@triton.jit
def load_states(states, width, centre, node, mask, columns, end):
    """h - centre at nodes [B] and columns [C'] below end; 0 beyond; states are [N, width]."""
    at = mask[:, None] & (columns < end)[None, :]
    h = tl.load(states + node[:, None] * width + columns[None, :], mask=at, other=0.0)
    middle = tl.load(centre + columns, mask=columns < end, other=0.0)
    return tl.where(at, h - middle[None, :], 0.0)


@triton.jit
def _reduce_kernel(parts, out, count, size, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out[c] = sum over rows of parts[row, c] in float64; one program owns BLOCK columns."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK_ROWS, BLOCK], tl.float64)
    for first in range(0, count, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        mask = (rows < count)[:, None] & (columns < size)[None, :]
        at = parts + rows[:, None] * size + columns[None, :]
        total += tl.load(at, mask=mask, other=0.0).to(tl.float64)
    tl.store(out + columns, tl.sum(total, 0), mask=columns < size)


def launch(kernel: Any, programs: int, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Run ``programs`` programs of a kernel."""
    if programs:
        kernel[(programs,)](**arguments, **options)


def capability(device: torch.device) -> int:
    """Major compute capability that block sizes are chosen for; without a GPU, the least."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 8


def reduce_parts(parts: Tensor) -> Tensor:
    """Sum of the rows of [count, size], in order, as [size] float64."""
    count, size = parts.shape
    out = parts.new_empty(size, dtype=torch.float64)
    arguments = {"parts": parts, "out": out, "count": count, "size": size}
    blocks = {"BLOCK_ROWS": 8, "BLOCK": 128, "num_warps": 4}
    launch(_reduce_kernel, triton.cdiv(size, 128), arguments, blocks)
    return out


@lru_cache(maxsize=64)
def layer_table(widths: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    """Tiles of at most ``block`` columns of every layer: (layer, first column, its end, leads).

    ``leads`` is 1 for the first tile of a layer. Kept, because a copy to the device from
    pageable memory makes the host wait and cannot be captured in a CUDA graph.
    """
    tiles, start = [], 0
    for layer, width in enumerate(widths):
        for column in range(0, width, block):
            tiles.append((layer, start, start + width, start + column))
        start += width
    return torch.tensor(tiles, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def column_layers(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """Layer of every column, [sum widths] int64; kept, as :func:`layer_table`."""
    layers = [layer for layer, width in enumerate(widths) for _ in range(width)]
    return torch.tensor(layers, dtype=torch.int64, device=device)


def alignment(widths: Sequence[int]) -> int:
    """Largest power of two, at most 16, that divides the first column of every layer."""
    return math.gcd(16, *widths)


@dataclass
class NodeRows:
    """Arguments that all kernels share; ``num_rows`` is the number of nodes that count."""

    teacher: Tensor  # [N, D], any strides
    states: Tensor  # [N, C] contiguous, all student layers side by side
    student_widths: tuple[int, ...]
    centre: Tensor  # [C]
    nodes: Tensor | None
    weight: Tensor | None
    num_rows: int

    @classmethod
    def of(
        cls,
        teacher: Tensor,
        states: Sequence[Tensor],
        nodes: Tensor | None,
        weight: Tensor | None,
        centre: Tensor,
    ) -> NodeRows:
        """Bring the states together: they are narrow beside the teacher, which is not copied."""
        joined = states[0].contiguous() if len(states) == 1 else torch.cat(list(states), 1)
        return cls(
            teacher,
            joined,
            tuple(state.size(1) for state in states),
            centre.contiguous(),
            None if nodes is None else nodes.contiguous(),
            None if weight is None else weight.contiguous(),
            teacher.size(0) if nodes is None else nodes.numel(),
        )

    def chunk_rows(self, tiles: int, block: int) -> int:
        """Rows of a chunk: a multiple of ``block`` that gives ``tiles`` tiles enough programs."""
        rows = triton.cdiv(self.num_rows * tiles, _PROGRAMS)
        return min(max(triton.cdiv(rows, block) * block, block), MAX_CHUNK_ROWS)

    def pass_rows(self, row_elements: int, chunk_rows: int) -> int:
        """Rows of a pass whose scratch buffer holds ``row_elements`` a row: a number of chunks."""
        chunks = max(_SCRATCH // (row_elements * chunk_rows), 1)
        return min(chunks, max(triton.cdiv(self.num_rows, chunk_rows), 1)) * chunk_rows

    def gradient(self, wanted: bool) -> Tensor:
        """[N, C], zeros where not every node counts, or [0, C]."""
        if not wanted:
            return self.states.new_empty(0, self.states.size(1))
        return (
            torch.empty_like(self.states)
            if self.nodes is None
            else self.states.new_zeros(self.states.shape)
        )
