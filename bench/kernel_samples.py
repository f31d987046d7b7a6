"""Arguments for every operator that has Triton kernels, on the meta device.

``compile_kernels.py`` launches them; nothing is computed. Sizes are those of ogbn-arxiv, with a
width of every block shape, and the options that give another kernel.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NODES, EDGES = 169_343, 2_315_598
WIDTHS = (4, 64, 256)
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
Sample = tuple[str, tuple[Any, ...]]  # what is special, arguments


def samples(op: str) -> Iterator[Sample]:
    """Argument lists of an operator, with a name each."""
    yield from SAMPLES[op]()


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


def _spmm() -> Iterator[Sample]:
    for name, x, value in features():
        yield f"sum, weighted, {name}", (*graph(), value, x, False)
    yield "mean, unweighted, float32, 64 wide", (*graph(), None, matrix(NODES, 64), True)
    wide = graph(torch.int64)
    yield "sum, int64 indices, float32, 64 wide", (*wide, None, matrix(NODES, 64), False)


def _sddmm() -> Iterator[Sample]:
    for name, x, _ in features():
        yield name, (*graph(), x, x)


def _spmm_extremum() -> Iterator[Sample]:
    for name, x, value in features():
        yield f"max, winners, {name}", (*graph(), value, x, True, True)
    yield "min, float32, 64 wide", (*graph(), None, matrix(NODES, 64), False, False)


def _spmm_extremum_dx() -> Iterator[Sample]:
    for name, x, value in features():
        arg = matrix(NODES, x.size(1), torch.int32)
        yield name, (*graph(), vector(EDGES, torch.int64), value, arg, x)


def _spmm_extremum_dvalue() -> Iterator[Sample]:
    for name, x, _ in features():
        yield name, (*graph(), x, matrix(NODES, x.size(1), torch.int32), x)


SAMPLES = {
    "spmm": _spmm,
    "sddmm": _sddmm,
    "spmm_extremum": _spmm_extremum,
    "spmm_extremum_dx": _spmm_extremum_dx,
    "spmm_extremum_dvalue": _spmm_extremum_dvalue,
}
