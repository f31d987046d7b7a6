"""Divergence of neighbourhood softmaxes: statistics of rows, then values and gradients.

A program owns some rows and some of the student's features. The largest score and the log of the
sum of every row come first, by a pass for each model; from them a pass over the rows forms
divergences and the gradient of every node as the centre, and one over the transpose adds that as
a neighbour. All form the similarities again. Rows are not split: a hub takes one program's time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from abkd_fast.kernels._edge_attention_passes import load_other, load_own
from abkd_fast.kernels.dropout import float_bits, from_bits
from abkd_fast.kernels.launch import MOST_REGISTERS, AttentionBlocks, attention_blocks, tl_dtype
from abkd_fast.kernels.rows import load_row

_BITS = ["offset", "scale"]


@triton.jit
def similarities(
    x_ptr, row, rows, node, live, width, offset, KIND: tl.constexpr, POWER: tl.constexpr,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(scores, slopes in the other end) of edges, two of [BLOCK_R, BLOCK_E]: rbf, l2, power."""
    base = tl.zeros([BLOCK_R, BLOCK_E], ACC)
    for first in range(0, width, BLOCK_C):
        features = first + tl.arange(0, BLOCK_C)
        own = load_own(x_ptr, row, rows, 0, 1, width, features, ACC)[:, None, :]
        other = load_other(x_ptr, node, live, 0, 1, width, features, ACC)
        if KIND == 2:
            base += tl.sum(own * other, 2)
        else:
            base += tl.sum((own - other) * (own - other), 2)
    if KIND == 0:
        score = tl.exp(-0.5 * base)
        slope = score
    elif KIND == 1:
        score = base
        slope = tl.full([BLOCK_R, BLOCK_E], -2.0, ACC)
    else:
        base += from_bits(offset, ACC)
        lower = tl.full([BLOCK_R, BLOCK_E], 1.0, ACC)
        for _ in tl.static_range(POWER - 1):
            lower *= base
        score = lower * base
        slope = POWER * lower
    return score, slope


@triton.jit(do_not_specialize=["offset"])
def neighbor_stats_kernel(
    rowptr_ptr, col_ptr, x_ptr, stats_ptr, rows, width, offset,
    KIND: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """stats [rows, 2]: the largest score of a row, and the log of the sum of exponentials."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    start, stop = load_row(rowptr_ptr, rows, row)
    most = tl.full([BLOCK_R], float("-inf"), ACC)
    total = tl.zeros([BLOCK_R], ACC)
    for done in range(0, tl.max(stop - start, 0), BLOCK_E):
        edge = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        live = edge < stop[:, None]
        node = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
        score, _ = similarities(
            x_ptr, row, rows, node, live, width, offset, KIND, POWER,
            ACC, BLOCK_R, BLOCK_E, BLOCK_C,
        )  # fmt: skip
        score = tl.where(live, score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0, higher)
        total = total * tl.exp(most - base) + tl.sum(tl.exp(score - base[:, None]), 1)
        most = higher
    empty = start == stop
    place = stats_ptr + row * 2
    tl.store(place, tl.where(empty, 0, most), mask=row < rows)
    tl.store(place + 1, tl.where(empty, 0, tl.log(tl.where(empty, 1, total))), mask=row < rows)


@triton.jit
def log_probabilities(score, stats_ptr, centre, live):
    """Log-softmax of scores [BLOCK_R, BLOCK_E] from the statistics of the edges' centres."""
    most = tl.load(stats_ptr + centre * 2, mask=live, other=0)
    return (score - most) - tl.load(stats_ptr + centre * 2 + 1, mask=live, other=0)


@triton.jit(do_not_specialize=["offset"])
def neighbor_log_softmax_kernel(
    rowptr_ptr, col_ptr, x_ptr, stats_ptr, out_ptr, rows, width, offset,
    KIND: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out [E] from the statistics of the rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    start, stop = load_row(rowptr_ptr, rows, row)
    for done in range(0, tl.max(stop - start, 0), BLOCK_E):
        edge = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        live = edge < stop[:, None]
        node = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
        score, _ = similarities(
            x_ptr, row, rows, node, live, width, offset, KIND, POWER,
            ACC, BLOCK_R, BLOCK_E, BLOCK_C,
        )  # fmt: skip
        centre = row[:, None] + tl.zeros([BLOCK_R, BLOCK_E], tl.int64)
        tl.store(out_ptr + edge, log_probabilities(score, stats_ptr, centre, live), mask=live)


@triton.jit(do_not_specialize=_BITS)
def neighbor_kl_kernel(
    rowptr_ptr, col_ptr, perm_ptr, student_ptr, teacher_ptr, target_ptr,
    student_stats_ptr, teacher_stats_ptr, loss_ptr, dstudent_ptr,
    rows, width, teacher_width, offset, scale,
    KIND: tl.constexpr, POWER: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """loss [rows] and dstudent [rows, width], of the centres; with perm [E] it is added to.

    With perm the rows are the transpose's: every node as a neighbour.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    features = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, stop = load_row(rowptr_ptr, rows, row)
    loss = tl.zeros([BLOCK_R], ACC)
    total = tl.zeros([BLOCK_R], ACC)
    gradient = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for done in range(0, tl.max(stop - start, 0), BLOCK_E):
        place = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        live = place < stop[:, None]
        node = tl.load(col_ptr + place, mask=live, other=0).to(tl.int64)
        edge, centre = place, row[:, None] + tl.zeros([BLOCK_R, BLOCK_E], tl.int64)
        if perm_ptr is not None:
            edge, centre = tl.load(perm_ptr + place, mask=live, other=0), node
        score, slope = similarities(
            student_ptr, row, rows, node, live, width, offset, KIND, POWER,
            ACC, BLOCK_R, BLOCK_E, BLOCK_C,
        )  # fmt: skip
        log_p = log_probabilities(score, student_stats_ptr, centre, live)
        if target_ptr is not None:
            log_t = tl.load(target_ptr + edge, mask=live, other=0)
        else:
            there, _ = similarities(
                teacher_ptr, row, rows, node, live, teacher_width, offset, KIND, POWER,
                ACC, BLOCK_R, BLOCK_E, BLOCK_C,
            )  # fmt: skip
            log_t = log_probabilities(there, teacher_stats_ptr, centre, live)
        target = tl.exp(log_t)
        if loss_ptr is not None:
            loss += tl.sum(tl.where(live, target * (log_t - log_p), 0), 1)
        if dstudent_ptr is not None:
            weight = from_bits(scale, ACC) * (tl.exp(log_p) - target) * slope
            weight = tl.where(live, weight, 0)
            other = load_other(student_ptr, node, live, 0, 1, width, features, ACC)
            gradient += tl.sum(weight[:, :, None] * other, 1)
            total += tl.sum(weight, 1)
    if loss_ptr is not None:
        tl.store(loss_ptr + row, loss, mask=(row < rows) & (tl.program_id(1) == 0))
    if dstudent_ptr is not None:
        mask = (row < rows)[:, None] & (features < width)[None, :]
        offsets = row[:, None] * width + features[None, :]
        if KIND != 2:
            own = load_own(student_ptr, row, rows, 0, 1, width, features, ACC)
            gradient -= total[:, None] * own
        if perm_ptr is not None:
            gradient += tl.load(dstudent_ptr + offsets, mask=mask, other=0)
        tl.store(dstudent_ptr + offsets, gradient, mask=mask)


def _launch(x: Tensor, similarity: int, power: int) -> tuple[AttentionBlocks, dict[str, Any]]:
    """Block sizes for x and narrower rows, and what every kernel is launched with.

    All of a call have the same ones: similarities that are formed again are then the same.
    """
    block = attention_blocks(x.unsqueeze(1))
    options = {"KIND": similarity, "POWER": power if similarity == 2 else 1}
    options |= {"ACC": tl_dtype(x.dtype), "BLOCK_R": block.rows, "BLOCK_E": block.edges}
    options |= {"BLOCK_C": block.features, "num_warps": block.warps, "maxnreg": MOST_REGISTERS}
    return block, options


def _stats(
    rowptr: Tensor, col: Tensor, x: Tensor, offset: float, rows: int, options: dict[str, Any]
) -> Tensor:
    """[N, 2]: largest score and log of the sum of exponentials of every row."""
    stats = x.new_empty(x.size(0), 2)
    if x.size(0) > 0:
        neighbor_stats_kernel[(triton.cdiv(x.size(0), rows),)](
            rowptr, col, x, stats, x.size(0), x.size(1), float_bits(offset), **options
        )
    return stats


def neighbor_kl(
    rowptr: Tensor,
    col: Tensor,
    rowptr_t: Tensor | None,
    col_t: Tensor | None,
    perm: Tensor | None,
    student: Tensor,
    teacher: Tensor | None,
    log_target: Tensor | None,
    similarity: int,
    offset: float,
    power: int,
) -> tuple[Tensor, Tensor]:
    """(loss [], dstudent [N, d]); dstudent is [0] without the transpose."""
    rows, width, student = student.size(0), student.size(1), student.contiguous()
    widest = student if teacher is None or teacher.size(1) < width else teacher
    block, options = _launch(widest, similarity, power)
    same = (offset, block.rows, options)
    student_stats, teacher_stats = _stats(rowptr, col, student, *same), None
    if teacher is not None:
        teacher = teacher.contiguous()
        teacher_stats = _stats(rowptr, col, teacher, *same)
    if log_target is not None:
        log_target = log_target.contiguous()
    loss, wanted = student.new_empty(rows), rowptr_t is not None
    dstudent = student.new_empty(student.shape if wanted else (0,))
    tiles = max(triton.cdiv(width, block.features), 1) if wanted else 1
    passes = [(rowptr, col, None, loss), (rowptr_t, col_t, perm, None)]
    for pointers, sources, order, to in passes[: 1 + wanted] if rows > 0 else []:
        neighbor_kl_kernel[(triton.cdiv(rows, block.rows), tiles)](
            pointers, sources, order, student, teacher, log_target, student_stats, teacher_stats,
            to, dstudent if wanted else None, rows, width,
            0 if teacher is None else teacher.size(1), float_bits(offset), float_bits(1 / rows),
            **options,
        )  # fmt: skip
    return loss.sum() / rows, dstudent


def neighbor_log_softmax(
    rowptr: Tensor, col: Tensor, x: Tensor, similarity: int, offset: float, power: int
) -> Tensor:
    """Log of the softmax over every row of the similarities along edges, [E]."""
    x = x.contiguous()
    out, (block, options) = x.new_empty(col.numel()), _launch(x, similarity, power)
    stats = _stats(rowptr, col, x, offset, block.rows, options)
    if out.numel() > 0:
        neighbor_log_softmax_kernel[(triton.cdiv(x.size(0), block.rows),)](
            rowptr, col, x, stats, out, x.size(0), x.size(1), float_bits(offset), **options
        )
    return out
