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


def _dropout() -> Iterator[Sample]:
    for name, x, _ in features():
        yield f"seed on the host, {name}", (x, 0.5, torch.tensor(7), 1, 2)
    seed = vector(1, torch.int64)
    yield "seed on the device, float32, 64 wide", (matrix(NODES, 64), 0.5, seed, 1, 2)


HOST_SEED = torch.tensor(7)


def layers() -> Iterator[tuple[str, torch.dtype, int, int]]:
    """(name, dtype, width, width of the result)"""
    for dtype in (torch.float32, torch.float64):
        for width, width_out in ((4, 4), (64, 64), (256, 256), (500, 16), (16, 500)):
            yield f"{str(dtype)[6:]}, {width} to {width_out} wide", dtype, width, width_out


def _conv() -> Iterator[Sample]:
    for name, dtype, width, width_out in layers():
        x, weight = matrix(NODES, width, dtype), matrix(width, width_out, dtype)
        bias, value = vector(width_out, dtype), vector(EDGES, dtype)
        edges, rest = (*graph(), value), (0.5, HOST_SEED, 1, 2)
        if width == width_out:
            mixed = (x, weight, None, x, 0.1, 0.3, True, True, True, *rest)
            yield f"residual, {name}", (*edges, *mixed)
            yield (
                f"transform first, {name}",
                (
                    *(*edges, x, weight, bias, None, 0.0, 1.0, True, False, False),
                    *rest,
                ),
            )
        else:
            plain = (x, weight, bias, None, 0.0, 1.0, True, True, True, 0.0, None, 0, 0)
            yield f"aggregate first, {name}", (*edges, *plain)
    bare = (None, matrix(NODES, 64), None, None, None, 0.0, 1.0, False, True, False, 0.0)
    yield "no transform, float32, 64 wide", (*graph(), *bare, None, 0, 0)


def _conv_backward() -> Iterator[Sample]:
    for name, dtype, width, width_out in layers():
        x, dout = matrix(NODES, width, dtype), matrix(NODES, width_out, dtype)
        weight, edges = matrix(width, width_out, dtype), (*graph(), vector(EDGES, dtype))
        rest = (0.5, HOST_SEED, 1, 2)
        if width == width_out:
            given = (dout, vector(width_out, dtype), dout, x, weight, 0.1, 0.3, *rest)
            yield f"residual, {name}", (*edges, *given, True, True, True, True)
        given = (dout, None, None, x, weight, 0.0, 1.0, *rest)
        yield f"transform first, {name}", (*edges, *given, False, True, True, False)
        yield f"frozen weight, {name}", (*edges, *given, False, True, False, False)


def _segment_csr() -> Iterator[Sample]:
    for name, x, _ in features():
        yield name, (matrix(EDGES, x.size(1), x.dtype), graph(torch.int64)[0], False)


def _segment_csr_extremum() -> Iterator[Sample]:
    for name, x, _ in features():
        yield name, (matrix(EDGES, x.size(1), x.dtype), graph(torch.int64)[0], True, True)


def _segment_csr_expand() -> Iterator[Sample]:
    for name, x, _ in features():
        yield name, (x, graph(torch.int64)[0], EDGES)


def _segment_csr_extremum_dsrc() -> Iterator[Sample]:
    for name, x, _ in features():
        arg = matrix(NODES, x.size(1), torch.int64)
        yield name, (arg, x, graph(torch.int64)[0], EDGES)


# Teacher and student widths, subspace: the reference configurations, and sizes that are odd.
PAIRS = {
    "64x64 -> 4x4": ([64] * 64, [4] * 4, 64),
    "16x256 -> 4x64": ([256] * 16, [64] * 4, 64),
    "2x750 -> 2x256": ([750] * 2, [256] * 2, 64),
    "3x512 -> 2x32": ([512] * 3, [32] * 2, 256),
    "9, 241 -> 6, 111": ([9, 241], [6, 111], 100),
    "1 -> 1": ([1], [1], 1),
}
TEACHERS = ((torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.float64,) * 2)


def pairs() -> Iterator[tuple[str, tuple[Any, ...], tuple[Tensor, ...], torch.dtype]]:
    """(name, arguments down to centre, maps M and N and a [T, S], dtype); odd ones are masked."""
    for teacher, dtype in TEACHERS:
        for name, (widths, student_widths, r) in PAIRS.items():
            odd = name.startswith("9")
            nodes = (vector(1000, torch.int64), vector(1000, dtype)) if odd else (None, None)
            states = [matrix(NODES, width, dtype) for width in student_widths]
            given = matrix(NODES, sum(widths), teacher), widths, states, *nodes
            maps = matrix(sum(widths), r, dtype), matrix(sum(student_widths), r, dtype)
            attention = matrix(len(widths), len(student_widths), torch.float64)
            label = f"{str(teacher)[6:]}, {name}"
            yield label, (*given, vector(sum(student_widths), dtype)), (*maps, attention), dtype


def _layer_pair_moment() -> Iterator[Sample]:
    for name, given, (teacher_map, student_map, attention), dtype in pairs():
        columns = student_map.size(0)
        products = matrix(teacher_map.size(0), columns, torch.float64)
        rows = matrix(columns, columns, dtype), matrix(1, columns, dtype)
        for want in (True, False):
            what = name if want else f"{name}, no gradient"
            yield what, (*given, *rows, products, attention, want)


def _layer_pair_projection() -> Iterator[Sample]:
    wants = {"": (True, True), ", frozen map": (False, True), ", frozen student": (True, False)}
    for name, given, (teacher_map, student_map, attention), dtype in pairs():
        rows = [matrix(layers, teacher_map.size(1), dtype) for layers in attention.shape]
        for what, want in wants.items():
            maps = teacher_map, student_map, rows[0], attention, *rows
            yield name + what, (*given, *maps, 0.5, *want)


def _layer_pair_near() -> Iterator[Sample]:
    for name, given, (teacher_map, student_map, attention), dtype in pairs():
        *rest, centre = given
        offset = torch.empty(*attention.shape, teacher_map.size(1), dtype=dtype, device="meta")
        near = torch.empty(attention.shape, dtype=torch.bool, device="meta")
        centres = vector(teacher_map.size(0), dtype), centre
        yield name, (*rest, *centres, teacher_map, student_map, offset, near)


SAMPLES = {
    "spmm": _spmm,
    "sddmm": _sddmm,
    "spmm_extremum": _spmm_extremum,
    "spmm_extremum_dx": _spmm_extremum_dx,
    "spmm_extremum_dvalue": _spmm_extremum_dvalue,
    "dropout": _dropout,
    "conv": _conv,
    "conv_backward": _conv_backward,
    "segment_csr": _segment_csr,
    "segment_csr_extremum": _segment_csr_extremum,
    "segment_csr_expand": _segment_csr_expand,
    "segment_csr_extremum_dsrc": _segment_csr_extremum_dsrc,
    "layer_pair_moment": _layer_pair_moment,
    "layer_pair_projection": _layer_pair_projection,
    "layer_pair_near": _layer_pair_near,
}
