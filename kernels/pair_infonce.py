"""InfoNCE of all layer pairs: losses with an online logsumexp, then the gradient of each side.

With s_vx = <u_v, w_x> / tau, lse_v = log sum_x exp(s_vx), p_vx = exp(s_vx - lse_v) and c the weight
of a pair over B tau,

    losses    lse_v and lse_v - s_vv                                a program per pair and rows v
    gradient  du_v = sum_i c_ij sum_x (p_vx - [x = v]) w_ix      ... per student layer and rows v
    gradient  dw_x = sum_j c_ij sum_v (p_vx - [x = v]) u_jv      ... per teacher layer and rows x

Scores are computed anew in each, 10 B^2 d operations a pair; of what grows with B only lse and the
losses are stored, [T, S, B]. A program adds up all that goes into its rows, in order: no atomics.
Rows wider than BLOCK_D take a program per BLOCK_D columns of the gradient. On the accuracy of
products see _layer_pair_blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast.kernels._layer_pair_blocks import product
from abkd_fast.kernels.dropout import float_bits, from_bits
from abkd_fast.kernels.launch import MOST_REGISTERS, tl_dtype


@triton.jit
def load_rows(ptr, row, k, rows, width):
    """[R, K] of a layer [B, d]; 0 where it has no such entry."""
    mask = (row < rows)[:, None] & (k < width)[None, :]
    return tl.load(ptr + row[:, None] * width + k[None, :], mask=mask, other=0.0)


@triton.jit
def row_products(
    own, other, row, column, rows, width,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Less the products of rows of two layers, [M, N]; see the module on why less."""
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for first in range(0, width, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        left = load_rows(own, row, k, rows, width)
        right = load_rows(other, column, k, rows, width)
        total -= product(left, tl.trans(right))
    return total


@triton.jit
def losses_kernel(
    student, teacher, lse, losses,  # [S, B, d], [T, B, d], [T, S, B] twice
    students, rows, width, inverse,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M rows of one pair; all teacher rows go by."""
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(rows, BLOCK_M)
    pair = pid // blocks
    row = pid % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    u = student + pair % students * rows * width
    w = teacher + pair // students * rows * width
    inverse = from_bits(inverse, ACC)
    top = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    own = total
    for first in range(0, rows, BLOCK_N):
        column = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
        s = row_products(u, w, row, column, rows, width, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
        s = tl.where((column < rows)[None, :], -s * inverse, float("-inf"))
        before = top
        top = tl.maximum(top, tl.max(s, 1))
        total = total * tl.exp(before - top) + tl.sum(tl.exp(s - top[:, None]), 1)
        own += tl.sum(tl.where(column[None, :] == row[:, None], s, 0), 1)
    at = pair * rows + row
    log_total = tl.log(total)
    tl.store(lse + at, top + log_total, mask=row < rows)
    tl.store(losses + at, log_total - (own - top), mask=row < rows)


@triton.jit
def gradient_kernel(
    own, other, weight, lse, out,  # [L, B, d], [K, B, d], [T, S], [T, S, B], as own
    own_layers, other_layers, rows, width, inverse,
    STUDENT: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_M rows and BLOCK_D columns of a layer's gradient, the student's or not.

    All rows of all other layers go by.
    """
    pid = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(width, BLOCK_D)
    blocks = tl.cdiv(rows, BLOCK_M)
    layer = pid // tiles // blocks
    row = pid // tiles % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    d = pid % tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    own += layer * rows * width
    scale = from_bits(inverse, tl.float64) / rows
    inverse = from_bits(inverse, ACC)
    total = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    for index in range(0, other_layers):
        pair = index * own_layers + layer if STUDENT else layer * other_layers + index
        x = other + tl.cast(index, tl.int64) * rows * width
        c = (tl.load(weight + pair).to(tl.float64) * scale).to(ACC)
        for first in range(0, rows, BLOCK_N):
            column = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
            s = row_products(own, x, row, column, rows, width, ACC, BLOCK_M, BLOCK_N, BLOCK_K)
            if STUDENT:
                most = tl.load(lse + pair * rows + row, mask=row < rows, other=0.0)[:, None]
            else:
                most = tl.load(lse + pair * rows + column, mask=column < rows, other=0.0)[None, :]
            p = tl.exp(-s * inverse - most)
            p = tl.where(column[None, :] == row[:, None], p - 1, p)
            live = (row < rows)[:, None] & (column < rows)[None, :]
            total -= product(tl.where(live, c * p, 0), load_rows(x, column, d, rows, width))
    mask = (row < rows)[:, None] & (d < width)[None, :]
    tl.store(out + layer * rows * width + row[:, None] * width + d[None, :], -total, mask=mask)


class Blocks(NamedTuple):
    """Shape of a program: its rows, rows that go by at a time, depth of a step, columns."""

    rows: int
    others: int
    depth: int
    columns: int
    warps: int
    stages: int


def _blocks(student: Tensor) -> Blocks:
    columns = max(triton.next_power_of_2(student.size(2)), 16)
    if student.dtype == torch.float64:
        return Blocks(16, 16, 16, min(columns, 32), 4, 1)
    return Blocks(64, 32, min(columns, 32), min(columns, 128), 8 if columns > 64 else 4, 2)


def _options(student: Tensor) -> tuple[Blocks, dict[str, object]]:
    """Blocks, and launch options that both kernels take."""
    blocks = _blocks(student)
    return blocks, {
        "ACC": tl_dtype(student.dtype),
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.others,
        "BLOCK_K": blocks.depth,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "maxnreg": MOST_REGISTERS,
    }


def _gradient(
    own: Tensor, other: Tensor, weight: Tensor, lse: Tensor, inverse: int, for_student: bool
) -> Tensor:
    """d sum(weight * D) / d own, [L, B, d]."""
    layers, rows, width = own.shape
    blocks, options = _options(own)
    out = torch.empty_like(own)
    programs = layers * triton.cdiv(rows, blocks.rows) * triton.cdiv(width, blocks.columns)
    if programs > 0:
        gradient_kernel[(programs,)](
            own, other, weight, lse, out, layers, other.size(0), rows, width, inverse,
            STUDENT=for_student, BLOCK_D=blocks.columns, **options,
        )  # fmt: skip
    return out


def pair_infonce(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    temperature: float,
    want_student: bool,
    want_teacher: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(D [T, S] float64, gradients of sum(weight * D)); [0, B, d] where one is not wanted."""
    student, teacher, weight = student.contiguous(), teacher.contiguous(), weight.contiguous()
    (students, rows, width), teachers = student.shape, teacher.size(0)
    inverse = float_bits(1.0 / temperature)
    lse, losses = (student.new_empty(teachers, students, rows) for _ in range(2))
    blocks, options = _options(student)
    programs = teachers * students * triton.cdiv(rows, blocks.rows)
    if programs > 0:
        losses_kernel[(programs,)](
            student, teacher, lse, losses, students, rows, width, inverse, **options
        )
    dstudent, dteacher = (x.new_empty(0, rows, width) for x in (student, teacher))
    if want_student:
        dstudent = _gradient(student, teacher, weight, lse, inverse, True)
    if want_teacher:
        dteacher = _gradient(teacher, student, weight, lse, inverse, False)
    return losses.double().mean(2), dstudent, dteacher
