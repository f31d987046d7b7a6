"""Rows of a CSR matrix in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def op_select_rows(
    rowptr: Tensor, col: Tensor, value: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(rowptr, col, value) of these rows; see :func:`abkd_fast.ops.select_rows`."""
    degree = rowptr.diff()[rows].long()
    pointers = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
    edges = (rowptr[rows].long() - pointers[:-1]).repeat_interleave(degree)
    edges += torch.arange(edges.numel(), device=edges.device)
    kept = rowptr.new_empty(0, dtype=torch.float32) if value is None else value[edges]
    return pointers.to(rowptr.dtype), col[edges], kept
