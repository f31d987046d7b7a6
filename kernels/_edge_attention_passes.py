"""Edge attention: softmax over the edges of rows with an online maximum, and its gradients.

A program owns some rows, one head and some of its features. GAT's scores are sums of numbers of
nodes, which are computed first; GATv2's are formed from the features of both ends, by every
program that needs them. The backward forms the coefficients again from the maximum and the sum of
every row: one pass over the rows finds what the softmax subtracts, one over the transpose finds
everything else. Rows are not split: a hub takes one program's time. Additions have an order that
depends on the graph and the shapes alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.conv import make_mask
from abkd_fast.kernels.dropout import float_bits, from_bits, keeps, load_seed
from abkd_fast.kernels.launch import (
    MOST_REGISTERS,
    AttentionBlocks,
    attention_blocks,
    tl_dtype,
)  # fmt: skip
from abkd_fast.kernels.rows import load_row

_DROPOUT = ["slope", "seed", "layer", "step", "threshold", "scale"]


@triton.jit
def load_own(ptr, row, rows, head, heads, width, features, ACC: tl.constexpr):
    """[BLOCK_R, BLOCK_C] features of a head of rows."""
    mask = (row < rows)[:, None] & (features < width)[None, :]
    offset = (row[:, None] * heads + head) * width + features[None, :]
    return tl.load(ptr + offset, mask=mask, other=0).to(ACC)


@triton.jit
def load_other(ptr, node, live, head, heads, width, features, ACC: tl.constexpr):
    """[BLOCK_R, BLOCK_E, BLOCK_C] features of a head of the other ends of edges."""
    mask = live[:, :, None] & (features < width)[None, None, :]
    offset = (node[:, :, None] * heads + head) * width + features[None, None, :]
    return tl.load(ptr + offset, mask=mask, other=0).to(ACC)


@triton.jit
def edge_scores(
    own_score_ptr, other_score_ptr, score_edge_ptr, own_ptr, other_ptr, att_ptr,
    row, rows, node, live, edge, head, heads, width, slope,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(scores, slopes of the leaky ReLU around them) of edges, two of [BLOCK_R, BLOCK_E].

    Without scores of nodes they are GATv2's, whose slopes are inside the sum: 1 stands here.
    """
    score = tl.zeros([BLOCK_R, BLOCK_E], ACC)
    slopes = tl.full([BLOCK_R, BLOCK_E], 1.0, ACC)
    if own_score_ptr is not None:
        own = tl.load(own_score_ptr + row * heads + head, mask=row < rows, other=0)
        score += own[:, None] + tl.load(other_score_ptr + node * heads + head, mask=live, other=0)
        if score_edge_ptr is not None:
            score += tl.load(score_edge_ptr + edge * heads + head, mask=live, other=0)
        slopes = tl.where(score > 0, slopes, slope)
        score *= slopes
    else:
        for first in range(0, width, BLOCK_C):
            features = first + tl.arange(0, BLOCK_C)
            mixed = load_own(own_ptr, row, rows, head, heads, width, features, ACC)[:, None, :]
            mixed += load_other(other_ptr, node, live, head, heads, width, features, ACC)
            mixed = tl.where(mixed > 0, mixed, slope * mixed)
            att = tl.load(att_ptr + head * width + features, mask=features < width, other=0)
            score += tl.sum(mixed * att[None, None, :], 2)
    return score, slopes


@triton.jit
def edge_dots(
    own_ptr, other_ptr, row, rows, node, live, head, heads, width,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """<own, other> of a head along edges, [BLOCK_R, BLOCK_E]."""
    total = tl.zeros([BLOCK_R, BLOCK_E], ACC)
    for first in range(0, width, BLOCK_C):
        features = first + tl.arange(0, BLOCK_C)
        own = load_own(own_ptr, row, rows, head, heads, width, features, ACC)[:, None, :]
        other = load_other(other_ptr, node, live, head, heads, width, features, ACC)
        total += tl.sum(own * other, 2)
    return total


@triton.jit
def drop_factors(edge, head, heads, seed, layer, step, threshold, scale, ACC: tl.constexpr):
    """What dropout multiplies coefficients with: element edge * heads + head of [E, H]."""
    kept = keeps(edge * heads + head, load_seed(seed), layer, step, threshold)
    return tl.where(kept, from_bits(scale, ACC), 0)


@triton.jit(do_not_specialize=_DROPOUT)
def attend_kernel(
    rowptr_ptr, col_ptr, x_ptr, x_dst_ptr, att_ptr, score_src_ptr, score_dst_ptr, score_edge_ptr,
    out_ptr, stats_ptr, rows, heads, width, slope, seed, layer, step, threshold, scale,
    DROP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out [rows, H, C]; stats [rows, 2, H]: largest score and 1 / sum of exponentials."""
    head, slope = tl.program_id(1), from_bits(slope, ACC)
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    features = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, stop = load_row(rowptr_ptr, rows, row)
    most = tl.full([BLOCK_R], float("-inf"), ACC)
    total = tl.zeros([BLOCK_R], ACC)
    out = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for done in range(0, tl.max(stop - start, 0), BLOCK_E):
        edge = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        live = edge < stop[:, None]
        node = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
        score, _ = edge_scores(
            score_dst_ptr, score_src_ptr, score_edge_ptr, x_dst_ptr, x_ptr, att_ptr,
            row, rows, node, live, edge, head, heads, width, slope,
            ACC, BLOCK_R, BLOCK_E, BLOCK_C,
        )  # fmt: skip
        score = tl.where(live, score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        base = tl.where(higher == float("-inf"), 0, higher)
        shrink = tl.exp(most - base)
        weight = tl.exp(score - base[:, None])
        total = total * shrink + tl.sum(weight, 1)
        most = higher
        if DROP:
            weight *= drop_factors(edge, head, heads, seed, layer, step, threshold, scale, ACC)
        message = load_other(x_ptr, node, live, head, heads, width, features, ACC)
        out = out * shrink[:, None] + tl.sum(weight[:, :, None] * message, 1)
    empty = start == stop
    inverse = tl.where(empty, 0, 1 / tl.where(empty, 1, total))
    mask = (row < rows)[:, None] & (features < width)[None, :]
    offset = (row[:, None] * heads + head) * width + features[None, :]
    tl.store(out_ptr + offset, out * inverse[:, None], mask=mask)
    if tl.program_id(2) == 0:
        place = stats_ptr + row * 2 * heads + head
        tl.store(place, tl.where(empty, 0, most), mask=row < rows)
        tl.store(place + heads, inverse, mask=row < rows)


@triton.jit(do_not_specialize=_DROPOUT)
def attend_dst_kernel(
    rowptr_ptr, col_ptr, x_ptr, x_dst_ptr, att_ptr, score_src_ptr, score_dst_ptr, score_edge_ptr,
    dout_ptr, stats_ptr, inner_ptr, dscore_ptr, dx_dst_ptr,
    rows, heads, width, slope, seed, layer, step, threshold, scale,
    DROP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """inner [rows, H] = sum_e alpha_e dalpha_e, and the gradient of the destination's part.

    dscore_e = slope_e alpha_e (dalpha_e - inner), so its sum over a row is that of
    slope alpha dalpha less inner times that of slope alpha: GAT's dscore [rows, H], and with a
    slope for every feature GATv2's dx_dst [rows, H, C].
    """
    head, slope = tl.program_id(1), from_bits(slope, ACC)
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    features = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, stop = load_row(rowptr_ptr, rows, row)
    place = stats_ptr + row * 2 * heads + head
    most = tl.load(place, mask=row < rows, other=0)
    inverse = tl.load(place + heads, mask=row < rows, other=0)
    inner = tl.zeros([BLOCK_R], ACC)
    if dx_dst_ptr is not None:
        own = load_own(x_dst_ptr, row, rows, head, heads, width, features, ACC)[:, None, :]
        upper = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        lower = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    else:
        upper = tl.zeros([BLOCK_R], ACC)
        lower = tl.zeros([BLOCK_R], ACC)
    for done in range(0, tl.max(stop - start, 0), BLOCK_E):
        edge = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
        live = edge < stop[:, None]
        node = tl.load(col_ptr + edge, mask=live, other=0).to(tl.int64)
        score, slopes = edge_scores(
            score_dst_ptr, score_src_ptr, score_edge_ptr, x_dst_ptr, x_ptr, att_ptr,
            row, rows, node, live, edge, head, heads, width, slope,
            ACC, BLOCK_R, BLOCK_E, BLOCK_C,
        )  # fmt: skip
        alpha = tl.where(live, tl.exp(score - most[:, None]) * inverse[:, None], 0)
        product = alpha * edge_dots(
            dout_ptr, x_ptr, row, rows, node, live, head, heads, width,
            ACC, BLOCK_R, BLOCK_E, BLOCK_C,
        )  # fmt: skip
        if DROP:
            product *= drop_factors(edge, head, heads, seed, layer, step, threshold, scale, ACC)
        inner += tl.sum(product, 1)
        if dx_dst_ptr is not None:
            mixed = own + load_other(x_ptr, node, live, head, heads, width, features, ACC)
            each = tl.where(mixed > 0, 1, slope)
            upper += tl.sum(product[:, :, None] * each, 1)
            lower += tl.sum(alpha[:, :, None] * each, 1)
        else:
            upper += tl.sum(product * slopes, 1)
            lower += tl.sum(alpha * slopes, 1)
    if tl.program_id(2) == 0:
        tl.store(inner_ptr + row * heads + head, inner, mask=row < rows)
    if dscore_ptr is not None:
        tl.store(dscore_ptr + row * heads + head, upper - inner * lower, mask=row < rows)
    if dx_dst_ptr is not None:
        att = tl.load(att_ptr + head * width + features, mask=features < width, other=0)
        mask = (row < rows)[:, None] & (features < width)[None, :]
        offset = (row[:, None] * heads + head) * width + features[None, :]
        result = att[None, :] * (upper - inner[:, None] * lower)
        tl.store(dx_dst_ptr + offset, result, mask=mask)


@triton.jit(do_not_specialize=_DROPOUT)
def attend_src_kernel(
    rowptr_ptr, col_ptr, perm_ptr, x_ptr, x_dst_ptr, att_ptr, att_dst_ptr,
    score_src_ptr, score_dst_ptr, score_edge_ptr, dout_ptr, stats_ptr, inner_ptr, dscore_dst_ptr,
    dx_ptr, dscore_ptr, dscore_edge_ptr, datt_ptr,
    rows, share, heads, width, slope, seed, layer, step, threshold, scale,
    DROP: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx [rows, H, C] of the transpose's rows, the sources; a program owns ``share`` of them.

    GAT: dscore [rows, H], and dscore_edge [E, H] where wanted; with att_dst the destinations'
    part of dx too, since sources are the destinations. GATv2: datt [programs, H, C].
    """
    head, slope = tl.program_id(1), from_bits(slope, ACC)
    features = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    att = tl.load(att_ptr + head * width + features, mask=features < width, other=0)
    begin = tl.program_id(0).to(tl.int64) * share
    end = tl.minimum(begin + share, tl.zeros([], tl.int64) + rows)
    datt = tl.zeros([BLOCK_C], ACC)
    for block in range(begin, end, BLOCK_R):
        row = block + tl.arange(0, BLOCK_R).to(tl.int64)
        start, stop = load_row(rowptr_ptr, rows, row)
        dx = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        dscores = tl.zeros([BLOCK_R], ACC)
        if datt_ptr is not None:
            own = load_own(x_ptr, row, rows, head, heads, width, features, ACC)[:, None, :]
        for done in range(0, tl.max(stop - start, 0), BLOCK_E):
            place = start[:, None] + done + tl.arange(0, BLOCK_E)[None, :]
            live = place < stop[:, None]
            node = tl.load(col_ptr + place, mask=live, other=0).to(tl.int64)
            edge = tl.load(perm_ptr + place, mask=live, other=0)
            score, slopes = edge_scores(
                score_src_ptr, score_dst_ptr, score_edge_ptr, x_ptr, x_dst_ptr, att_ptr,
                row, rows, node, live, edge, head, heads, width, slope,
                ACC, BLOCK_R, BLOCK_E, BLOCK_C,
            )  # fmt: skip
            most = tl.load(stats_ptr + node * 2 * heads + head, mask=live, other=0)
            inverse = tl.load(stats_ptr + (node * 2 + 1) * heads + head, mask=live, other=0)
            inner = tl.load(inner_ptr + node * heads + head, mask=live, other=0)
            alpha = tl.where(live, tl.exp(score - most) * inverse, 0)
            dalpha = edge_dots(
                x_ptr, dout_ptr, row, rows, node, live, head, heads, width,
                ACC, BLOCK_R, BLOCK_E, BLOCK_C,
            )  # fmt: skip
            weight = alpha
            if DROP:
                kept = drop_factors(edge, head, heads, seed, layer, step, threshold, scale, ACC)
                weight *= kept
                dalpha *= kept
            dscore = alpha * (dalpha - inner) * slopes
            message = load_other(dout_ptr, node, live, head, heads, width, features, ACC)
            dx += tl.sum(weight[:, :, None] * message, 1)
            if datt_ptr is not None:
                mixed = own + load_other(x_dst_ptr, node, live, head, heads, width, features, ACC)
                each = tl.where(mixed > 0, 1, slope) * dscore[:, :, None]
                dx += att[None, :] * tl.sum(each, 1)
                datt += tl.sum(tl.sum(each * mixed, 1), 0)
            else:
                dscores += tl.sum(dscore, 1)
            if dscore_edge_ptr is not None:
                tl.store(dscore_edge_ptr + edge * heads + head, dscore, mask=live)
        if datt_ptr is None:
            dx += dscores[:, None] * att[None, :]
            if tl.program_id(2) == 0:
                tl.store(dscore_ptr + row * heads + head, dscores, mask=row < rows)
            if att_dst_ptr is not None:
                mine = tl.load(dscore_dst_ptr + row * heads + head, mask=row < rows, other=0)
                att_dst_ptrs = att_dst_ptr + head * width + features
                dx += mine[:, None] * tl.load(att_dst_ptrs, mask=features < width, other=0)[None, :]
        mask = (row < rows)[:, None] & (features < width)[None, :]
        offset = (row[:, None] * heads + head) * width + features[None, :]
        tl.store(dx_ptr + offset, dx, mask=mask)
    if datt_ptr is not None:
        part = (tl.program_id(0).to(tl.int64) * heads + head) * width + features
        tl.store(datt_ptr + part, datt, mask=features < width)


class Pass(NamedTuple):
    """What every kernel of a call is launched with."""

    block: AttentionBlocks
    heads: int
    width: int
    numbers: tuple[Any, ...]  # slope and dropout
    options: dict[str, Any]

    @classmethod
    def of(
        cls, x: Tensor, slope: float, p: float, seed: Tensor | None, layer: int, step: int
    ) -> Pass:
        """From an operator's arguments."""
        block = attention_blocks(x)
        mask = make_mask(p, seed, layer, step, x.device)
        dropout = (0, 0, 0, 0, 0) if mask is None else mask.arguments
        options = {"DROP": mask is not None, "ACC": tl_dtype(accumulation_dtype(x))}
        options |= {"BLOCK_R": block.rows, "BLOCK_E": block.edges, "BLOCK_C": block.features}
        options |= {"num_warps": block.warps, "maxnreg": MOST_REGISTERS}
        return cls(block, x.size(1), x.size(2), (float_bits(slope), *dropout), options)

    def grid(self, programs: int) -> tuple[int, int, int]:
        """Programs, heads and tiles of features."""
        return programs, self.heads, max(triton.cdiv(self.width, self.block.features), 1)

    def blocks(self, rows: int) -> int:
        """Programs that own a block of rows each."""
        return triton.cdiv(rows, self.block.rows)
