"""Our ops in terms of torch's that ONNX has standard ops for.

Sums over rows are scatters along an index that a running count of row ends gives: repeats of
unknown length, which the reference implementations make, have no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram, default_decompositions

from abkd_fast.reference.conv import finish


def decompose(program: ExportedProgram) -> ExportedProgram:
    """``program`` without ops of ours.

    Raises:
        ValueError: names an op that is left.
    """
    table = default_decompositions()
    ours: dict[Any, Callable[..., Any]] = {
        torch.ops.abkd_fast.transposed.default: _transposed,
        torch.ops.abkd_fast.pick.default: lambda values, index: values.index_select(0, index),
        torch.ops.abkd_fast.conv.default: _conv,
        torch.ops.abkd_fast.spmm.default: _spmm,
    }
    table.update(ours)
    program = program.run_decompositions(table)
    for node in program.graph.nodes:
        if getattr(node.target, "namespace", "") == "abkd_fast":
            raise ValueError(
                f"the model must need no {node.target} for onnx, which standard ops do not give; "
                "GCN, GCNII, MLP and GraphSAGE with sum or mean do; use aoti or torch-export"
            )
    return program


def _transposed(x: Tensor) -> Tensor:
    return x.t().clone(memory_format=torch.contiguous_format)


def _spmm(rowptr: Tensor, col: Tensor, value: Tensor | None, x: Tensor, mean: bool) -> Tensor:
    """As ``reference.spmm.op_spmm``."""
    ends = rowptr[1:].long()
    marks = ends.new_zeros(col.numel() + 1).scatter_add(0, ends, torch.ones_like(ends))
    row = marks.cumsum(0)[:-1].unsqueeze(1)  # rows that ended up to here: that of this edge
    messages = x.index_select(0, col)
    if value is not None:
        messages = value.unsqueeze(1) * messages
    total = x.new_zeros(rowptr.numel() - 1, x.size(1))
    total = total.scatter_add(0, row.expand_as(messages), messages)
    return total / rowptr.diff().clamp(min=1).unsqueeze(1) if mean else total


def _conv(
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
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``reference.conv.op_conv``, in eval mode."""
    if weight is not None and not aggregate_first:
        x, _ = finish(x, weight, None, None, 0.0, beta, False)
        weight, beta = None, 1.0
    aggregated = _spmm(rowptr, col, value, x, False)
    out, sums = finish(aggregated, weight, bias, x_0, alpha, beta, relu)
    return out, sums, x.new_empty(0)
