"""Sizes and operands on the meta device that the kernels' samples share."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NODES, EDGES = 169_343, 2_315_598
WIDTHS = (4, 64, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
Sample = tuple[str, tuple[Any, ...]]  # what is special, arguments


def matrix(rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(rows, width, dtype=dtype, device="meta")


def vector(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def graph(index: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    return vector(NODES + 1, index), vector(EDGES, index)


def features() -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, x, edge weights)"""
    for dtype in DTYPES:
        weight = torch.float64 if dtype == torch.float64 else torch.float32
        for width in WIDTHS:
            name = f"{str(dtype)[6:]}, {width} wide"
            yield name, matrix(NODES, width, dtype), vector(EDGES, weight)


HOST_SEED = torch.tensor(7)


def layers() -> Iterator[tuple[str, torch.dtype, int, int]]:
    """(name, dtype, width, width of the result)"""
    for dtype in (torch.float32, torch.float64):
        for width, width_out in ((4, 4), (64, 64), (256, 256), (500, 16), (16, 500)):
            yield f"{str(dtype)[6:]}, {width} to {width_out} wide", dtype, width, width_out
