"""Gradients of the fused layer.

Where S = (1 - alpha) A x + alpha x_0 was kept, dW = beta S^T dz, ds = dz W'^T and
dx = (1 - alpha) A^T ds. Where the transform came first, g = A^T dz gives dW = beta x^T g and
dx = g W'^T. The last two steps are forward kernels of the transposed graph and weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.conv import Layer, dot_precision, drop_tile, make_mask
from abkd_fast.kernels.dropout import Mask
from abkd_fast.kernels.launch import MOST_REGISTERS, gradient_blocks, tl_dtype, weight_blocks
from abkd_fast.kernels.spmm import sum_rows


@triton.jit
def conv_gradient_kernel(
    dout_ptr, dsums_ptr, out_ptr, dz_ptr, sums_ptr, rows, width,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dz = dout + dsums where out > 0 or there is no ReLU; column sums of BLOCK_R rows."""
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    offset = row[:, None] * width + m[None, :]
    mask = (row < rows)[:, None] & (m < width)[None, :]
    dz = tl.load(dout_ptr + offset, mask=mask, other=0).to(ACC)
    if dsums_ptr is not None:
        dz += tl.load(dsums_ptr + m, mask=m < width, other=0).to(ACC)[None, :]
    if out_ptr is not None:
        dz = tl.where(tl.load(out_ptr + offset, mask=mask, other=0) <= 0, 0, dz)
    if dz_ptr is not None:
        tl.store(dz_ptr + offset, dz, mask=mask)
    sums = tl.sum(tl.where(mask, dz, 0).to(tl.float64), 0)
    tl.store(sums_ptr + block * width + m, sums, mask=m < width)


@triton.jit(do_not_specialize=["seed", "layer", "step", "threshold", "dropout_scale"])
def conv_dweight_kernel(
    features_ptr, dz_ptr, partial_ptr, rows, share, width, width_out,
    seed, layer, step, threshold, dropout_scale,
    DROP: tl.constexpr, QUADS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """partial[split] = drop(features)^T dz of ``share`` rows; [splits, width, width_out] in ACC."""
    split = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_K
    k = first + tl.arange(0, BLOCK_K)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    stop = tl.minimum((split + 1) * share, tl.zeros([], tl.int64) + rows)
    total = tl.zeros([BLOCK_K, BLOCK_M], ACC)
    for begin in range(split * share, stop, BLOCK_R):
        row = (begin + tl.arange(0, BLOCK_R)).to(tl.int64)
        live = (row < stop)[:, None]
        offset = row[:, None] * width + k[None, :]
        tile = tl.load(features_ptr + offset, mask=live & (k < width)[None, :], other=0).to(ACC)
        if DROP:
            tile = drop_tile(
                tile, row, first, width, seed, layer, step, threshold, dropout_scale,
                ACC, QUADS, BLOCK_R, BLOCK_K,
            )  # fmt: skip
        offset = row[:, None] * width_out + m[None, :]
        dz = tl.load(dz_ptr + offset, mask=live & (m < width_out)[None, :], other=0).to(ACC)
        total = tl.dot(tl.trans(tile), dz, total, input_precision=PRECISION, out_dtype=ACC)
    offset = (split * width + k[:, None]) * width_out + m[None, :]
    tl.store(partial_ptr + offset, total, mask=(k < width)[:, None] & (m < width_out)[None, :])


def activation_gradient(
    dout: Tensor, dsums: Tensor | None, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(dz, its column sums)."""
    dout = dout.contiguous()
    rows, width = dout.shape
    changes = dsums is not None or out is not None
    dz = torch.empty_like(dout) if changes else dout
    block = gradient_blocks(dout)
    blocks = triton.cdiv(rows, block.rows)
    sums = dout.new_empty(blocks, width, dtype=torch.float64)
    if dout.numel() > 0:
        conv_gradient_kernel[(blocks, triton.cdiv(width, block.columns))](
            dout, None if dsums is None else dsums.contiguous(),
            None if out is None else out.contiguous(), dz if changes else None, sums, rows, width,
            ACC=tl_dtype(accumulation_dtype(dout)), BLOCK_R=block.rows, BLOCK_M=block.columns,
            num_warps=block.warps, maxnreg=MOST_REGISTERS,
        )  # fmt: skip
    return dz, sums.sum(0).to(dout.dtype)


def weight_gradient(features: Tensor, dz: Tensor, beta: float, mask: Mask | None) -> Tensor:
    """beta drop(features)^T dz, in parts of rows whose number depends on the shapes alone."""
    features = features.contiguous()
    (rows, width), width_out = features.shape, dz.size(1)
    block = weight_blocks(features, width, width_out)
    tiles = triton.cdiv(width, block.features), triton.cdiv(width_out, block.columns)
    most = max(512 // (tiles[0] * tiles[1]), 1)
    share = max(triton.cdiv(rows, most), 8 * block.rows)
    splits = triton.cdiv(rows, share)
    acc = accumulation_dtype(features)
    partial = features.new_empty(splits, width, width_out, dtype=acc)
    if partial.numel() > 0:
        conv_dweight_kernel[(splits, *tiles)](
            features, dz, partial, rows, share, width, width_out,
            *((0, 0, 0, 0, 0) if mask is None else mask.arguments),
            DROP=mask is not None, QUADS=width % 4 == 0,
            PRECISION=dot_precision(features), ACC=tl_dtype(acc),
            BLOCK_R=block.rows, BLOCK_K=block.features, BLOCK_M=block.columns,
            num_warps=block.warps, num_stages=block.stages, maxnreg=MOST_REGISTERS,
        )  # fmt: skip
    return (beta * partial.sum(0)).to(features.dtype)


def conv_backward(
    rowptr_t: Tensor | None,
    col_t: Tensor | None,
    value_t: Tensor | None,
    dout: Tensor,
    dsums: Tensor | None,
    out: Tensor | None,
    features: Tensor | None,
    weight: Tensor | None,
    alpha: float,
    beta: float,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
    aggregate_first: bool,
    want_x: bool,
    want_weight: bool,
    want_x_0: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dx_0); [0] where a gradient is not wanted."""
    dx, dweight, dx_0 = (dout.new_empty(0) for _ in range(3))
    dz, dbias = activation_gradient(dout, dsums, out)
    mask = make_mask(p, seed, layer, step, dout.device)
    transposed = None if weight is None else weight.t()
    edges = None if rowptr_t is None or col_t is None else (rowptr_t, col_t, value_t)
    sources = 0 if rowptr_t is None else rowptr_t.numel() - 1
    if aggregate_first:
        if want_weight:
            assert features is not None
            dweight = weight_gradient(features, dz, beta, None)
        if want_x or want_x_0:
            # With a residual, dx_0 = alpha ds is a result anyway.
            scale = alpha if want_x_0 else 1 - alpha
            rows = dz.size(0)
            ds = Layer(dz, rows, scale=scale, weight=transposed, beta=beta).run()[0]
            dx_0 = ds if want_x_0 else dx_0
            if want_x:
                scale = (1 - alpha) / alpha if want_x_0 else 1.0
                dx = Layer(ds, sources, edges, scale=scale, mask=mask).run()[0]
        return dx, dweight, dbias, dx_0
    if want_weight:
        assert features is not None and edges is not None
        gathered = sum_rows(*edges, dz)
        dweight = weight_gradient(features, gathered, beta, mask)
        if want_x:
            dx = Layer(gathered, sources, weight=transposed, beta=beta, mask=mask).run()[0]
    elif want_x:
        dx = Layer(dz, sources, edges, weight=transposed, beta=beta, mask=mask).run()[0]
    return dx, dweight, dbias, dx_0
