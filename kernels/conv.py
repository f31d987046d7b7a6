"""The fused layer: aggregate, mix, transform, bias, activation, dropout, column sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from abkd_fast._checks import accumulation_dtype
from abkd_fast.kernels.dropout import (
    Mask,
    dropout,
    float_bits,
    from_bits,
    keeps,
    keeps_quads,
    load_seed,
)  # fmt: skip
from abkd_fast.kernels.launch import (
    MOST_REGISTERS,
    LayerBlocks,
    layer_blocks,
    layer_candidates,
    tl_dtype,
    transform_candidates,
)  # fmt: skip
from abkd_fast.kernels.rows import load_row
from abkd_fast.kernels.spmm import sum_edges, sum_hubs, sum_rows
from abkd_fast.kernels.tuning import tuned

# Three products of tensor cores in TF32 have the digits of float32; 16-bit numbers have no more
# digits than TF32.
_PRECISIONS = {torch.float32: "tf32x3", torch.float64: "ieee"}
_UNMASKED = (0, 0, 0, 0, 0)


def dot_precision(x: Tensor) -> str:
    """How tensor cores multiply numbers of a dtype."""
    return _PRECISIONS.get(x.dtype, "tf32")


@triton.jit
def drop_tile(
    tile, row, first, width, seed, layer, step, threshold, scale,
    ACC: tl.constexpr, QUADS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Dropout of columns ``first`` on of rows of a [*, width] matrix; QUADS: 4 divides width."""
    key, row = load_seed(seed), row.to(tl.int64)
    if QUADS:
        counter = (row * width + first)[:, None] // 4 + tl.arange(0, BLOCK_F // 4)[None, :]
        kept = tl.reshape(keeps_quads(counter, key, layer, step, threshold), [BLOCK_R, BLOCK_F])
    else:
        element = (row * width + first)[:, None] + tl.arange(0, BLOCK_F)[None, :]
        kept = keeps(element, key, layer, step, threshold)
    return tl.where(kept, tile * from_bits(scale, ACC), 0)


@triton.jit
def load_weight(
    weight_ptr, k, m, width, width_out, stride_k, stride_m, beta,
    ACC: tl.constexpr, IDENTITY: tl.constexpr,
):  # fmt: skip
    """[K, M] of beta W + (1 - beta) I."""
    offset = k[:, None].to(tl.int64) * stride_k + m[None, :].to(tl.int64) * stride_m
    mask = (k < width)[:, None] & (m < width_out)[None, :]
    weight = tl.load(weight_ptr + offset, mask=mask, other=0).to(ACC)
    factor = from_bits(beta, ACC)
    weight *= factor
    if IDENTITY:
        weight += tl.where(k[:, None] == m[None, :], 1 - factor, 0)
    return weight


@triton.jit
def aggregate_tile(
    rowptr_ptr, col_ptr, value_ptr, x_ptr, hubs_ptr, rows, row, width, features,
    CHUNK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """[BLOCK_R, BLOCK_F] of A x; the rows of hubs are read. Without edges, rows of x."""
    offset = row[:, None] * width + features[None, :]
    mask = (row < rows)[:, None] & (features < width)[None, :]
    if rowptr_ptr is None:
        return tl.load(x_ptr + offset, mask=mask, other=0).to(ACC)
    else:
        start, stop = load_row(rowptr_ptr, rows, row)
        hub = stop - start > CHUNK
        if CHUNK > 0:
            stop = tl.where(hub, start, stop)
        tile = sum_edges(
            start, stop, col_ptr, value_ptr, None, None, x_ptr, width, features,
            ACC, BLOCK_R, BLOCK_E, BLOCK_F,
        )  # fmt: skip
        if CHUNK > 0:
            tile += tl.load(hubs_ptr + offset, mask=mask & hub[:, None], other=0).to(ACC)
        return tile


@triton.jit(do_not_specialize=[
    "alpha", "beta", "scale", "seed", "layer", "step", "threshold", "dropout_scale",
])  # fmt: skip
def conv_kernel(
    rowptr_ptr, col_ptr, value_ptr, x_ptr, hubs_ptr, x_0_ptr, mixed_ptr, weight_ptr, bias_ptr,
    out_ptr, sums_ptr, rows, width, width_out, stride_k, stride_m, alpha, beta, scale,
    seed, layer, step, threshold, dropout_scale,
    RELU: tl.constexpr, IDENTITY: tl.constexpr, DROP_IN: tl.constexpr, DROP_OUT: tl.constexpr,
    QUADS: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R rows and BLOCK_M columns of act((scale A x + alpha x_0) W' + bias).

    W' = beta W + (1 - beta) I. The product runs over BLOCK_K features at a time, whose aggregates
    stay in registers. ``sums`` [programs, width_out] float64 are column sums of the rows.
    """
    block = tl.program_id(0).to(tl.int64)
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    first = tl.program_id(1) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    out = tl.zeros([BLOCK_R, BLOCK_M], ACC)
    begin = 0 if weight_ptr is not None else first
    end = width if weight_ptr is not None else first + BLOCK_K
    for done in range(begin, end, BLOCK_K):
        k = done + tl.arange(0, BLOCK_K)
        tile = aggregate_tile(
            rowptr_ptr, col_ptr, value_ptr, x_ptr, hubs_ptr, rows, row, width, k,
            CHUNK, ACC, BLOCK_R, BLOCK_E, BLOCK_K,
        )  # fmt: skip
        tile *= from_bits(scale, ACC)
        offset = row[:, None] * width + k[None, :]
        mask = (row < rows)[:, None] & (k < width)[None, :]
        if x_0_ptr is not None:
            tile += from_bits(alpha, ACC) * tl.load(x_0_ptr + offset, mask=mask, other=0).to(ACC)
        if DROP_IN:
            tile = drop_tile(
                tile, row, done, width, seed, layer, step, threshold, dropout_scale,
                ACC, QUADS, BLOCK_R, BLOCK_K,
            )  # fmt: skip
        if mixed_ptr is not None:
            if first == 0:  # one program of a block of rows writes it
                tl.store(mixed_ptr + offset, tile, mask=mask)
        if weight_ptr is not None:
            weight = load_weight(
                weight_ptr, k, m, width, width_out, stride_k, stride_m, beta, ACC, IDENTITY
            )
            out = tl.dot(tile, weight, out, input_precision=PRECISION, out_dtype=ACC)
        else:
            out = tile
    if bias_ptr is not None:
        out += tl.load(bias_ptr + m, mask=m < width_out, other=0).to(ACC)[None, :]
    if RELU:
        out = tl.where(out <= 0, 0, out)  # NaN stays
    if DROP_OUT:
        out = drop_tile(
            out, row, first, width_out, seed, layer, step, threshold, dropout_scale,
            ACC, QUADS, BLOCK_R, BLOCK_M,
        )  # fmt: skip
    mask = (row < rows)[:, None] & (m < width_out)[None, :]
    if out_ptr is not None:
        tl.store(out_ptr + row[:, None] * width_out + m[None, :], out, mask=mask)
    if sums_ptr is not None:
        sums = tl.sum(tl.where(mask, out, 0).to(tl.float64), 0)
        tl.store(sums_ptr + block * width_out + m, sums, mask=m < width_out)


@dataclass
class Layer:
    """Operands of :func:`conv_kernel`; None leaves a step out."""

    x: Tensor  # [*, K], contiguous
    rows: int
    edges: tuple[Tensor, Tensor, Tensor | None] | None = None  # rowptr, col, value
    scale: float = 1.0
    x_0: Tensor | None = None
    alpha: float = 0.0
    weight: Tensor | None = None  # [K, M], any strides
    beta: float = 1.0
    bias: Tensor | None = None
    relu: bool = False
    mask: Mask | None = None
    drop_input: bool = False  # of the product; otherwise its result is dropped
    mixed: Tensor | None = None  # [rows, K], written
    column_sums: bool = False

    def run(self) -> tuple[Tensor, Tensor]:
        """(result [rows, M], column sums [M] or [0])."""
        x, width = self.x, self.x.size(1)
        width_out = width if self.weight is None else self.weight.size(1)
        block = layer_blocks(x, width, width_out, self.weight is not None, self.edges is not None)
        op, degree, candidates = "linear", 0.0, transform_candidates(block)
        if self.edges is not None:
            rowptr, col, value = self.edges
            if self.weight is not None and width_out > block.columns:
                # The columns of the result do not fit one program: aggregate once for all of them.
                self.x, self.edges = sum_rows(rowptr, col, value, x), None
                return self.run()
            op, degree = "conv", col.numel() / max(self.rows, 1)
            candidates = layer_candidates(block)

        def run(blocks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            return self._launch(LayerBlocks(*blocks), width_out)

        op = op if self.weight is None else f"{op} to {width_out}"
        return run(tuned(op, x, degree, block, candidates, run))

    def _launch(self, block: LayerBlocks, width_out: int) -> tuple[Tensor, Tensor]:
        out = self.x.new_empty(self.rows, width_out)
        blocks = triton.cdiv(self.rows, block.rows)
        sums = out.new_empty(blocks if self.column_sums else 0, width_out, dtype=torch.float64)
        if out.numel() > 0:
            self._start(out, sums, block, (blocks, triton.cdiv(width_out, block.columns)))
        return out, sums.sum(0).to(out.dtype) if self.column_sums else out.new_empty(0)

    def _start(self, out: Tensor, sums: Tensor, block: LayerBlocks, grid: tuple[int, int]) -> None:
        rowptr = col = value = hubs = None
        chunk = 0
        if self.edges is not None:
            rowptr, col, value = self.edges
            hubs, chunk = sum_hubs(rowptr, col, value, self.x)
        width, width_out = self.x.size(1), out.size(1)
        strides = (0, 0) if self.weight is None else self.weight.stride()
        numbers = [float_bits(number) for number in (self.alpha, self.beta, self.scale)]
        mask = _UNMASKED if self.mask is None else self.mask.arguments
        masked = width if self.drop_input else width_out
        conv_kernel[grid](
            rowptr, col, value, self.x, hubs, self.x_0, self.mixed, self.weight, self.bias,
            out, sums if self.column_sums else None, self.rows, width, width_out, *strides,
            *numbers, *mask,
            RELU=self.relu, IDENTITY=self.beta != 1,
            DROP_IN=self.mask is not None and self.drop_input,
            DROP_OUT=self.mask is not None and not self.drop_input,
            QUADS=masked % 4 == 0, PRECISION=dot_precision(out),
            CHUNK=chunk, ACC=tl_dtype(accumulation_dtype(out)),
            BLOCK_R=block.rows, BLOCK_E=block.edges, BLOCK_K=block.features,
            BLOCK_M=block.columns, num_warps=block.warps, num_stages=block.stages,
            maxnreg=MOST_REGISTERS,
        )  # fmt: skip


def make_mask(
    p: float, seed: Tensor | None, layer: int, step: int, device: torch.device
) -> Mask | None:
    """The mask of a dropout, or None where nothing is dropped."""
    return None if seed is None or p == 0.0 else Mask(p, seed, layer, step, device)


def conv(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_0: Tensor | None,
    alpha: float,
    beta: float,
    relu: bool,
    aggregate_first: bool,
    keep_mixed: bool,
    p: float,
    seed: Tensor | None,
    layer: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, column sums, mixed [N, in] or [0])."""
    rows, x = rowptr.numel() - 1, x.contiguous()
    bias = None if bias is None else bias.contiguous()
    mixed = x.new_empty((rows, x.size(1)) if keep_mixed else (0,))
    if not aggregate_first:
        mask = make_mask(p, seed, layer, step, x.device)
        transform = Layer(x, x.size(0), weight=weight, beta=beta, mask=mask, drop_input=True)
        features = transform.run()[0]
        rest = Layer(features, rows, (rowptr, col, value), bias=bias, relu=relu, column_sums=True)
        return *rest.run(), mixed
    # An element of x is read once per edge: its mask is drawn once.
    x = x if seed is None or p == 0.0 else dropout(x, p, seed, layer, step)
    fused = Layer(
        x, rows, (rowptr, col, value), scale=1.0 if x_0 is None else 1 - alpha,
        x_0=None if x_0 is None else x_0.contiguous(), alpha=alpha, weight=weight, beta=beta,
        mixed=mixed if keep_mixed else None, bias=bias, relu=relu, column_sums=True,
    )  # fmt: skip
    return *fused.run(), mixed
