"""Rows of a sparse matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast._backend import register
from abkd_fast._checks import check_tensor
from abkd_fast._csr import Structure, check_range
from abkd_fast.graph import CSRGraph
from abkd_fast.reference.select_rows import op_select_rows


def select_rows(graph: CSRGraph, rows: Tensor) -> CSRGraph:
    """A[rows] of a sparse matrix A: the entries of a row keep their order.

    Args:
        graph: [num_dst, num_src].
        rows: [R] int64 in [0, num_dst), in any order, repeated or not.

    Returns:
        [R, num_src], weighted as ``graph`` is; weights carry no gradient.

    Raises:
        ValueError: unknown rows, or another dtype.
        RuntimeError: repeated rows have more entries than the graph's index dtype can count.
    """
    check_tensor("rows", rows, dim=1, dtypes=[torch.int64], device=graph.device)
    check_range("rows", rows, graph.num_dst, "num_dst")
    value = None if graph.value is None else graph.value.detach()
    rowptr, col, kept = torch.ops.abkd_fast.select_rows(graph.rowptr, graph.col, value, rows)
    return CSRGraph(Structure(rowptr, col, graph.num_src), None if value is None else kept)


def _sizes_known_at_run_time(
    rowptr: Tensor, col: Tensor, value: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    edges = torch.library.get_ctx().new_dynamic_size()
    weights = rows.new_empty(0, dtype=torch.float32) if value is None else value.new_empty(edges)
    return rowptr.new_empty(rows.numel() + 1), col.new_empty(edges), weights


register("select_rows", op_select_rows, _sizes_known_at_run_time)
