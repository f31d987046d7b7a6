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
    if p > 0 and not fused:
        assert seed is not None
        x, p = dropout(x, p, seed, layer, step), 0.0
    if not aggregate_first:
        assert weight is not None
        x = _transform(x, weight, beta)
    scale = 1.0 if x_0 is None else 1 - alpha
    out = mixed = torch.ops.abkd_fast.conv_aggregate_cuda(
        rowptr, col, value, x, scale, x_0, alpha, p, seed, layer, step, False
    )
    if aggregate_first and weight is not None:
        out = _transform(mixed, weight, beta)
    if bias is not None:
        out = out.add_(bias)
    if relu:
        out = out.relu_()
    sums = out.sum(0, dtype=torch.float64).to(_sums_dtype(out))
    return out, sums, mixed if keep_mixed else x.new_empty(0)


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
    """(dx, dweight, dbias, dx_0); see :func:`abkd_fast.reference.conv.op_conv_backward`."""
    p = 0.0 if seed is None else p
    dx, dweight, dx_0 = (dout.new_empty(0) for _ in range(3))
    dz = dout if dsums is None else dout + dsums.to(dout.dtype)
    dz = dz if out is None else dz.masked_fill(out <= 0, 0)

    def gather(x: Tensor, scale: float, p: float) -> Tensor:
        return torch.ops.abkd_fast.conv_aggregate_cuda(
            rowptr_t, col_t, value_t, x, scale, None, 0.0, p, seed, layer, step, True
        )

    if aggregate_first:
        ds = dz if weight is None else _transform(dz, weight.t(), beta)
        if want_weight:
            assert features is not None
            dweight = beta * (features.t() @ dz)
        dx = gather(ds, 1 - alpha, p) if want_x else dx
        dx_0 = alpha * ds if want_x_0 else dx_0
    elif want_x or want_weight:
        gathered = gather(dz, 1.0, 0.0)
        if want_weight:
            assert features is not None
            if p > 0:
                assert seed is not None
                features = dropout(features, p, seed, layer, step)
            dweight = beta * (features.t() @ gathered)
        if want_x:
            assert weight is not None
            dx = _transform(gathered, weight.t(), beta)
            if p > 0:
                assert seed is not None
                dx = dropout(dx, p, seed, layer, step)
    return dx, dweight, dz.sum(0), dx_0


def _transform(x: Tensor, weight: Tensor, beta: float) -> Tensor:
    """x ((1 - beta) I + beta W)."""
    if beta == 1:
        return x @ weight
    return torch.addmm(x, x, weight, beta=1 - beta, alpha=beta)


def _sums_dtype(out: Tensor) -> torch.dtype:
    return torch.float64 if out.dtype == torch.float64 else torch.float32


OPS: dict[str, Callable[..., Any]] = {
    "spmm": spmm,
    "spmm_extremum": spmm_extremum,
    "dropout": dropout,
    "conv": conv,
    "conv_backward": conv_backward,
}
