"""D of nearly coinciding pairs from their differences; a program of another pair does nothing.

Which pairs these are is known on the device only, so all programs are launched: at most
``_PROGRAMS``, or one a pair.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast.kernels import _layer_pair_blocks as blocks
from abkd_fast.kernels._layer_pair_blocks import (
    NodeRows,
    find_nodes,
    layer_table,
    load_states,
    load_weight,
    product,
    widen,
)
from abkd_fast.kernels._layer_pair_projection import load_map, load_tile

_PROGRAMS = 4096


@triton.jit
def _project_centred(
    teacher, stride_d, node_offs, mask, centre, maps, first, last, q, r, dtype: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """-(t - centre) M, [BLOCK_N, BLOCK_R], of columns first to last."""
    out = tl.zeros([BLOCK_N, BLOCK_R], dtype)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = mask[:, None] & (k < last)[None, :]
        t = tl.load(teacher + node_offs[:, None] + k[None, :] * stride_d, mask=at, other=0.0)
        middle = tl.load(centre + k, mask=k < last, other=0.0)
        t = tl.where(at, widen(t, dtype) - middle[None, :], 0.0)
        out -= product(t, load_map(maps, k, last, q, r))
    return out


@triton.jit
def near_kernel(
    teacher, stride_n, stride_d, states, nodes, weight, teacher_centre, centre, teacher_map,
    student_map, offset, near, tiles, student_tiles, parts,
    num_rows, chunk_rows, columns, layers, students, r,
    ALIGN: tl.constexpr, STUDENT_ALIGN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """parts[chunk, pair] = sum over a chunk of rows of w |p - s|^2 where near, else 0; float64."""
    pid = tl.program_id(0).to(tl.int64)
    pair, chunk = pid % (layers * students), pid // (layers * students)
    total = tl.zeros([], tl.float64)
    if tl.load(near + pair) != 0:
        dtype: tl.constexpr = states.dtype.element_ty
        _, first, last, _ = load_tile(tiles, pair // students, ALIGN)
        _, own_first, own_last, _ = load_tile(student_tiles, pair % students, STUDENT_ALIGN)
        end = tl.minimum((chunk + 1) * chunk_rows, num_rows)
        for start in range(chunk * chunk_rows, end, BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
            mask = rows < end
            node = find_nodes(nodes, rows, mask)
            v = load_weight(weight, rows, mask, dtype)
            for column in range(0, r, BLOCK_R):
                q = column + tl.arange(0, BLOCK_R)
                p = _project_centred(
                    teacher, stride_d, node * stride_n, mask, teacher_centre, teacher_map,
                    first, last, q, r, dtype, BLOCK_N, BLOCK_K, BLOCK_R,
                )  # fmt: skip
                s = tl.zeros([BLOCK_N, BLOCK_R], dtype)
                for k in range(own_first, own_last, BLOCK_K):
                    at = k + tl.arange(0, BLOCK_K)
                    h = load_states(states, columns, centre, node, mask, at, own_last)
                    s -= product(h, load_map(student_map, at, own_last, q, r))
                o = tl.load(offset + pair * r + q, mask=q < r, other=0.0)
                difference = s - p + o[None, :]
                total += tl.sum(tl.sum(difference * difference, 1) * v).to(tl.float64)
    tl.store(parts + pid, total)


def layer_pair_near(
    teacher: Tensor,
    widths: list[int],
    states: list[Tensor],
    nodes: Tensor | None,
    weight: Tensor | None,
    teacher_centre: Tensor,
    centre: Tensor,
    teacher_map: Tensor,
    student_map: Tensor,
    offset: Tensor,
    near: Tensor,
) -> Tensor:
    """Launch near_kernel; arguments as in ops._layer_pair_direct.near_squares."""
    given = NodeRows.of(teacher, states, nodes, weight, centre)
    (layers, students), r, device = near.shape, teacher_map.size(1), near.device
    size = 16 if given.states.dtype == torch.float64 else 32
    chunks = max(_PROGRAMS // (layers * students), 1)
    chunk_rows = max(triton.cdiv(triton.cdiv(given.num_rows, size), chunks), 1) * size
    chunks = triton.cdiv(given.num_rows, chunk_rows)
    parts = given.states.new_empty(chunks, layers * students, dtype=torch.float64)
    arguments = {
        "teacher": teacher, "stride_n": teacher.stride(0), "stride_d": teacher.stride(1),
        "states": given.states, "nodes": given.nodes, "weight": given.weight,
        "teacher_centre": teacher_centre.contiguous(), "centre": given.centre,
        "teacher_map": teacher_map.contiguous(), "student_map": student_map.contiguous(),
        "offset": offset.contiguous(), "near": near.contiguous(),
        "tiles": layer_table(tuple(widths), max(widths), device),
        "student_tiles": layer_table(given.student_widths, max(given.student_widths), device),
        "parts": parts, "num_rows": given.num_rows, "chunk_rows": chunk_rows,
        "columns": given.states.size(1), "layers": layers, "students": students, "r": r,
        "ALIGN": blocks.alignment(widths), "STUDENT_ALIGN": blocks.alignment(given.student_widths),
    }  # fmt: skip
    options = {"BLOCK_N": size, "BLOCK_K": 16, "BLOCK_R": size, "num_warps": 4, "num_stages": 1}
    blocks.launch(near_kernel, chunks * layers * students, arguments, options)
    return blocks.reduce_parts(parts).view(layers, students)
