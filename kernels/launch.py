"""Block sizes of launches, by width and mean degree, and what to try beside them (tuning.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of a thread. Unasked, ptxas spills a few registers to fit another block on a multiprocessor.
MOST_REGISTERS = 255
_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class RowBlocks(NamedTuple):
    """Shape of a program over rows of edges, and which rows are split."""

    rows: int
    edges: int  # of every row at a time: that many reads are under way
    features: int
    warps: int
    chunk: int  # edges above which a row is split into as many each; 0: no row is


def tl_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of an accumulation dtype."""
    return _DTYPES[dtype]


def row_blocks(x: Tensor, degree: float, chunk: int) -> RowBlocks:
    """Blocks for features x [*, F] of rows with ``degree`` edges on average.

    A program of one warp needs no barriers, and waits for no row but its own; 16 elements a thread
    keep four 16-byte reads in flight.
    """
    wide = x.element_size() == 8
    features = min(triton.next_power_of_2(max(x.size(1), 1)), 128 if wide else 256)
    edges = 2 if degree < 3 else 4 if degree < 24 else 8
    warps = 2 if features * x.element_size() > 512 else 1
    rows = min(max(warps * (256 if wide else 512) // (edges * features), 1), 16)
    return RowBlocks(rows, edges, features, warps, chunk)


def row_candidates(default: RowBlocks) -> list[RowBlocks]:
    """Other blocks worth timing: more or fewer rows and edges at a time, warps and hubs."""
    split = [default._replace(chunk=chunk) for chunk in (256, 512, 1024, 2048) if default.chunk]
    return split + [
        default._replace(
            rows=max(warps * 512 // (edges * default.features), 1), edges=edges, warps=warps
        )
        for warps in (1, 2, 4)
        for edges in (2, 4, 8, 16)
    ]


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


class LayerBlocks(NamedTuple):
    """Shape of a program over rows of a layer's result."""

    rows: int
    edges: int
    features: int  # of the product at a time
    columns: int
    warps: int
    stages: int


def layer_blocks(
    x: Tensor, width: int, width_out: int, transforms: bool, aggregates: bool
) -> LayerBlocks:
    """Blocks for x [*, width] to [*, width_out]; tensor cores want 16 of everything or more."""
    wide = x.element_size() == 8
    columns = min(max(triton.next_power_of_2(max(width_out, 1)), 16), 64 if wide else 128)
    features = min(max(triton.next_power_of_2(max(width, 1)), 16), 16 if wide else 32)
    if aggregates:
        features = features if transforms else columns
        edges = max(min((1024 if wide else 2048) // (16 * features), 4), 1)
        return LayerBlocks(16, edges, features, columns, 4, 1)
    return LayerBlocks(32, 1, features if transforms else columns, columns, 4, 2)


def layer_candidates(default: LayerBlocks) -> list[LayerBlocks]:
    """Other blocks worth timing for a layer that aggregates."""
    return [
        default._replace(rows=rows, edges=edges, warps=warps)
        for rows, warps in ((16, 2), (16, 4), (32, 4), (32, 8))
        for edges in (1, 2, 4)
    ]


def transform_candidates(default: LayerBlocks) -> list[LayerBlocks]:
    """Other blocks worth timing for a layer that only multiplies."""
    return [
        default._replace(rows=rows, warps=warps, stages=stages)
        for rows, warps in ((16, 4), (32, 4), (64, 4), (64, 8), (128, 8))
        for stages in (2, 3)
    ]


def gradient_blocks(x: Tensor) -> LayerBlocks:
    """Blocks for element-wise work on x [*, width] with column sums."""
    columns = min(triton.next_power_of_2(max(x.size(1), 1)), 128)
    return LayerBlocks(max(1024 // columns, 8), 1, 1, columns, 4, 1)


def weight_blocks(x: Tensor, width: int, width_out: int) -> LayerBlocks:
    """Blocks for products [width, width_out] over the rows of x."""
    most = 32 if x.element_size() == 8 else 64
    features, columns = (
        min(max(triton.next_power_of_2(size), 16), most) for size in (width, width_out)
    )
    return LayerBlocks(most // 2, 1, features, columns, 4, 2)


class ScoreBlocks(NamedTuple):
    """Shape of a program over rows of class scores, and the most programs that add up losses."""

    rows: int
    classes: int  # at a time
    warps: int
    programs: int


def score_blocks(logits: Tensor) -> ScoreBlocks:
    """Blocks for scores [*, C]: few to a thread, since rows of odd lengths take registers."""
    elements = 256 if logits.element_size() == 8 else 512
    classes = min(triton.next_power_of_2(logits.size(1)), elements)
    return ScoreBlocks(min(elements // classes, 128), classes, 4, 1024)


class AttentionBlocks(NamedTuple):
    """Shape of a program over rows of edges of one head."""

    rows: int
    edges: int  # of every row at a time
    features: int
    warps: int


def attention_blocks(x: Tensor) -> AttentionBlocks:
    """Blocks for heads x [*, H, C]: few rows, since addresses and numbers of edges take registers.

    At most 8 elements a thread, of which up to five tiles are held.
    """
    wide = x.element_size() == 8
    features = min(triton.next_power_of_2(max(x.size(2), 1)), 128 if wide else 256)
    warps = 4 if features > 128 else 2 if features > 64 else 1
    edges = 4
    rows = min(max(warps * (64 if wide else 128) // (edges * features), 1), 8)
    return AttentionBlocks(rows, edges, features, warps)
