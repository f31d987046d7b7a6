"""The CUDA C++ kernels as implementations of the ops: each has the signature of its schema.

``abkd_fast._C_cuda`` is a module of its own, so that the CPU kernels load where CUDA does not. It
registers ``torch.ops.abkd_fast.spmm_cuda`` and others; :func:`load` puts the ops that they serve,
``OPS``, under the dispatch key CUDA, where the table of back ends finds them.

Conv's dense transform stays with torch: S is kept for the backward anyway, so that fusing would
spare one read of it, and cuBLAS multiplies it at the rate of the tensor cores.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from abkd_fast._conv_chain import Mask, drop, gradients, transform

# Features are dropped as they are gathered where each is gathered this often at most; drawing a
# mask for every edge costs more than writing the dropped features once.
_FUSED_DROPOUT_DEGREE = 4


_library: torch.library.Library | None = None


def load() -> tuple[bool, str]:
    """Import the kernels and register the ops they serve: whether they are there, and why."""
    global _library
    try:
        importlib.import_module("abkd_fast._C_cuda")
    except ImportError as error:
        reason = str(error).splitlines()[0]
        return False, f"{reason}; build with nvcc, a CUDA build of torch and ABKD_CUDA=1"
    if _library is None:
        _library = torch.library.Library("abkd_fast", "IMPL")
        for name, implementation in OPS.items():
            _library.impl(name, torch.no_grad()(implementation), "CUDA")
    return True, "C++ extension, CUDA kernels"


def spmm(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, mean: bool) -> Tensor:
    """Sum or mean; see :func:`abkd_fast.reference.spmm.op_spmm`."""
    return torch.ops.abkd_fast.spmm_cuda(rowptr, col, value, x, mean)


def spmm_extremum(
    rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, maximum: bool, winners: bool
) -> tuple[Tensor, Tensor]:
    """Maximum or minimum; see :func:`abkd_fast.reference.spmm.op_spmm_extremum`."""
    return torch.ops.abkd_fast.spmm_extremum_cuda(rowptr, col, value, x, maximum, winners)


def dropout(x: Tensor, p: float, seed: Tensor, layer: int, step: int) -> Tensor:
    """Counter-based dropout; see :func:`abkd_fast.reference.dropout.op_dropout`."""
    return torch.ops.abkd_fast.dropout_cuda(x, p, seed, layer, step)


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
    """(out, column sums, mixed [N, in] or [0]); see :func:`abkd_fast.reference.conv.op_conv`."""
    p = 0.0 if seed is None else p
    fused = aggregate_first and col.numel() <= _FUSED_DROPOUT_DEGREE * x.size(0)
    if not fused:
        x, p = drop(dropout, x, (p, seed, layer, step)), 0.0
    if not aggregate_first:
        x = transform(x, weight, beta)
    scale = 1.0 if x_0 is None else 1 - alpha
    out = mixed = torch.ops.abkd_fast.conv_aggregate_cuda(
        rowptr, col, value, x, scale, x_0, alpha, p, seed, layer, step, False
    )
    if aggregate_first and weight is not None:
        out = transform(mixed, weight, beta)
    if bias is not None:
        out = out.add_(bias)
    if relu:
        out = out.relu_()
    sums = out.sum(0, dtype=torch.float64).to(_sums_dtype(out))
    return out, sums, mixed if keep_mixed else x.new_empty(0)


def conv_backward(
    rowptr_t: Tensor | None, col_t: Tensor | None, value_t: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dx_0); see :func:`abkd_fast._conv_chain.gradients`."""

    def gather(x: Tensor, scale: float, mask: Mask) -> Tensor:
        operands = (rowptr_t, col_t, value_t, x, scale, None, 0.0)
        return torch.ops.abkd_fast.conv_aggregate_cuda(*operands, *mask, True)

    return gradients(gather, dropout, *rest)


def _sums_dtype(out: Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32


OPS: dict[str, Callable[..., Any]] = {
    "spmm": spmm,
    "spmm_extremum": spmm_extremum,
    "dropout": dropout,
    "conv": conv,
    "conv_backward": conv_backward,
}
