"""Block sizes of launches, by width and mean degree; tuned ones are read from a file."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class RowBlocks(NamedTuple):
    """Shape of a program over rows of edges."""

    rows: int
    edges: int  # of every row at a time: that many reads are under way
    features: int
    warps: int


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of an accumulation dtype."""
    return _DTYPES[dtype]


def row_blocks(op: str, x: Tensor, degree: float) -> RowBlocks:
    """Blocks for features x [*, F] of rows with ``degree`` edges on average.

    A program of one warp needs no barriers, and waits for no row but its own; 16 elements a thread
    keep four 16-byte reads in flight.
    """
    wide = x.element_size() == 8
    features = min(triton.next_power_of_2(max(x.size(1), 1)), 128 if wide else 256)
    edges = 2 if degree < 3 else 4 if degree < 24 else 8
    warps = 2 if features * x.element_size() > 512 else 1
    rows = min(max(warps * (256 if wide else 512) // (edges * features), 1), 16)
    return RowBlocks(rows, edges, features, warps)


class EdgeBlocks(NamedTuple):
    """Shape of a program over edges, whatever their rows."""

    edges: int
    features: int
    warps: int


def edge_blocks(x: Tensor) -> EdgeBlocks:
    """Blocks for dot products of features x [*, F] along edges."""
    features = min(triton.next_power_of_2(max(x.size(1), 1)), 64)
    edges = min(2048 // features, 128)
    return EdgeBlocks(edges, features, 4)
