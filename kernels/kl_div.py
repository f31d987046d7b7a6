"""The loss on class scores, its right predictions, and its gradient.

A program reads rows in blocks of classes and keeps, however many classes there are, the largest
score m of a row, Z = sum exp((z - m) / tau) and, of a target q, its mass sum q and
gap = sum q (log q - (z - m) / tau). All of them follow m when it grows, so that

    KL(q || softmax(z / tau)) = gap + log(Z) sum q,
    dKL/dz = (exp((z - m) / tau) / Z sum q - q) / tau.

A label is the q that is 1 there: its gap is -(z - m) / tau at the label. A label that is no class
makes the row NaN: there is no waiting for the device to say so.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.dropout import float_bits, from_bits
from abkd_fast.kernels.launch import MOST_REGISTERS, ScoreBlocks, score_blocks, tl_dtype
from abkd_fast.kernels.spmm_extremum import first_best


@triton.jit
def load_block(ptr, row, c, live, classes, ACC: tl.constexpr):
    """[BLOCK_R, BLOCK_C] of rows and classes; -inf, which adds nothing, where there are none."""
    offset = row[:, None] * classes + c[None, :]
    mask = live[:, None] & (c < classes)[None, :]
    return tl.load(ptr + offset, mask=mask, other=float("-inf")).to(ACC)


@triton.jit
def counted_rows(mask_ptr, row, stop):
    """Whether rows are before ``stop`` and in the mask."""
    live = row < stop
    if mask_ptr is not None:
        live = live & (tl.load(mask_ptr + row, mask=live, other=0) != 0)
    return live


@triton.jit
def load_labels(target_ptr, row, live, classes):
    """(labels, whether they are classes)."""
    label = tl.load(target_ptr + row, mask=live, other=0)
    return label, (label >= 0) & (label < classes)


@triton.jit
def follow_largest(block, c, top, place):
    """(largest entry of rows so far, its first class); NaN is larger than any number."""
    best, where = first_best(block, c[None, :], 2147483647, 1)
    beats = (best > top) | ((best != best) & (top == top))
    return tl.where(beats, best, top), tl.where(beats, where, place)


@triton.jit
def finite_shift(top):
    """What scores are taken relative to: the largest, or 0 while there is none."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def follow_sum(z, total, before, top, inverse):
    """sum exp((z - top) / tau) so far, where the largest score was ``before`` this block."""
    shift = finite_shift(top)
    total *= tl.exp((before - shift) * inverse)
    return total + tl.sum(tl.exp((z - shift[:, None]) * inverse), 1)


@triton.jit
def row_losses(
    logits_ptr, target_ptr, row, live, classes, inverse,
    LABELS: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(KL, whether the largest score is at the label or the target's largest) of rows."""
    top = tl.full([BLOCK_R], float("-inf"), ACC)
    likeliest = top
    total = tl.zeros([BLOCK_R], ACC)
    mass = total
    gap = total
    place = tl.zeros([BLOCK_R], tl.int32)
    wanted = place
    for begin in range(0, BLOCK_C if WHOLE else classes, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        z = load_block(logits_ptr, row, c, live, classes, ACC)
        before = top
        top, place = follow_largest(z, c, top, place)
        total = follow_sum(z, total, before, top, inverse)
        if not LABELS:
            t = load_block(target_ptr, row, c, live, classes, ACC)
            likeliest, wanted = follow_largest(t, c, likeliest, wanted)
            q, shift = tl.exp(t), finite_shift(top)
            gap += mass * (shift - finite_shift(before)) * inverse
            terms = q * (t - (z - shift[:, None]) * inverse)
            gap += tl.sum(tl.where(q == 0, 0, terms), 1)
            mass += tl.sum(q, 1)
    if LABELS:
        label, known = load_labels(target_ptr, row, live, classes)
        z = tl.load(logits_ptr + row * classes + label, mask=live & known, other=float("nan"))
        return tl.log(total) - (z.to(ACC) - top) * inverse, place == label
    else:
        return gap + tl.log(total) * mass, place == wanted


@triton.jit
def kl_div_kernel(
    logits_ptr, target_ptr, mask_ptr, partial_ptr, rows, share, classes, inverse,
    LABELS: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program owns ``share`` rows: the sum of their losses, how many are right, how many count.

    partial [3, programs] float64, in which numbers of rows are exact.
    """
    split = tl.program_id(0).to(tl.int64)
    stop = tl.minimum((split + 1) * share, tl.zeros([], tl.int64) + rows)
    inverse = from_bits(inverse, ACC)
    losses = tl.zeros([BLOCK_R], tl.float64)
    right = losses
    count = losses
    for begin in range(split * share, stop, BLOCK_R):
        row = (begin + tl.arange(0, BLOCK_R)).to(tl.int64)
        live = counted_rows(mask_ptr, row, stop)
        loss, hit = row_losses(
            logits_ptr, target_ptr, row, live, classes, inverse,
            LABELS, WHOLE, ACC, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        losses += tl.where(live, loss, 0).to(tl.float64)
        right += (live & hit).to(tl.float64)
        count += live.to(tl.float64)
    programs = tl.num_programs(0)
    tl.store(partial_ptr + split, tl.sum(losses, 0))
    tl.store(partial_ptr + programs + split, tl.sum(right, 0))
    tl.store(partial_ptr + 2 * programs + split, tl.sum(count, 0))


@triton.jit
def kl_div_mean_kernel(partial_ptr, loss_ptr, correct_ptr, programs, BLOCK: tl.constexpr):
    """One program adds partial [3, programs]: the mean loss, NaN of no rows, and the right ones."""
    lane = tl.arange(0, BLOCK)
    mask = lane < programs
    loss = tl.sum(tl.load(partial_ptr + lane, mask=mask, other=0), 0)
    right = tl.sum(tl.load(partial_ptr + programs + lane, mask=mask, other=0), 0)
    count = tl.sum(tl.load(partial_ptr + 2 * programs + lane, mask=mask, other=0), 0)
    tl.store(loss_ptr, loss / count)
    tl.store(correct_ptr, right.to(tl.int64))


@triton.jit
def kl_div_backward_kernel(
    dloss_ptr, count_ptr, logits_ptr, target_ptr, mask_ptr, dlogits_ptr, rows, classes, inverse,
    LABELS: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R rows of dlogits; ``count`` [] rows count, or all where it is None.

    The second loop reads what the first left in the cache.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = counted_rows(mask_ptr, row, rows)
    count = rows if count_ptr is None else tl.load(count_ptr)
    scale = tl.load(dloss_ptr).to(tl.float64) * from_bits(inverse, tl.float64)
    scale = (scale / count.to(tl.float64)).to(ACC)
    inverse = from_bits(inverse, ACC)
    top = tl.full([BLOCK_R], float("-inf"), ACC)
    total = tl.zeros([BLOCK_R], ACC)
    mass = total
    for begin in range(0, BLOCK_C if WHOLE else classes, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        z = load_block(logits_ptr, row, c, live, classes, ACC)
        before = top
        top, _ = follow_largest(z, c, top, 0)
        total = follow_sum(z, total, before, top, inverse)
        if not LABELS:
            mass += tl.sum(tl.exp(load_block(target_ptr, row, c, live, classes, ACC)), 1)
    label = row
    if LABELS:
        label, known = load_labels(target_ptr, row, live, classes)
        mass = tl.where(known, 1.0, float("nan")).to(ACC)
    share = mass / total
    for begin in range(0, BLOCK_C if WHOLE else classes, BLOCK_C):
        c = begin + tl.arange(0, BLOCK_C)
        z = load_block(logits_ptr, row, c, live, classes, ACC)
        p = tl.exp((z - finite_shift(top)[:, None]) * inverse) * share[:, None]
        if LABELS:
            q = (label[:, None] == c[None, :]).to(ACC)
        else:
            q = tl.exp(load_block(target_ptr, row, c, live, classes, ACC))
        gradient = tl.where(live[:, None], scale * (p - q), 0)
        offset = row[:, None] * classes + c[None, :]
        tl.store(
            dlogits_ptr + offset, gradient, mask=(row < rows)[:, None] & (c < classes)[None, :]
        )


def _operands(
    logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
) -> tuple[list[Tensor | None], int, dict[str, object], ScoreBlocks]:
    """What both kernels take: tensors, 1 / tau, constants, blocks."""
    block = score_blocks(logits)
    tensors = [
        logits.contiguous(),
        target.contiguous(),
        None if mask is None else mask.contiguous(),
    ]
    constants = {
        "LABELS": not target.is_floating_point(),
        "WHOLE": logits.size(1) <= block.classes,
        "ACC": tl_dtype(accumulation_dtype(logits)),
        "BLOCK_R": block.rows,
        "BLOCK_C": block.classes,
        "num_warps": block.warps,
        "maxnreg": MOST_REGISTERS,
    }
    return tensors, float_bits(1.0 / temperature), constants, block


def kl_div(
    logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """(mean of KL(q || softmax(z / tau)) over the rows of the mask, right predictions)."""
    rows, classes = logits.shape
    tensors, inverse, constants, block = _operands(logits, target, mask, temperature)
    share = max(triton.cdiv(rows, block.programs), block.rows)
    programs = triton.cdiv(rows, share)
    partial = logits.new_empty(3, programs, dtype=torch.float64)
    loss = logits.new_empty(())
    correct = logits.new_empty((), dtype=torch.int64)
    if programs > 0:
        kl_div_kernel[(programs,)](*tensors, partial, rows, share, classes, inverse, **constants)
    kl_div_mean_kernel[(1,)](
        partial, loss, correct, programs, BLOCK=block.programs, num_warps=block.warps
    )
    return loss, correct


def kl_div_backward(
    dloss: Tensor, logits: Tensor, target: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """Gradient of the mean with respect to the scores, [N, C]."""
    rows, classes = logits.shape
    tensors, inverse, constants, block = _operands(logits, target, mask, temperature)
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if rows > 0:
        count = None if mask is None else mask.sum()
        kl_div_backward_kernel[(triton.cdiv(rows, block.rows),)](
            dloss, count, *tensors, dlogits, rows, classes, inverse, **constants
        )
    return dlogits
