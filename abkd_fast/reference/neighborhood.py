"""Neighbourhoods of nodes in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from abkd_fast.reference.sample_neighbors import op_sample_neighbors


def op_neighborhood(
    rowptr: Tensor,
    col: Tensor,
    value: Tensor | None,
    nodes: Tensor,
    num_hops: int,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(nodes, sizes, rowptr, col, value); see :func:`abkd_fast.ops.neighborhood`."""
    seed, sizes = torch.zeros((), dtype=torch.int64, device=nodes.device), [nodes.numel()]
    for hops in range(1, num_hops + 1):
        found = op_sample_neighbors(rowptr, col, nodes, [-1] * hops, False, seed, 0)[0]
        sizes.append(found.numel())
    n_id, local_rowptr, local_col, e_id = op_sample_neighbors(
        rowptr, col, nodes, [-1] * num_hops, False, seed, 0
    )
    kept = rowptr.new_empty(0, dtype=torch.float32) if value is None else value[e_id]
    return n_id, torch.tensor(sizes, device=nodes.device), local_rowptr, local_col, kept
