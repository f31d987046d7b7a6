"""The moment form's pass over the nodes: t^T h and t K from one read of the teacher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast.kernels import _layer_pair_blocks as blocks
from abkd_fast.kernels._layer_pair_blocks import (
    NodeRows,
    column_layers,
    find_nodes,
    load_states,
    load_weight,
    product,
)


@triton.jit
def _load_k(products, attention, teacher_layers, state_layers, d, c, width, columns, students,
            dtype: tl.constexpr):  # fmt: skip
    """K = A_ij M_i N_j^T at rows d [D'] and columns c [C'], rounded once."""
    i = tl.load(teacher_layers + d, mask=d < width, other=0)
    j = tl.load(state_layers + c, mask=c < columns, other=0)
    at = (d < width)[:, None] & (c < columns)[None, :]
    k = tl.load(products + d[:, None] * columns + c[None, :], mask=at, other=0.0)
    a = tl.load(attention + i[:, None] * students + j[None, :])
    return (a * k).to(dtype)


@triton.jit
def _cross_kernel(
    teacher, stride_n, stride_d, states, centre, nodes, weight,  # [N, D], [N, C], [C], [n], [n]
    products, attention, teacher_layers, state_layers,  # [D, C], [T, S], [D], [C]
    parts, spread,  # [chunks, size], [d tiles, pass rows, C]
    first_row, num_rows, chunk_rows, pass_rows, width, columns, students, size,
    WANT_STUDENT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """parts = sum_v w t^T h~ over a chunk, spread = t K; D', C' columns of t and h a program.

    The teacher's tile [BLOCK_N, BLOCK_D], once loaded, feeds both products. K's tile stays; t K
    is a sum over the D tiles, which _state_gradient_kernel adds up.
    """
    pid = tl.program_id(0).to(tl.int64)
    d_tiles = tl.cdiv(width, BLOCK_D)
    c_tiles = tl.cdiv(columns, BLOCK_C)
    d_tile = pid % d_tiles
    chunk = pid // (d_tiles * c_tiles)
    d = d_tile * BLOCK_D + tl.arange(0, BLOCK_D)
    c = pid // d_tiles % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    dtype: tl.constexpr = states.dtype.element_ty
    if WANT_STUDENT:
        k = _load_k(products, attention, teacher_layers, state_layers, d, c, width, columns,
                    students, dtype)  # fmt: skip
    total = tl.zeros([BLOCK_D, BLOCK_C], dtype)
    end = tl.minimum(first_row + (chunk + 1) * chunk_rows, num_rows)
    for start in range(first_row + chunk * chunk_rows, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        mask = rows < end
        node = find_nodes(nodes, rows, mask)
        t_offs = node[:, None] * stride_n + d[None, :] * stride_d
        t_mask = mask[:, None] & (d < width)[None, :]
        t = tl.load(teacher + t_offs, mask=t_mask, other=0.0)  # [N', D']
        h = load_states(states, columns, centre, node, mask, c, columns)  # [N', C']
        wh = h * load_weight(weight, rows, mask, dtype)[:, None]
        total -= product(tl.trans(t), wh)
        if WANT_STUDENT:
            at = (d_tile * pass_rows + rows - first_row)[:, None] * columns + c[None, :]
            tl.store(spread + at, product(t, k), mask=mask[:, None] & (c < columns)[None, :])
    row = (first_row // chunk_rows + chunk) * size
    at = d[:, None] * columns + c[None, :]
    tl.store(parts + row + at, -total, mask=(d < width)[:, None] & (c < columns)[None, :])


@triton.jit
def _state_gradient_kernel(
    states, centre, nodes, weight, g, row, spread, dstates,  # [C, C], [C], as above, [N, C]
    first_row, num_rows, pass_rows, columns, d_tiles,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dstates = w (h~ G + row - t K); BLOCK_N rows and BLOCK_C columns a program."""
    pid = tl.program_id(0).to(tl.int64)
    c_tiles = tl.cdiv(columns, BLOCK_C)
    c = pid % c_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = first_row + pid // c_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = rows < tl.minimum(first_row + pass_rows, num_rows)
    node = find_nodes(nodes, rows, mask)
    dtype: tl.constexpr = states.dtype.element_ty
    at = mask[:, None] & (c < columns)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_C], dtype)  # of what is taken away
    for first in range(0, columns, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        h = load_states(states, columns, centre, node, mask, k, columns)
        g_mask = (k < columns)[:, None] & (c < columns)[None, :]
        total -= product(h, tl.load(g + k[:, None] * columns + c[None, :], mask=g_mask, other=0.0))
    for tile in range(0, d_tiles):
        offs = (tile * pass_rows + rows - first_row)[:, None] * columns + c[None, :]
        total += tl.load(spread + offs, mask=at, other=0.0)
    out = tl.load(row + c, mask=c < columns, other=0.0)[None, :] - total
    out *= load_weight(weight, rows, mask, dtype)[:, None]
    tl.store(dstates + node[:, None] * columns + c[None, :], out, mask=at)


@triton.jit
def _second_kernel(
    states, centre, nodes, weight, parts,  # parts [chunks, size]
    num_rows, chunk_rows, columns, second_at, size,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """parts[second_at:] = w h~^T h~ [C, C], then w h~ [C], over a chunk; a tile a program."""
    pid = tl.program_id(0).to(tl.int64)
    c_tiles = tl.cdiv(columns, BLOCK_C)
    tile = pid % c_tiles
    chunk = pid // (c_tiles * c_tiles)
    left = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    other = pid // c_tiles % c_tiles
    right = other * BLOCK_C + tl.arange(0, BLOCK_C)
    dtype: tl.constexpr = states.dtype.element_ty
    total = tl.zeros([BLOCK_C, BLOCK_C], dtype)
    row_sum = tl.zeros([BLOCK_C], dtype)
    end = tl.minimum((chunk + 1) * chunk_rows, num_rows)
    for start in range(chunk * chunk_rows, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        mask = rows < end
        node = find_nodes(nodes, rows, mask)
        x = load_states(states, columns, centre, node, mask, left, columns)
        wx = x * load_weight(weight, rows, mask, dtype)[:, None]
        total -= product(
            tl.trans(wx), load_states(states, columns, centre, node, mask, right, columns)
        )
        row_sum += tl.sum(wx, 0)
    out = parts + chunk * size + second_at
    at = left[:, None] * columns + right[None, :]
    tl.store(out + at, -total, mask=(left < columns)[:, None] & (right < columns)[None, :])
    written = tl.where(other == 0, columns, 0)  # the sums come from the first of a row's tiles
    tl.store(out + columns * columns + left, row_sum, mask=left < written)


def _config(teacher: Tensor, dtype: torch.dtype, columns: int, aligned: bool) -> dict[str, int]:
    """Block sizes that do not spill; a bfloat16 teacher takes half the registers.

    Rows that cannot be read in vectors take more of them, for addresses.
    """
    block_c = 16 if columns <= 16 or dtype == torch.float64 else 32
    native = teacher.dtype == torch.bfloat16
    sizes = {"BLOCK_C": block_c, "num_warps": 8, "num_stages": 2}
    if dtype == torch.float64:
        return sizes | {"BLOCK_N": 16, "BLOCK_D": 32, "num_warps": 4, "num_stages": 1}
    if not aligned:
        return sizes | {"BLOCK_N": 32, "BLOCK_D": 1024 // block_c, "num_warps": 4}
    rows = 64 if native and block_c == 32 else 32
    return sizes | {"BLOCK_N": rows, "BLOCK_D": (4096 if native else 2048) // block_c}


def layer_pair_moment(
    teacher: Tensor,
    widths: list[int],
    states: list[Tensor],
    nodes: Tensor | None,
    weight: Tensor | None,
    centre: Tensor,
    g: Tensor,
    row: Tensor,
    products: Tensor,
    attention: Tensor,
    want_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the moment form; arguments and results as in ops._layer_pair_passes.moment_pass.

    The teacher may also be float16. Work 4 n D C on tensor cores; the teacher is read once, t K
    goes through a scratch buffer of C / BLOCK_D of its size.
    """
    given = NodeRows.of(teacher, states, nodes, weight, centre)
    (width, columns), dtype = products.shape, given.states.dtype
    aligned = blocks.alignment([teacher.stride(0), columns]) >= 8
    config = _config(teacher, dtype, columns, aligned)
    d_tiles, c_tiles = (
        triton.cdiv(x, config[block]) for x, block in ((width, "BLOCK_D"), (columns, "BLOCK_C"))
    )
    chunk_rows = given.chunk_rows(d_tiles * c_tiles, config["BLOCK_N"])
    pass_rows = given.pass_rows(d_tiles * columns, chunk_rows)
    chunks, size = triton.cdiv(given.num_rows, chunk_rows), (width + columns + 1) * columns
    parts = given.states.new_empty(chunks, size)
    spread = given.states.new_empty(d_tiles if want_student else 0, pass_rows, columns)
    dstates = given.gradient(want_student)
    shared = {
        "states": given.states, "centre": given.centre, "nodes": given.nodes,
        "weight": given.weight, "columns": columns, "num_rows": given.num_rows,
    }  # fmt: skip
    summed = shared | {"parts": parts, "chunk_rows": chunk_rows, "size": size}
    passed = {"spread": spread, "pass_rows": pass_rows}
    cross = summed | passed | {
        "teacher": teacher, "stride_n": teacher.stride(0), "stride_d": teacher.stride(1),
        "products": products.contiguous(), "attention": attention.contiguous(),
        "teacher_layers": column_layers(tuple(widths), teacher.device),
        "state_layers": column_layers(given.student_widths, teacher.device),
        "width": width, "students": len(states), "WANT_STUDENT": want_student,
    }  # fmt: skip
    gradient = shared | passed | {
        "g": g.contiguous(), "row": row.contiguous(), "dstates": dstates, "d_tiles": d_tiles
    }  # fmt: skip
    small = {k: config[k] for k in ("BLOCK_N", "BLOCK_C", "num_stages")} | {"num_warps": 4}
    for first in range(0, given.num_rows, pass_rows):
        rows = min(pass_rows, given.num_rows - first)
        programs = triton.cdiv(rows, chunk_rows) * d_tiles * c_tiles
        blocks.launch(_cross_kernel, programs, cross | {"first_row": first}, config)
        if want_student:
            programs = triton.cdiv(rows, config["BLOCK_N"]) * c_tiles
            options = small | {"BLOCK_K": config["BLOCK_C"]}
            arguments = gradient | {"first_row": first}
            blocks.launch(_state_gradient_kernel, programs, arguments, options)
    second = summed | {"second_at": width * columns}
    blocks.launch(_second_kernel, chunks * c_tiles**2, second, small)
    sums = blocks.reduce_parts(parts).view(-1, columns).split([width, columns, 1])
    return sums[0].clone(), sums[1].clone(), sums[2].flatten().clone(), dstates
